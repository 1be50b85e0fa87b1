"""The command `hourglass visualize`: the paper's Figures 13 and 14 for any photograph."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

import hourglass_jax as hj
from hourglass_jax.cli.batches import finish, process
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    Reading,
    ReadingOptions,
    check_folder,
    check_no_photo,
    format_size,
    load_model,
    photos_of,
)
from hourglass_jax.cli.photos import Photo

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.analysis.inspection import BlockTrace
    from hourglass_jax.backbones.swin import Swin
    from hourglass_jax.backbones.vit import ViT
    from hourglass_jax.models.base import Model
    from hourglass_jax.ops.grids import Grid

SHARES = (0.7, 0.5, 0.3, 0.15)
"""Default numbers of clusters, as shares of the number of tokens."""
HEIGHT = 360
"""Height of the pictures in a sheet, in pixels."""
Panels = list[tuple[str, "np.ndarray"]]


def visualize(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    reading: Reading = ReadingOptions(),
    rows: tuple[int, ...] = (),
    task: str | None = None,
    position: tuple[float, float] = (0.5, 0.5),
    block: int | None = None,
) -> None:
    """Visualizes an hourglass inside a model: three pictures of each photograph.

    "predictions" are the model's results with fewer and fewer clusters. "features" are the tokens before and after
    the blocks that run on clusters, with and without them: their first three principal components as red, green and
    blue. "attention" is whom three neighbouring positions attend to, among tokens and among clusters: that
    neighbours attend alike is why they can share a cluster. (Figures 13 and 14 of the paper.) A Swin clusters and
    attends in windows, of whose clusters all are drawn side by side.

    Example: hourglass visualize photo.jpg -o out/ --alpha 5 --clusters 24 24 --position 0.3 0.4

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write the pictures to.
        rows: Rows of the cluster grids in "predictions", whose columns follow the image's shape (a Swin's are those
            of a window, and square); by default there are 0.7, 0.5, 0.3 and 0.15 times as many clusters as tokens.
        task: Which of a model's tasks "predictions" are of, if it has several.
        position: Of the token whose attention is drawn, and that of its neighbours to the right and below: down and
            across, in 0..1 of the photograph's sides.
        block: Whose attention is drawn, counted from 1; by default the first one on clusters.
    """
    from hourglass_jax.backbones.swin import Swin
    from hourglass_jax.backbones.vit import ViT
    from hourglass_jax.models.base import find_task
    from hourglass_jax.ops.grids import shrink_grid

    found = photos_of(photos, reading, output)
    check_folder(output)
    if not all(0 <= share <= 1 for share in position):
        raise ValueError(f"position must be two numbers in 0..1, got {position[0]:g} {position[1]:g}")
    loaded, preprocessing, chosen = load_model(model, plan, hourglass_for="clusters are drawn")
    backbone = loaded.backbone
    if not isinstance(backbone, ViT | Swin):
        raise ValueError(f"attention is drawn of a ViT or a Swin, got a {type(backbone).__name__}")
    find_task(loaded, task)
    block = chosen.alpha + 1 if block is None else block
    backbone.check_plan(chosen)
    depth = backbone.depth if isinstance(backbone, ViT) else backbone.stage_of(chosen.alpha)[-1]
    end = chosen.end(depth)
    if block not in range(chosen.alpha + 1, end + 1):
        raise ValueError(f"block must be one on clusters, {chosen.alpha + 1} to {end}, got {block}")
    preprocessing = preprocessing.whole_patches(loaded.backbone.stride, loaded.multiple)

    def work(photo: Photo, picture: "np.ndarray") -> Callable[[], dict[str, Any]]:
        picture = preprocessing.crop_to_view(picture)
        image = preprocessing(picture)[None]
        size = image.shape[1:3]
        grid = backbone.plan_grid(*size)
        grids = [_grid(count, grid) for count in rows] or [shrink_grid(grid, share) for share in SHARES]
        for clusters in (chosen.clusters, *grids):
            backbone.check_plan(dataclasses.replace(chosen, clusters=clusters), size)
        small = _small(picture)
        options = chosen, image, position, block
        look = _of_vit(backbone, *options) if isinstance(backbone, ViT) else _of_swin(backbone, *options)
        pictures = {
            "predictions": _predictions(loaded, chosen, dict.fromkeys(grids), small, image, task),
            **_inside(look, small, block),
        }
        return lambda: _write(photo, pictures, output, found)

    records, status = process(found, work)
    lines = (f"{record['photo']}: {', '.join(record['files'].values())}" for record in records)
    finish(records, lines, status, as_json=model.json)


def _write(
    photo: Photo, pictures: "dict[str, np.ndarray]", output: Path, photos: Sequence[Photo]
) -> dict[str, Any]:
    from hourglass_jax.imaging.images import write_image

    files = {kind: str(output / f"{photo.name}_{kind}.png") for kind in pictures}
    check_no_photo(files.values(), (each.path for each in photos))
    for kind, picture in pictures.items():
        write_image(files[kind], picture)
    return {"photo": str(photo.path), "files": files}


def _grid(rows: int, token_grid: "Grid") -> "Grid":
    """The cluster grid with this number of rows and the aspect ratio of the image."""
    return rows, max(1, round(rows * token_grid[1] / token_grid[0]))


def _predictions(
    model: "Model",
    plan: hj.Hourglass,
    grids: "Iterable[Grid]",
    photo: "np.ndarray",
    image: "np.ndarray",
    name: str | None,
) -> "np.ndarray":
    import numpy as np

    from hourglass_jax.analysis.comparison import result_at_input, run_model
    from hourglass_jax.analysis.fidelity import cosine_similarity
    from hourglass_jax.imaging.pictures import resize_photo, sheet
    from hourglass_jax.io.memory import check_memory
    from hourglass_jax.models.base import find_task

    size, task = image.shape[1:3], find_task(model, name)
    photo = resize_photo(photo, size)

    def drawn(outputs: object) -> np.ndarray:
        return task.render(photo, result_at_input(task, outputs, size)).overview

    check_memory(run_model, model, image)
    features, outputs = run_model(model, image)
    panels: Panels = [("Photograph", photo), ("Original\nall tokens", drawn(outputs))]
    for clusters in grids:
        fast = hj.expedite(model, dataclasses.replace(plan, clusters=clusters))
        fast_features, outputs = run_model(fast, image)
        cosine = float(cosine_similarity(fast_features, features)[0])
        panels.append((f"{format_size(clusters)} clusters\ncosine {cosine:.3f}", drawn(outputs)))
    return sheet([panels], height=HEIGHT)


class _Look(NamedTuple):
    """What is drawn of the inside of a backbone.

    Attributes:
        seen: with all tokens, and with clusters.
        grids: (H, W) of the tokens, and of the clusters.
        extents: what these lie over, in tokens: a Swin's clusters over the padding of its windows, too.
        counts: what these are called.
        last: what the tokens are called that leave.
        places: (row, column) of the tokens whose attention is drawn.
    """

    seen: "tuple[BlockTrace, BlockTrace]"
    grids: "tuple[Grid, Grid]"
    extents: "tuple[Grid, Grid]"
    counts: tuple[str, str]
    last: str
    places: "list[Grid]"


def _of_vit(
    backbone: "ViT", plan: hj.Hourglass, image: "np.ndarray", position: tuple[float, float], block: int
) -> _Look:
    from hourglass_jax.analysis.inspection import inspect_block

    grid = backbone.token_grid(*image.shape[1:3])
    places = _neighbours(position, grid)
    indices = tuple(row * grid[1] + column for row, column in places)
    original, clustered = (
        inspect_block(backbone, image, plan=each, block=block - 1, positions=indices) for each in (None, plan)
    )
    counts = f"{format_size(grid)} tokens", f"{format_size(plan.clusters)} clusters"
    return _Look((original, clustered), (grid, plan.clusters), (grid, grid), counts, "final", places)


def _of_swin(
    backbone: "Swin", plan: hj.Hourglass, image: "np.ndarray", position: tuple[float, float], block: int
) -> _Look:
    from hourglass_jax.analysis.inspection import inspect_window_block
    from hourglass_jax.ops.windows import window_grid

    size = image.shape[1:3]
    stage, _, end = backbone.stage_of(plan.alpha)
    grid, window = backbone.grids(*size)[stage], backbone.window(backbone.grids(*size)[stage])
    down, across = window_grid(grid, window)
    cells = plan.clusters[0] * down, plan.clusters[1] * across
    places, last = _neighbours(position, grid), plan.end(end)
    indices = tuple(row * grid[1] + column for row, column in places)
    original, clustered = (
        inspect_window_block(backbone, image, plan=each, block=block - 1, last=last - 1, positions=indices)
        for each in (None, plan)
    )
    few = f"{format_size(cells)} clusters, {format_size(plan.clusters)} a window"
    counts = f"{format_size(grid)} tokens, windows of {format_size((window, window))}", few
    extents = grid, (down * window, across * window)
    return _Look((original, clustered), (grid, cells), extents, counts, f"after block {last}", places)


def _inside(look: _Look, photo: "np.ndarray", block: int) -> dict[str, "np.ndarray"]:
    """The pictures of features and of attention."""
    import numpy as np

    from hourglass_jax.imaging.pictures import colorize, principal_components, sheet, stretch

    (original, clustered), grid = look.seen, look.grids[0]
    tokens, few = look.counts

    def arranged(values, shape: "Grid") -> np.ndarray:
        return np.asarray(values, np.float32).reshape(*shape, -1)

    def laid_over(colors: np.ndarray, extent: "Grid") -> np.ndarray:
        rows, columns = photo.shape[:2]
        size = round(rows * extent[0] / grid[0]), round(columns * extent[1] / grid[1])
        return stretch(colors, size)[:rows, :columns]

    def components(values, place: int, of: np.ndarray) -> np.ndarray:
        colors = principal_components(arranged(values, look.grids[place]), of=of)
        return laid_over(colors, look.extents[place])

    before, after = (arranged(each, grid) for each in (original.entering, original.leaving))
    features = [
        [
            ("Photograph", photo),
            (f"Original before block {block}\n{tokens}", components(original.entering, 0, before)),
            (f"Original, {look.last}\n{tokens}", components(original.leaving, 0, after)),
        ],
        [
            ("", np.full_like(photo, 255)),
            (f"Clustered before block {block}\n{few}", components(clustered.entering, 1, before)),
            (f"Clustered, {look.last}\n{few}", components(clustered.leaving, 1, after)),
            (f"Reconstructed\n{tokens}", components(clustered.restored, 0, after)),
        ],
    ]
    attention = [
        [("Photograph\nand the positions", _marked(photo, look.places, grid))],
        [("", np.full_like(photo, 255))],
    ]
    for number, name in enumerate(("Position", "Its right neighbour", "The one below")):
        for row, trace, shape, extent, what in zip(
            attention, look.seen, look.grids, look.extents, look.counts, strict=True
        ):
            values = np.asarray(trace.attention[number]).reshape(shape)
            picture = laid_over(colorize(values / values.max()), extent)
            row.append((f"{name}\nblock {block}, {what}", picture))
    return {"features": sheet(features, height=HEIGHT), "attention": sheet(attention, height=HEIGHT)}


def _neighbours(position: tuple[float, float], grid: "Grid") -> "list[Grid]":
    """The token at a position of the photograph, and its neighbours to the right and below, if there are any."""
    row, column = (min(int(share * side), side - 1) for share, side in zip(position, grid, strict=True))
    return [(row, column), (row, min(column + 1, grid[1] - 1)), (min(row + 1, grid[0] - 1), column)]


def _small(photo: "np.ndarray") -> "np.ndarray":
    """Resizes a photograph to the height of the pictures."""
    import numpy as np

    width = max(1, round(photo.shape[1] * HEIGHT / photo.shape[0]))
    return np.asarray(Image.fromarray(photo).resize((width, HEIGHT), Image.Resampling.BICUBIC))


def _marked(photo: "np.ndarray", places: "list[Grid]", grid: "Grid") -> "np.ndarray":
    """Draws white squares with black outlines around tokens."""
    picture = photo.copy()
    for place in places:
        (top, bottom), (left, right) = (
            (index * length // side, (index + 1) * length // side)
            for index, length, side in zip(place, photo.shape, grid, strict=False)
        )
        picture[max(0, top - 1) : bottom + 1, max(0, left - 1) : right + 1] = 0
        picture[top:bottom, left:right] = 255
        picture[top + 2 : bottom - 2, left + 2 : right - 2] = photo[top + 2 : bottom - 2, left + 2 : right - 2]
    return picture
