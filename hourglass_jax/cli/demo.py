"""The command `hourglass demo`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table
from tqdm import tqdm

from hourglass_jax.analysis.plots import PlotPoint, check_matplotlib, tradeoff_plot
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    PlanOptions,
    check_folder,
    console,
    describe,
    format_size,
    hide_progress,
    load_model,
    print_json,
)
from hourglass_jax.plans.files import plan_fields
from hourglass_jax.plans.presets import PRESETS

if TYPE_CHECKING:
    from hourglass_jax.analysis.comparison import Comparison, Figures
    from hourglass_jax.models.base import Model
    from hourglass_jax.plans.base import Plan

SHARES = (0.6, 0.75)
"""Of the encoder's multiply-accumulates: what the recommended kind of plan is shown at."""


def demo(output: Output = Path("demo"), model: Models = ModelOptions(), repeats: int = 5) -> None:
    """Shows on seven photographs what a model gains and loses: a table, a picture of each, and a plot.

    The photographs come with scikit-image and scikit-learn and are cropped to squares. The plans are the
    recommended kind at two costs, the paper's hourglass, and the plain alternative, a smaller image.

    Example: hourglass demo -o demo/

    Args:
        output: Folder to write the pictures to.
        repeats: Timed runs of each; the median counts.
    """
    import jax

    from hourglass_jax.analysis.comparison import compare
    from hourglass_jax.imaging.images import center_crop_square, read_image, write_image
    from hourglass_jax.imaging.photographs import photographs

    check_matplotlib()
    check_folder(output)
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    loaded, preprocessing, _ = load_model(model, PlanOptions(), default_preset=False)
    preprocessing = preprocessing.at(preprocessing.side).whole_patches(loaded.backbone.stride, loaded.multiple)
    plans = _plans(loaded, model.model, preprocessing.shape)
    shown, *_ = plans
    photos = {
        name: preprocessing.crop_to_view(center_crop_square(read_image(path)))
        for name, path in photographs().items()
    }
    found, pictures = {}, []
    with tqdm(total=len(photos) * (1 + len(plans)) * (repeats + 1), desc="runs", disable=hide_progress()) as bar:
        compared = compare(
            loaded,
            list(plans.values()),
            [preprocessing(photo) for photo in photos.values()],
            repeats=repeats,
            on_call=bar.update,
        )
        for (name, photo), results in zip(photos.items(), compared, strict=True):
            found[name] = [each.figures for each in results]
            pictures.append(output / f"{name}.png")
            write_image(pictures[-1], _picture(loaded, photo, shown, plans[shown], results[0]))
    rows = {name: [each[place] for each in found.values()] for place, name in enumerate(plans)}
    write_image(output / "summary.png", _plot(rows))
    if model.json:
        print_json(
            {
                "model": model.model,
                "size": preprocessing.shape,
                "plans": {
                    name: {
                        **plan_fields(plan),
                        "images": {
                            photo: dataclasses.asdict(figures)
                            for photo, figures in zip(photos, rows[name], strict=True)
                        },
                    }
                    for name, plan in plans.items()
                },
                "files": [*map(str, pictures), str(output / "summary.png")],
            }
        )
        return
    where = f"{model.model}, {len(photos)} photographs at {format_size(preprocessing.shape)}, {jax.devices()[0]}"
    console().print(f"{_meaning(rows[shown])}\n{where}\n")
    _print_plans(rows)
    _print_photographs(dict(zip(photos, rows[shown], strict=True)), shown)
    console().print(
        "features: cosine of the encoder's final features with the original's; pixels: decided the same.\n"
        "There are no labels in this: it is fidelity to the original model.\n"
        f"Pictures: {output}/\nFor photographs of yours: hourglass compare FILES, hourglass tune --images FOLDER"
    )


def _plans(model: "Model", name: str, size: tuple[int, int]) -> "dict[str, Plan]":
    """The plans by what they are called; the first one is what pictures are of."""
    from hourglass_jax.search.budget import Costs

    costs = Costs(model, size)
    plans: dict[str, Plan] = {
        f"merging, {share:g} of the cost": costs.solve("StagedMerging", share) for share in SHARES
    }
    if name in PRESETS:
        hourglass = model.backbone.fit_plan(PRESETS[name].plan, size, PRESETS[name].size)
    else:
        hourglass = costs.solve("Hourglass", SHARES[0])
    plans["the paper's hourglass"] = hourglass
    plans["a smaller image"] = costs.solve("Downsampling", SHARES[0])
    return plans


def _meaning(figures: "Sequence[Figures]") -> str:
    before, after = (_mean(figures, field) for field in ("latency_ms", "latency_ms_expedited"))
    decided = "" if figures[0].agreement is None else f", and {_mean(figures, 'agreement'):.1%} of the pixels"
    return (
        f"{before / after:.2f} times as fast with the same weights: {before:.0f} to {after:.0f} ms a photograph.\n"
        f"The features keep a cosine of {_mean(figures, 'cosine'):.3f}{decided} stay as they were."
    )


def _print_plans(rows: "dict[str, list[Figures]]") -> None:
    first = next(iter(rows.values()))
    table = Table("plan", "ms", "faster", "GMACs", "features", "worst", "pixels", "worst")
    table.add_row(
        *("original", f"{_mean([each for row in rows.values() for each in row], 'latency_ms'):.0f}", ""),
        f"{first[0].gflops:.1f}",
    )
    for name, figures in rows.items():
        agreements = [each.agreement for each in figures if each.agreement is not None]
        pixels = [f"{sum(agreements) / len(agreements):.1%}", f"{min(agreements):.1%}"] if agreements else ["", ""]
        table.add_row(
            name,
            f"{_mean(figures, 'latency_ms_expedited'):.0f}",
            f"{_mean(figures, 'latency_ms') / _mean(figures, 'latency_ms_expedited'):.2f}",
            f"{figures[0].gflops_expedited:.1f}",
            f"{_mean(figures, 'cosine'):.3f}",
            f"{min(each.cosine for each in figures):.3f}",
            *pixels,
        )
    console().print(table)


def _print_photographs(figures: "dict[str, Figures]", plan: str) -> None:
    table = Table("photograph", "before", "after", "faster", "features", "pixels", title=plan)
    for name, each in figures.items():
        table.add_row(
            name,
            f"{each.latency_ms:.0f} ms",
            f"{each.latency_ms_expedited:.0f} ms",
            f"{each.speedup:.2f}",
            f"{each.cosine:.3f}",
            "" if each.agreement is None else f"{each.agreement:.1%}",
        )
    console().print(table)


def _mean(figures: "Sequence[Figures]", field: str) -> float:
    return sum(getattr(each, field) for each in figures) / len(figures)


def _picture(model: "Model", photo, name: str, plan: "Plan", each: "Comparison"):
    from hourglass_jax.imaging.pictures import plan_picture, resize_photo
    from hourglass_jax.models.base import find_task

    task, figures = find_task(model, None), each.figures
    small = resize_photo(photo, each.size)
    original, expedited = (task.render(small, result).overview for result in (each.result, each.result_expedited))
    lines = [
        f"{figures.speedup:.2f} times as fast",
        f"{figures.latency_ms:.0f} to {figures.latency_ms_expedited:.0f} ms",
        f"{figures.gflops:.1f} to {figures.gflops_expedited:.1f} GMACs",
        f"{figures.tokens:.0f} to {figures.clusters:.0f} tokens",
        f"features: cosine {figures.cosine:.3f}",
    ]
    if figures.agreement is not None:
        lines.append(f"pixels decided the same: {figures.agreement:.1%}")
    return plan_picture(photo, original, expedited, each.difference, each.groups, [name, *lines, describe(plan)])


def _plot(rows: "dict[str, list[Figures]]"):
    places = {
        name: PlotPoint(
            _mean(figures, "latency_ms") / _mean(figures, "latency_ms_expedited"),
            _mean(figures, "cosine"),
            min(each.cosine for each in figures),
        )
        for name, figures in rows.items()
    }
    return tradeoff_plot(places)
