"""Shared parts of plots: figures as arrays, axes of cosines, Pareto fronts."""

import importlib.util
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#000000")
"""Colours of series: blue, vermilion, green, purple, orange, sky blue of Okabe and Ito, grey and black."""
TICKS = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)


class PlotPoint(NamedTuple):
    """A plan in a plot: its cost or speed-up, its mean cosine, and that of the worst photograph."""

    x: float
    cosine: float
    worst: float


def check_matplotlib() -> None:
    """Raises ValueError if matplotlib is not installed, before the long work begins."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('plots need matplotlib, which is not installed: pip install "hourglass-jax[demo]"')


def new_figure(width: float, height: float) -> "Figure":
    """An off-screen figure of this size in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def render_figure(figure: "Figure") -> np.ndarray:
    """Renders a figure to uint8 [rows, columns, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def scale_cosines(axes: "Axes", worst: float, best: float) -> None:
    """Scales the y axis for cosines, with a resolution that increases towards 1."""
    axes.set_yscale("logit", nonpositive="clip")
    low, high = max(0.01, 1 - 1.2 * (1 - worst)), 1 - max(1e-4, (1 - best) / 1.5)
    ticks = [tick for tick in TICKS if low <= tick <= high]
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)


def front(points: Sequence[PlotPoint], *, rising: bool = False) -> list[PlotPoint]:
    """The Pareto front: the points for which no other one has both a better x and a better cosine.

    Args:
        points: points in any order.
        rising: whether a larger x is better, as for a speed-up, or a smaller one, as for a cost.
    """
    best: list[PlotPoint] = []
    for point in sorted(points, key=lambda point: (-point.x if rising else point.x, -point.cosine)):
        if not best or point.cosine > best[-1].cosine:
            best.append(point)
    return sorted(best)


def pareto_plot(
    panels: Mapping[str, Mapping[str, Sequence[PlotPoint]]], marked: Mapping[str, PlotPoint] | None = None
) -> np.ndarray:
    """Fidelity over cost: every plan a dot, every method's Pareto front a line, worst photographs as triangles.

    Args:
        panels: name of the x axis -> method -> its plans. If the name begins with "speed-up", a larger x is better.
        marked: name of the x axis -> the plan to mark.

    Returns:
        uint8 [rows, columns, 3].
    """
    figure = new_figure(7 * len(panels), 5.4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, series) in zip(grid, panels.items(), strict=True):
        points = [point for plans in series.values() for point in plans]
        for index, (method, plans) in enumerate(series.items()):
            color = COLORS[index % len(COLORS)]
            best = front(plans, rising=name.startswith("speed-up"))
            axes.plot([point.x for point in plans], [point.cosine for point in plans], "o", color=color, alpha=0.35)
            axes.plot(
                [point.x for point in best], [point.cosine for point in best], "o-", color=color, label=method
            )
            axes.plot(
                *([point.x for point in best], [point.worst for point in best], "v:"),
                color=color,
                markersize=5,
                alpha=0.6,
            )
        if marked:
            point = marked[name]
            axes.plot(point.x, point.cosine, "*", color="black", markersize=14, zorder=5, label="the plan")
        axes.set_xlim(*_padded_limits(0.1, [point.x for point in points]))
        scale_cosines(axes, min(point.worst for point in points), max(point.cosine for point in points))
        axes.set_xlabel(name)
        axes.set_ylabel("cosine of the final features, logit; triangles: worst photograph")
        axes.grid(alpha=0.3)
    handles, labels = grid[0].get_legend_handles_labels()
    columns = min(len(labels), 4 * len(panels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return render_figure(figure)


def _padded_limits(width: float, values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis with a margin around its values, at least `width` apart."""
    low, high = min(values), max(values)
    room = max(0.05 * (high - low), (width - (high - low)) / 2)
    return low - room, high + room


def tradeoff_plot(points: Mapping[str, PlotPoint]) -> np.ndarray:
    """Fidelity over speed: every plan a bar from its worst photograph to the mean, with its name beside it.

    Args:
        points: plan -> its speed-up and cosines.

    Returns:
        uint8 [rows, columns, 3].
    """
    figure = new_figure(8, 4.5)
    axes = figure.subplots()
    speeds = [point.x for point in points.values()]
    middle = (min(speeds) + max(speeds)) / 2
    for (name, point), color in zip(points.items(), itertools.cycle(COLORS)):
        axes.plot([point.x, point.x], [point.worst, point.cosine], color=color, linewidth=2, alpha=0.4)
        axes.plot(point.x, point.worst, "v", color=color, markersize=7, alpha=0.6)
        axes.plot(point.x, point.cosine, "o", color=color, markersize=10)
        on_right = point.x <= middle
        axes.annotate(
            *(name, (point.x, point.cosine)),
            xytext=(12 if on_right else -12, 0),
            textcoords="offset points",
            ha="left" if on_right else "right",
            va="center",
            color=color,
        )
    axes.set_xlim(*_padded_limits(0.3, [1.0, *speeds]))
    scale_cosines(axes, min(each.worst for each in points.values()), max(each.cosine for each in points.values()))
    axes.set_xlabel("times as fast as the original, measured")
    axes.set_ylabel("cosine of the features")
    axes.set_title("dots: mean of the photographs, triangles: the worst one", fontsize=10, color="0.4")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return render_figure(figure)
