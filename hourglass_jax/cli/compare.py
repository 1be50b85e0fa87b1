"""The commands `hourglass compare` and `hourglass demo`."""

import dataclasses
import sys
from pathlib import Path

from rich.table import Table
from tqdm import tqdm

from hourglass_jax.cli.options import (
    Methods,
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    PlansBesideMethods,
    Reading,
    ReadingOptions,
    check_folder,
    check_no_photo,
    console,
    describe,
    error_context,
    hide_progress,
    load_model,
    photos_of,
    print_json,
    printable,
)
from hourglass_jax.plans.files import plan_fields
from hourglass_jax.plans.registry import find_method


def compare(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: PlansBesideMethods = PlanOptions(),
    reading: Reading = ReadingOptions(),
    methods: Methods = (),
    budget: tuple[float, ...] = (),
    repeats: int = 5,
) -> None:
    """Runs the model with and without a plan: a table, and a picture for each photograph.

    With --method it is several plans side by side: each method's own at a common cost, and the plan where one is
    given. Then the largest square in the middle of each photograph counts, by default of those of `hourglass demo`,
    and a plot shows fidelity over cost.

    Example: hourglass compare photo.jpg --alpha 4 --clusters 26 26

    Example: hourglass compare photo.jpg --plan merging.json --keep 0.8

    Example: hourglass compare -o out/ --method TokenMerging --method StagedMerging --budget 0.5 0.6 0.75

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write the pictures to.
        methods: A method to compare; may be given several times.
        budget: Shares of the encoder's multiply-accumulates, for the methods; by default what the plan costs.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.cli.compare_methods import compare_methods
    from hourglass_jax.imaging.images import read_image
    from hourglass_jax.imaging.photographs import photographs

    if budget and not methods:
        raise ValueError("--budget is for methods: expected --method, got none")
    found = photos_of(photos, reading, output) if photos or not methods else []
    check_folder(output)
    if methods:
        methods = tuple(find_method(name).__name__ for name in methods)
        paths = {photo.name: photo.path for photo in found} or photographs()
        compare_methods(paths, output, model, plan, methods, budget, repeats)
        return
    check_no_photo((output / f"{photo.name}_comparison.png" for photo in found), found)
    _compare({photo.name: read_image(photo.path) for photo in found}, output, model, plan, repeats)


def demo(
    output: Output = Path("demo"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    repeats: int = 5,
) -> None:
    """`hourglass compare` on photographs that come with scikit-image and scikit-learn, cropped to squares.

    Example: hourglass demo -o demo/

    Args:
        output: Folder to write the pictures to.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.imaging.images import center_crop_square, read_image
    from hourglass_jax.imaging.photographs import photographs

    check_folder(output)
    squares = {name: center_crop_square(read_image(path)) for name, path in photographs().items()}
    _compare(squares, output, model, plan, repeats)


def _compare(photos, output: Path, model: ModelOptions, plan: PlanOptions, repeats: int) -> None:
    import numpy as np

    from hourglass_jax.analysis.comparison import Figures
    from hourglass_jax.analysis.comparison import compare as run
    from hourglass_jax.imaging.images import write_image
    from hourglass_jax.imaging.pictures import comparison_picture, resize_photo
    from hourglass_jax.models.base import find_task

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    loaded, preprocessing, chosen = load_model(model, plan)
    preprocessing = preprocessing.whole_patches(loaded.config.backbone.patch_size)
    prepared, plans = [], []
    photos = {name: preprocessing.seen(photo) for name, photo in photos.items()}
    for name, photo in photos.items():
        with error_context(name):
            prepared.append(preprocessing(photo))
            size = prepared[-1].shape[:2]
            made_for = size if plan.strict_plan else preprocessing.shape
            plans.append(loaded.backbone.fit_plan(chosen, size, made_for))
    results, seconds, task = [], [], find_task(loaded, None)
    with tqdm(total=len(photos) * 2 * (repeats + 1), desc="runs", disable=hide_progress()) as bar:
        for (name, photo), image, fitted in zip(photos.items(), prepared, plans, strict=True):
            if fitted != chosen:
                said = f"{name}: the plan is fitted to the photograph: {describe(fitted)}"
                print(printable(said), file=sys.stderr)
            [[result]] = run(loaded, [fitted], [image], repeats=repeats, on_call=bar.update)
            path = output / f"{name}_comparison.png"
            small = resize_photo(photo, result.size)
            original, expedited = (
                task.render(small, each).overview for each in (result.result, result.result_expedited)
            )
            picture = comparison_picture(
                photo, original, expedited, result.difference, result.groups, result.figures.speedup
            )
            write_image(path, picture)
            results.append({"name": name, "picture": str(path), **dataclasses.asdict(result.figures)})
            seconds.append(result.first_seconds)
    fields = [field.name for field in dataclasses.fields(Figures)]
    mean = {
        field: None if results[0][field] is None else float(np.mean([row[field] for row in results]))
        for field in fields
    }
    if model.json:
        print_json({"plan": plan_fields(chosen), "images": results, "mean": mean})
        return
    table = Table(
        *("photograph", "tokens", "clusters", "GFLOPs", "expedited", "ms", "expedited"),
        *("speed-up", "cosine", "MAE", "agreement"),
        title=describe(chosen),
    )
    digits = dict(zip(fields, (0, 0, 1, 1, 0, 0, 2, 4, 4, 4), strict=True))
    for row in [*results, {"name": "mean", **mean}]:
        shown = ("" if row[field] is None else f"{row[field]:.{digits[field]}f}" for field in fields)
        table.add_row(row["name"], *shown)
    console().print(table)
    first, first_expedited = seconds[0]
    console().print(
        f"First calls, with compilation: {first:.1f} s and {first_expedited:.1f} s. "
        f"GFLOPs are 10^9 multiply-accumulates, as in the paper. Pictures: {output}/"
    )
