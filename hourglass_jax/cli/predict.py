"""The command `hourglass predict`."""

from pathlib import Path

import tyro
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    check_paths,
    load_model,
    naming,
    print_json,
    quiet,
)


def predict(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    whole: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Predicts photographs and writes what the model says of each; without a plan unless one is given.

    Labels, saliency and features are PNG files. Depth is a PNG in 16 bits, a .npy file in the unit that its name
    tells (metres, or relative inverse depth), and a PNG in colours with a bar that tells them.

    What a classifier says is printed, too: the five most probable classes.

    Example: hourglass predict photo.jpg -o out/ --preset dinov2-vits14-saliency

    Args:
        photos: Image files.
        output: Folder to write to.
        whole: Run on whole images, even if the model is one that sees windows.
    """
    from hourglass_jax.imaging.images import read_image, write_array, write_image
    from hourglass_jax.predictor import Predictor

    check_paths(photos, output)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    predictor = Predictor(hj.expedite(loaded, chosen), preprocessing=preprocessing, whole=whole)
    written: list[dict[str, object]] = []
    lines: list[str] = []
    units: dict[str, str] = {}
    for photo in tqdm(photos, desc="photographs", disable=quiet(photos)):
        image = read_image(photo)
        with naming(photo):
            result = predictor(image)
        rendering = predictor.task.render(image, result)
        units |= rendering.units
        files = {}
        for kind, picture in rendering.pictures.items():
            files[kind] = str(output / f"{photo.stem}_{kind}.png")
            write_image(files[kind], picture)
        for kind, values in rendering.arrays.items():
            files[f"{kind}_npy"] = str(output / f"{photo.stem}_{kind}.npy")
            write_array(files[f"{kind}_npy"], values)
        written.append({"photo": str(photo), "files": files, **rendering.records})
        lines += [f"{photo}: {', '.join(files.values())}", *(f"  {line}" for line in rendering.text)]
    lines += [f"_{kind}.png: {unit}" for kind, unit in units.items()]
    if model.json:
        # No task has more than one such picture so far.
        print_json({"images": written, **({"units": next(iter(units.values()))} if units else {})})
    else:
        print("\n".join(lines))
