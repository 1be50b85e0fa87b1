"""The command `hourglass visualize`: the paper's Figures 13 and 14 of one's own photographs."""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

import hourglass_jax as hj
from hourglass_jax.cli.batches import process
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
    print_json,
    printable,
)
from hourglass_jax.cli.photos import Photo

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.ops.grids import Grid

SHARES = (0.7, 0.5, 0.3, 0.15)
"""Clusters for a token, where nobody says how many."""
HEIGHT = 360
"""Of the pictures in a sheet, in pixels."""
Panels = list[tuple[str, "np.ndarray"]]


def visualize(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    reading: Reading = ReadingOptions(),
    rows: tuple[int, ...] = (),
    position: tuple[float, float] = (0.5, 0.5),
    block: int | None = None,
) -> None:
    """Draws what an hourglass does inside a model: three pictures of each photograph.

    "predictions" are the model's results with fewer and fewer clusters. "features" are the tokens before and after
    the blocks that run on clusters, with and without them: their first three principal components as red, green and
    blue. "attention" is whom three neighbouring positions attend to, among tokens and among clusters: that
    neighbours attend alike is why they can share a cluster. (Figures 13 and 14 of the paper.)

    Example: hourglass visualize photo.jpg -o out/ --alpha 5 --clusters 24 24 --position 0.3 0.4

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write the pictures to.
        rows: Rows of the cluster grids in "predictions", whose columns follow the image's shape; by default there
            are 0.7, 0.5, 0.3 and 0.15 times as many clusters as tokens.
        position: Of the token whose attention is drawn, and that of its neighbours to the right and below: down and
            across, in 0..1 of the photograph's sides.
        block: Whose attention is drawn, counted from 1; by default the first one on clusters.
    """
    from hourglass_jax.backbones.vit import ViT
    from hourglass_jax.ops.grids import shrunk

    found = photos_of(photos, reading, output)
    check_folder(output)
    if not all(0 <= share <= 1 for share in position):
        raise ValueError(f"position must be two numbers in 0..1, got {position[0]:g} {position[1]:g}")
    loaded, preprocessing, chosen = load_model(model, plan, hourglass_for="clusters are drawn")
    backbone = loaded.backbone
    if not isinstance(backbone, ViT):
        raise ValueError(f"attention is drawn of a ViT, got a {type(backbone).__name__}")
    block = chosen.alpha + 1 if block is None else block
    depth = backbone.depth
    chosen.check(depth)
    end = chosen.end(depth)
    if block not in range(chosen.alpha + 1, end + 1):
        raise ValueError(f"block must be one on clusters, {chosen.alpha + 1} to {end}, got {block}")
    preprocessing = preprocessing.whole_patches(loaded.config.backbone.patch_size)

    def work(photo: Photo, picture: "np.ndarray") -> Callable[[], dict[str, Any]]:
        picture = preprocessing.seen(picture)
        image = preprocessing(picture)[None]
        grid = backbone.token_grid(*image.shape[1:3])
        grids = [_grid(count, grid) for count in rows] or [shrunk(grid, share) for share in SHARES]
        for clusters in (chosen.clusters, *grids):
            dataclasses.replace(chosen, clusters=clusters).check(depth, grid)
        small = _small(picture)
        pictures = {
            "predictions": _predictions(loaded, chosen, grids, small, image),
            **_inside(backbone, chosen, small, image, position, block),
        }
        return lambda: _write(photo, pictures, output, found)

    written, status = process(found, work)
    if model.json:
        print_json({"images": written})
    else:
        for each in written:
            print(printable(f"{each['photo']}: {', '.join(each['files'].values())}"))
    if status:
        sys.exit(status)


def _write(
    photo: Photo, pictures: "dict[str, np.ndarray]", output: Path, photos: Sequence[Photo]
) -> dict[str, Any]:
    from hourglass_jax.imaging.images import write_image

    files = {kind: str(output / f"{photo.name}_{kind}.png") for kind in pictures}
    check_no_photo(files.values(), photos)
    for kind, picture in pictures.items():
        write_image(files[kind], picture)
    return {"photo": str(photo.path), "files": files}


def _grid(rows: int, token_grid: "Grid") -> "Grid":
    """A cluster grid of so many rows that has the image's shape."""
    return rows, max(1, round(rows * token_grid[1] / token_grid[0]))


def _predictions(model, plan: hj.Hourglass, grids: "list[Grid]", photo: "np.ndarray", image: "np.ndarray"):
    import numpy as np

    from hourglass_jax.analysis.comparison import result_at_input, run_model
    from hourglass_jax.analysis.fidelity import cosine_similarity
    from hourglass_jax.imaging.pictures import resize_photo, sheet
    from hourglass_jax.io.memory import check_memory
    from hourglass_jax.models.base import find_task

    size, task = image.shape[1:3], find_task(model, None)
    photo = resize_photo(photo, size)

    def drawn(outputs: object) -> np.ndarray:
        return task.render(photo, result_at_input(task, outputs, size)).overview

    check_memory(run_model, model, image)
    features, outputs = run_model(model, image)
    panels: Panels = [("Photograph", photo), (f"Original\n{features.shape[1]} tokens", drawn(outputs))]
    for clusters in grids:
        fast = hj.expedite(model, dataclasses.replace(plan, clusters=clusters))
        fast_features, outputs = run_model(fast, image)
        cosine = float(cosine_similarity(fast_features, features)[0])
        panels.append((f"{format_size(clusters)} clusters\ncosine {cosine:.3f}", drawn(outputs)))
    return sheet([panels], height=HEIGHT)


def _inside(
    backbone,
    plan: hj.Hourglass,
    photo: "np.ndarray",
    image: "np.ndarray",
    position: tuple[float, float],
    block: int,
) -> dict[str, "np.ndarray"]:
    """The pictures of features and of attention."""
    import numpy as np

    from hourglass_jax.analysis.inspection import inspect_block
    from hourglass_jax.imaging.pictures import colorize, principal_components, sheet, stretched

    grid, clusters = backbone.token_grid(*image.shape[1:3]), plan.clusters
    places = _neighbours(position, grid)
    indices = tuple(row * grid[1] + column for row, column in places)
    seen = {
        None: inspect_block(backbone, image, plan=None, block=block - 1, positions=indices),
        plan: inspect_block(backbone, image, plan=plan, block=block - 1, positions=indices),
    }

    def arranged(values, shape: "Grid") -> np.ndarray:
        return np.asarray(values, np.float32).reshape(*shape, -1)

    def components(values, shape: "Grid", of: np.ndarray) -> np.ndarray:
        colors = principal_components(arranged(values, shape), of=of)
        return stretched(colors, photo.shape[:2])

    before, after = (arranged(each, grid) for each in (seen[None].entering, seen[None].leaving))
    count = f"{format_size(grid)} tokens", f"{format_size(clusters)} clusters"
    features = [
        [
            ("Photograph", photo),
            (f"Original before block {block}\n{count[0]}", components(seen[None].entering, grid, before)),
            (f"Original, final\n{count[0]}", components(seen[None].leaving, grid, after)),
        ],
        [
            ("", np.full_like(photo, 255)),
            (f"Clustered before block {block}\n{count[1]}", components(seen[plan].entering, clusters, before)),
            (f"Clustered, final\n{count[1]}", components(seen[plan].leaving, clusters, after)),
            (f"Reconstructed\n{count[0]}", components(seen[plan].restored, grid, after)),
        ],
    ]
    attention = [
        [("Photograph\nand the positions", _marked(photo, places, grid))],
        [("", np.full_like(photo, 255))],
    ]
    for number, name in enumerate(("Position", "Its right neighbour", "The one below")):
        for row, (weights, shape, what) in zip(
            attention,
            ((seen[None].attention, grid, count[0]), (seen[plan].attention, clusters, count[1])),
            strict=True,
        ):
            values = np.asarray(weights[number]).reshape(shape)
            picture = stretched(colorize(values / values.max()), photo.shape[:2])
            row.append((f"{name}\nblock {block}, {what}", picture))
    return {"features": sheet(features, height=HEIGHT), "attention": sheet(attention, height=HEIGHT)}


def _neighbours(position: tuple[float, float], grid: "Grid") -> "list[Grid]":
    """The token at a position of the photograph, and those to its right and below; at a border it is its own."""
    row, column = (min(int(share * side), side - 1) for share, side in zip(position, grid, strict=True))
    return [(row, column), (row, min(column + 1, grid[1] - 1)), (min(row + 1, grid[0] - 1), column)]


def _small(photo: "np.ndarray") -> "np.ndarray":
    """A photograph at the height of the pictures."""
    import numpy as np

    width = max(1, round(photo.shape[1] * HEIGHT / photo.shape[0]))
    return np.asarray(Image.fromarray(photo).resize((width, HEIGHT), Image.Resampling.BICUBIC))


def _marked(photo: "np.ndarray", places: "list[Grid]", grid: "Grid") -> "np.ndarray":
    """A photograph with white squares, lined with black, around tokens."""
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
