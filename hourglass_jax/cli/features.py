"""The command `hourglass features`: feature maps of a model's backbone."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from hourglass_jax.plans.expedite import fit_plan

if TYPE_CHECKING:
    import numpy as np


def features(
    photos: Photos,
    output: Output = Path("features"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    reading: Reading = ReadingOptions(),
) -> None:
    """Writes the feature maps of a model's backbone and a visualization of them; without a plan by default.

    NAME.npz holds arrays [H, W, C] of float32: "features" of a ViT, "res2" to "res5" of a Swin. NAME_features.png
    shows the first three principal components of each as red, green and blue.

    Example: hourglass features photo.jpg -o features/

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write to.
    """
    import jax
    import numpy as np

    from hourglass_jax.io.memory import check_memory

    photographs = photos_of(photos, reading, output)
    check_folder(output)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    preprocessing = preprocessing.whole_patches(loaded.backbone.stride, loaded.multiple)
    expedited = hj.expedite(loaded, chosen)
    run = jax.jit(lambda backbone, images: backbone(images).maps())
    fitting: set[tuple[int, ...]] = set()

    def work(photo: Photo, image: "np.ndarray") -> Callable[[], dict[str, Any]]:
        images = preprocessing(image)[None]
        model = expedited if plan.strict_plan else fit_plan(expedited, images.shape[1:3], preprocessing.shape)
        if images.shape not in fitting:
            check_memory(run, model.backbone, images)
            fitting.add(images.shape)
        found = run(model.backbone, images)
        maps = {name: np.asarray(each[0], np.float32) for name, each in found.items()}
        return lambda: _write(photo, preprocessing.crop_to_view(image), maps, output, photographs)

    records, status = process(photographs, work)
    lines = (f"{record['photo']}: {record['arrays']}, {record['picture']}" for record in records)
    finish(records, lines, status, as_json=model.json)


def _write(
    photo: Photo, image: "np.ndarray", maps: "dict[str, np.ndarray]", output: Path, photos: Sequence[Photo]
) -> dict[str, Any]:
    import numpy as np

    from hourglass_jax.imaging.images import write_image
    from hourglass_jax.imaging.pictures import principal_components, sheet, stretch
    from hourglass_jax.io.files import replacing

    arrays, picture = output / f"{photo.name}.npz", output / f"{photo.name}_features.png"
    check_no_photo((arrays, picture), (each.path for each in photos))
    with replacing(arrays) as temporary, temporary.open("wb") as file:
        np.savez(file, **maps)  # pyright: ignore[reportArgumentType]  no map is called allow_pickle
    colors = {name: stretch(principal_components(values), image.shape[:2]) for name, values in maps.items()}
    panels = [(f"{name}\n{format_size(maps[name].shape)}", color) for name, color in colors.items()]
    write_image(picture, sheet([[("Photograph", image), *panels]]))
    shapes = {name: values.shape for name, values in maps.items()}
    return {"photo": str(photo.path), "arrays": str(arrays), "picture": str(picture), "maps": shapes}
