"""The command `hourglass ablate`: the studies as tables and as one picture of small plots."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from rich.table import Table
from tqdm import tqdm

from hourglass_jax.analysis.plots import COLORS, check_matplotlib, new_figure, render_figure, scale_cosines
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
    console,
    describe,
    format_size,
    hide_progress,
    interruptible,
    load_model,
    photos_of,
    print_json,
    weights_of,
)

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes

    from hourglass_jax.plans.hourglass import Hourglass
    from hourglass_jax.search.ablation import Measurement, Point, Study

COST = "#8a8a8a"

Name = Literal[
    "beta",
    "alpha",
    "clusters",
    "representative",
    "window",
    "iterations",
    "temperature",
    "neighbors",
    "layers",
    "downsampling",
]
Points = Sequence[tuple["Point", "Measurement"]]


def ablate(
    photos: Photos = (),
    output: Output = Path("ablation"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(iterations=5, representative="mean"),
    reading: Reading = ReadingOptions(),
    studies: tuple[Name, ...] = get_args(Name),
) -> None:
    """Changes one setting of a plan at a time, and measures fidelity and GFLOPs.

    Prints a table for each study and plots all of them in one picture. Fidelity is the cosine similarity of the
    final features to those of the original model, on the largest centred square of each photograph; by default
    those of `hourglass demo`. Measurements are kept: the same command resumes an interrupted run.

    Example: hourglass ablate -o ablation/ --studies clusters window

    Args:
        photos: Image files.
        output: Folder for ablation.png and ablation.jsonl, to which measurements are appended.
        studies: Studies to run; by default all of them.
    """
    from hourglass_jax.imaging.images import read_image, write_image
    from hourglass_jax.imaging.photographs import photographs
    from hourglass_jax.search.ablation import Ablation

    check_matplotlib()
    if not studies:
        raise ValueError("expected at least one study, got none")
    check_folder(output)
    files = photos_of(photos, reading) if photos else []
    paths = {photo.name: photo.path for photo in files} or photographs()
    images = {name: read_image(path) for name, path in paths.items()}
    loaded, preprocessing, chosen = load_model(model, plan, hourglass_for="an ablation is")
    ablation = Ablation(loaded, images, chosen, weights=weights_of(model), preprocessing=preprocessing)
    measured: dict[str, list[tuple[Point, Measurement]]] = {
        name: [] for name in ablation.studies if name in studies
    }
    picture = output / "ablation.png"
    total = sum(len(ablation.studies[name].points) for name in measured)
    with interruptible(output, "measured"), tqdm(total=total, desc="points", disable=hide_progress()) as bar:
        for name, point, figures in ablation.run(output / "ablation.jsonl", studies):
            measured[name].append((point, figures))
            bar.update()
    write_image(picture, plots(ablation.studies, measured, ablation.plan))
    if model.json:
        print_json(
            {
                "model": model.model,
                "size": ablation.size,
                "photographs": list(images),
                "plan": dataclasses.asdict(ablation.plan),
                "studies": {
                    name: [
                        {
                            "series": point.series,
                            "label": point.label,
                            "base": _is_base(point, ablation.plan),
                            **dataclasses.asdict(figures),
                        }
                        for point, figures in points
                    ]
                    for name, points in measured.items()
                },
                "picture": str(picture),
            }
        )
        return
    for name, points in measured.items():
        console().print(_table(name, ablation.studies[name], points, ablation.plan))
    console().print(
        f"{len(images)} photographs at {format_size((ablation.size,) * 2)}; "
        f"* is the plan, {describe(ablation.plan)}. "
        "Cosines are of the encoder's final features with the original's, unless a block is named. GFLOPs are 10^9 "
        f"multiply-accumulates of the encoder. Picture: {picture}"
    )


def plots(studies: Mapping[str, "Study"], measured: Mapping[str, Points], plan: "Hourglass") -> "np.ndarray":
    """Plots all studies in one picture, two in a row.

    Args:
        studies: name -> study.
        measured: name -> points and their measurements.
        plan: the plan to mark in every plot.

    Returns:
        uint8 [rows, columns, 3].
    """
    rows = -(-len(measured) // 2)
    figure = new_figure(13, 4.4 * rows)
    grid = figure.subplots(rows, 2, squeeze=False)
    for axes, (name, points) in zip(grid.flat, measured.items(), strict=False):
        draw = _draw_layers if studies[name].axis is None else _draw_curves
        draw(axes, studies[name], points, plan)
        axes.set_title(studies[name].title, fontsize=11, fontweight="bold")
    for axes in grid.flat[len(measured) :]:
        axes.set_axis_off()
    return render_figure(figure)


def _draw_curves(axes: "Axes", study: "Study", points: Points, plan: "Hourglass") -> None:
    """Plots mean and worst cosine over the study's axis, and the GFLOPs on the right unless they are that axis."""
    names = dict.fromkeys(point.series for point, _ in points)
    by_series = {name: [(point, figures) for point, figures in points if point.series == name] for name in names}
    axis = study.axis or ""
    is_cost = axis.startswith("GFLOPs")
    if not is_cost:
        right = axes.twinx()
        right.set_ylim(0, 1.05)
        right.set_ylabel("GFLOPs, share of the original", color=COST)
        right.tick_params(axis="y", colors=COST)
        axes.set_zorder(right.get_zorder() + 1)
        axes.patch.set_visible(False)
    for color, (series, rows) in zip(COLORS, by_series.items(), strict=False):
        x = [point.x for point, _ in rows]
        prefix = f"{series}: " if series else ""
        axes.plot(x, [figures.cosine for _, figures in rows], "o-", color=color, label=f"{prefix}mean")
        axes.plot(
            *(x, [figures.worst for _, figures in rows], "v:"),
            color=color,
            markersize=5,
            alpha=0.7,
            label=f"{prefix}worst",
        )
        at_block = [(point.x, figures.cosine_at_block) for point, figures in rows]
        at_block = [(x, cosine) for x, cosine in at_block if cosine is not None]
        if at_block:
            axes.plot(*zip(*at_block, strict=True), "s--", color=COLORS[1], label="mean after block alpha + beta")
        if not is_cost:
            right.plot(x, [figures.gflops_ratio for _, figures in rows], ".-", color=COST, linewidth=1)
    base = [(point.x, figures.cosine) for point, figures in points if _is_base(point, plan)][:1]
    if base:
        axes.plot(*zip(*base, strict=True), "*", color="black", markersize=13, zorder=5, label="the plan")
    if not is_cost:
        axes.plot([], [], ".-", color=COST, linewidth=1, label="GFLOPs (right)")
    if study.logarithmic:
        axes.set_xscale("log")
    if not is_cost:
        first = [point.x for point, _ in next(iter(by_series.values()))]
        axes.set_xticks(first, [f"{x:g}" for x in first])
        axes.set_xticks([], minor=True)
    worst, best = min(figures.worst for _, figures in points), max(figures.cosine for _, figures in points)
    if worst < 0.9:
        scale_cosines(axes, worst, best)
    else:
        low, high = axes.get_ylim()
        axes.set_ylim(min(low, high - 0.03), high)
    axes.set_xlabel(axis)
    axes.set_ylabel(f"cosine of the final features{', logit' if worst < 0.9 else ''}")
    axes.grid(alpha=0.3)
    _add_legend(axes)


def _draw_layers(axes: "Axes", study: "Study", points: Points, plan: "Hourglass") -> None:
    """Plots a line from the worst photograph to the mean for each point, with cosine and GFLOPs as text."""
    series = list(dict.fromkeys(point.series for point, _ in points))
    for point, figures in points:
        index = series.index(point.series)
        y = point.x + (index - (len(series) - 1) / 2) * 0.36
        axes.plot([figures.worst, figures.cosine], [y, y], "-", color=COLORS[index], linewidth=3, alpha=0.35)
        axes.plot(figures.worst, y, "v", color=COLORS[index], markersize=6)
        axes.plot(figures.cosine, y, "o", color=COLORS[index], markersize=8)
        mark = " *" if _is_base(point, plan) else ""
        axes.text(1.005, y, f"{figures.cosine:.3f}, {figures.gflops_ratio:.2f}{mark}", va="center", fontsize=8)
    for color, name in zip(COLORS, series, strict=False):
        axes.plot([], [], "o", color=color, label=f"{name} clusters: mean")
    axes.plot([], [], "v", color="black", label="worst")
    labels = {point.x: point.label.replace(", ", ",\n") for point, _ in points}
    axes.set_yticks(list(labels), list(labels.values()))
    axes.set_ylim(max(labels) + 0.5, -0.5)
    axes.set_xlim(right=1)
    axes.set_xlabel("cosine of the final features; right: mean, share of the GFLOPs, * the plan")
    axes.grid(alpha=0.3, axis="x")
    _add_legend(axes)


def _add_legend(axes: "Axes") -> None:
    axes.legend(fontsize=7.5, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)


def _table(name: str, study: "Study", points: Points, plan: "Hourglass") -> Table:
    with_series = any(point.series for point, _ in points)
    with_block = any(figures.cosine_at_block is not None for _, figures in points)
    table = Table(
        *([""] if with_series else []),
        *("", "cosine", "worst photograph"),
        *(["cosine at this block"] if with_block else []),
        *("GFLOPs", "of the original"),
        title=f"{name}: {study.title}",
    )
    for point, figures in points:
        table.add_row(
            *([point.series] if with_series else []),
            point.label + (" *" if _is_base(point, plan) else ""),
            f"{figures.cosine:.4f}",
            f"{figures.worst:.4f}",
            *([f"{figures.cosine_at_block:.4f}"] if with_block else []),
            f"{figures.gflops:.2f}",
            f"{figures.gflops_ratio:.3f}",
        )
    return table


def _is_base(point: "Point", plan: "Hourglass") -> bool:
    return point.plan == plan
