"""The command `hourglass compare`."""

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
    share: tuple[float, ...] = (),
    task: str | None = None,
    repeats: int = 5,
) -> None:
    """Compares the model with and without a plan: a table, and a picture for each photograph.

    With --method, several plans are compared: one of each method at the same cost, and the plan if one is given.
    Then the largest centred square of each photograph is used, by default of those of `hourglass demo`, and a plot
    shows fidelity over cost.

    Example: hourglass compare photo.jpg --alpha 4 --clusters 26 26

    Example: hourglass compare photo.jpg --plan merging.json --keep 0.8

    Example: hourglass compare -o out/ --method TokenMerging --method StagedMerging --share 0.5 0.6 0.75

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write the pictures to.
        methods: A method to compare; may be given several times.
        share: Cost of the methods' plans, as shares of the encoder's multiply-accumulates; by default the cost of
            the plan. StagedMerging if no method is named.
        task: Which of a model's tasks, if it has several.
        repeats: Timed runs of each; the median counts.
    """
    from hourglass_jax.cli.compare_methods import compare_methods
    from hourglass_jax.imaging.images import read_image
    from hourglass_jax.imaging.photographs import photographs

    if share and not methods:
        methods = ("StagedMerging",)
    found = photos_of(photos, reading, output) if photos or not methods else []
    check_folder(output)
    if methods:
        methods = tuple(find_method(name).__name__ for name in methods)
        paths = {photo.name: photo.path for photo in found} or photographs()
        compare_methods(paths, output, model, plan, methods, share, task, repeats)
        return
    check_no_photo((output / f"{photo.name}_comparison.png" for photo in found), (photo.path for photo in found))
    _compare({photo.name: read_image(photo.path) for photo in found}, output, model, plan, task, repeats)


def _compare(
    photos, output: Path, model: ModelOptions, plan: PlanOptions, name_of_task: str | None, repeats: int
) -> None:
    import numpy as np

    from hourglass_jax.analysis.comparison import POINTS, Figures
    from hourglass_jax.analysis.comparison import compare as run
    from hourglass_jax.imaging.images import write_image
    from hourglass_jax.imaging.pictures import comparison_picture, resize_photo
    from hourglass_jax.models.base import find_task

    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    loaded, preprocessing, chosen = load_model(model, plan)
    preprocessing = preprocessing.whole_patches(loaded.backbone.stride, loaded.multiple)
    prepared, plans = [], []
    photos = {name: preprocessing.crop_to_view(photo) for name, photo in photos.items()}
    for name, photo in photos.items():
        with error_context(name):
            prepared.append(preprocessing(photo))
            size = prepared[-1].shape[:2]
            made_for = size if plan.strict_plan else preprocessing.shape
            plans.append(loaded.backbone.fit_plan(chosen, size, made_for))
    results, seconds, task = [], [], find_task(loaded, name_of_task)
    with tqdm(total=len(photos) * 2 * (repeats + 1), desc="runs", disable=hide_progress()) as bar:
        for (name, photo), image, fitted in zip(photos.items(), prepared, plans, strict=True):
            if fitted != chosen:
                print(f"{name}: the plan is fitted to the photograph: {describe(fitted)}", file=sys.stderr)
            [[result]] = run(loaded, [fitted], [image], task=task.name, repeats=repeats, on_call=bar.update)
            path = output / f"{name}_comparison.png"
            small = resize_photo(photo, result.size)
            original, expedited = (
                task.render(small, shown).overview for shown in (result.result, result.result_expedited)
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
    table = Table("photograph", "tokens", "ms", "faster", "features", "MAE", "pixels", title=describe(chosen))
    for row in results if len(results) == 1 else [*results, {"name": "mean", **mean}]:
        table.add_row(
            row["name"],
            f"{row['tokens']:.0f} to {row['clusters']:.0f}",
            f"{row['latency_ms']:.0f} to {row['latency_ms_expedited']:.0f}",
            f"{row['speedup']:.2f}",
            f"{row['cosine']:.4f}",
            f"{row['mae']:.4f}",
            "" if row["agreement"] is None else f"{row['agreement']:.1%}",
        )
    console().print(table)
    first, first_expedited = seconds[0]
    if "decode_ms" in results[0]:
        decoding = float(np.mean([row["decode_ms"] for row in results]))
        console().print(
            f"Latencies are the encoder's; the answer to a point takes {decoding:.0f} ms. "
            f"Agreement is the mean overlap of the masks at {POINTS} x {POINTS} points."
        )
    console().print(
        f"GMACs (10^9 multiply-accumulates): {mean['gflops']:.1f} to {mean['gflops_expedited']:.1f}. "
        f"First calls, with compilation: {first:.1f} s and {first_expedited:.1f} s.\n"
        "features: cosine of the final features with the original's; MAE: of the results; pixels: decided "
        f"the same. Pictures: {output}/"
    )
