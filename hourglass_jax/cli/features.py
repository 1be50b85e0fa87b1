"""The command `hourglass features`: what the backbone of a model makes of photographs."""

from pathlib import Path

from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    by,
    check_paths,
    load_model,
    naming,
    print_json,
    quiet,
)


def features(
    photos: Photos,
    output: Output = Path("features"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
) -> None:
    """Writes the feature maps of a model's backbone, and a picture of them; without a plan unless one is given.

    NAME.npz holds arrays [H, W, C] of float32: "features" of a ViT, "res2" to "res5" of a Swin. NAME_features.png
    shows the first three principal components of each as red, green and blue.

    Example: hourglass features photo.jpg -o features/

    Args:
        photos: Image files.
        output: Folder to write to.
    """
    import jax
    import numpy as np

    from hourglass_jax.imaging.images import read_image, write_image
    from hourglass_jax.imaging.pictures import principal_components, sheet, stretched
    from hourglass_jax.io.files import replacing

    check_paths(photos, output)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    preprocessing = preprocessing.whole_patches(loaded.config.backbone.patch_size)
    backbone = hj.expedite(loaded, chosen).backbone
    run = jax.jit(lambda backbone, images: backbone(images).maps())
    written = []
    for photo in tqdm(photos, desc="photographs", disable=quiet(photos)):
        image = read_image(photo)
        with naming(photo):
            found = run(backbone, preprocessing(image)[None])
        image = preprocessing.seen(image)
        maps = {name: np.asarray(each[0], np.float32) for name, each in found.items()}
        arrays, picture = output / f"{photo.stem}.npz", output / f"{photo.stem}_features.png"
        with replacing(arrays) as temporary, temporary.open("wb") as file:
            np.savez(file, **maps)
        colors = {name: stretched(principal_components(each), image.shape[:2]) for name, each in maps.items()}
        panels = [(f"{name}\n{by(maps[name].shape)}", color) for name, color in colors.items()]
        write_image(picture, sheet([[("Photograph", image), *panels]]))
        shapes = {name: each.shape for name, each in maps.items()}
        written.append({"photo": str(photo), "arrays": str(arrays), "picture": str(picture), "maps": shapes})
    if model.json:
        print_json({"images": written})
    else:
        for row in written:
            print(f"{row['photo']}: {row['arrays']}, {row['picture']}")
