"""What plots share: how they are made into pictures, and axes of cosines."""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a7a7a", "#000000")
"""Of series: blue, vermilion, green, purple, orange, sky blue of Okabe and Ito, grey and black."""
TICKS = (0.05, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999)


class Place(NamedTuple):
    """A plan in a plot: what it costs or gains, and the cosines of the mean and the worst photograph."""

    x: float
    cosine: float
    worst: float


def check_matplotlib() -> None:
    """Raises ValueError if there is no matplotlib, before the long work."""
    if importlib.util.find_spec("matplotlib") is None:
        raise ValueError('plots need matplotlib, which is not installed: pip install "hourglass-jax[demo]"')


def new_figure(width: float, height: float) -> "Figure":
    """A figure of so many inches that no window shows."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def render_figure(figure: "Figure") -> np.ndarray:
    """The picture of a figure, uint8 [rows, columns, 3]."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def scale_cosines(axes: "Axes", worst: float, best: float) -> None:
    """Makes the y axis one of cosines, spread out towards 1."""
    axes.set_yscale("logit", nonpositive="clip")
    low, high = max(0.01, 1 - 1.2 * (1 - worst)), 1 - max(1e-4, (1 - best) / 1.5)
    ticks = [each for each in TICKS if low <= each <= high]
    axes.set_yticks(ticks, [f"{each:g}" for each in ticks])
    axes.set_yticks([], minor=True)
    axes.set_ylim(low, high)


def front(places: Sequence[Place], *, rising: bool = False) -> list[Place]:
    """The Pareto-optimal places by x: none has a better x and a better cosine.

    Args:
        places: in any order.
        rising: whether more of x is better, as of a speed-up; of a cost less is.
    """
    best: list[Place] = []
    for place in sorted(places, key=lambda each: (-each.x if rising else each.x, -each.cosine)):
        if not best or place.cosine > best[-1].cosine:
            best.append(place)
    return sorted(best)


def pareto_plot(
    panels: Mapping[str, Mapping[str, Sequence[Place]]], marked: Mapping[str, Place] | None = None
) -> np.ndarray:
    """Fidelity over cost: every plan a dot, every method's Pareto front a line, worst photographs as triangles.

    Args:
        panels: name of the x axis -> method -> its plans. Of a speed-up, by that name, more is better.
        marked: name of the x axis -> the plan that is marked there.

    Returns:
        uint8 [rows, columns, 3].
    """
    figure = new_figure(7 * len(panels), 5.4)
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (name, series) in zip(grid, panels.items(), strict=True):
        places = [each for plans in series.values() for each in plans]
        for index, (method, plans) in enumerate(series.items()):
            color = COLORS[index % len(COLORS)]
            best = front(plans, rising=name.startswith("speed-up"))
            axes.plot([each.x for each in plans], [each.cosine for each in plans], "o", color=color, alpha=0.35)
            axes.plot([each.x for each in best], [each.cosine for each in best], "o-", color=color, label=method)
            axes.plot(
                *([each.x for each in best], [each.worst for each in best], "v:"),
                color=color,
                markersize=5,
                alpha=0.6,
            )
        if marked:
            place = marked[name]
            axes.plot(place.x, place.cosine, "*", color="black", markersize=14, zorder=5, label="the plan")
        axes.set_xlim(*_at_least(0.1, [each.x for each in places]))
        scale_cosines(axes, min(each.worst for each in places), max(each.cosine for each in places))
        axes.set_xlabel(name)
        axes.set_ylabel("cosine of the final features, logit; triangles: worst photograph")
        axes.grid(alpha=0.3)
    handles, labels = grid[0].get_legend_handles_labels()
    columns = min(len(labels), 4 * len(panels))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False)
    return render_figure(figure)


def _at_least(width: float, values: Sequence[float]) -> tuple[float, float]:
    """Limits of an axis with room around its values, and not narrower than a width."""
    low, high = min(values), max(values)
    room = max(0.05 * (high - low), (width - (high - low)) / 2)
    return low - room, high + room
