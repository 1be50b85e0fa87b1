"""`hourglass compare` with --method: several plans side by side."""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from tqdm import tqdm

from hourglass_jax.analysis.plots import PlotPoint, check_matplotlib, pareto_plot
from hourglass_jax.cli.options import (
    ModelOptions,
    PlanOptions,
    check_no_photo,
    console,
    describe,
    error_context,
    format_size,
    hide_progress,
    load_model,
    print_json,
)
from hourglass_jax.cli.plan_options import is_given
from hourglass_jax.plans.files import plan_fields

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.analysis.comparison import Comparison
    from hourglass_jax.models.base import Model
    from hourglass_jax.plans.base import Plan
    from hourglass_jax.tasks.base import Task

HEIGHT = 296
"""Height of the pictures in a sheet, in pixels."""


class Entry(NamedTuple):
    """A plan to compare.

    Attributes:
        method: name of the method, or "the plan given".
        plan: the plan.
        budget: the share that the plan was solved for; None for the plan given.
        share: its cost as a share of the encoder's multiply-accumulates.
    """

    method: str
    plan: "Plan"
    budget: float | None
    share: float


class PlanResult(NamedTuple):
    """The measurements of a plan.

    Attributes:
        gflops: 10^9 multiply-accumulates of the whole model.
        latency_ms: median latency, mean over the photographs.
        speedup: ratio of the mean latencies.
        cosine, worst: cosine similarity of the final features to the original ones, mean and worst photograph.
        mae, agreement: see `comparison.Figures`, mean over the photographs.
        cosines: photograph -> cosine.
    """

    gflops: float
    latency_ms: float
    speedup: float
    cosine: float
    worst: float
    mae: float
    agreement: float | None
    cosines: dict[str, float]


def compare_methods(
    photos: Mapping[str, Path],
    output: Path,
    model: ModelOptions,
    plan: PlanOptions,
    methods: Sequence[str],
    budgets: Sequence[float],
    task: str | None,
    repeats: int,
) -> None:
    """Compares methods at every budget: a table, a plot, and a picture for each photograph and budget."""
    import numpy as np

    from hourglass_jax.analysis.comparison import compare
    from hourglass_jax.imaging.images import center_crop_square, read_image, write_image
    from hourglass_jax.models.base import find_task

    check_matplotlib()
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    squares = {name: center_crop_square(read_image(path)) for name, path in photos.items()}
    plan_given = is_given(plan)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=plan_given or not budgets)
    preprocessing = preprocessing.at(preprocessing.side).whole_patches(loaded.backbone.stride, loaded.multiple)
    prepared = []
    for name, square in squares.items():
        with error_context(name):
            prepared.append(preprocessing(square))
    entries, left_out = _entries(loaded, preprocessing.shape, chosen, plan_given, methods, budgets)
    solved = list(dict.fromkeys(entry.budget for entry in entries if entry.budget is not None))
    ends = {budget: "methods.png" if len(solved) == 1 else f"methods_{budget:g}.png" for budget in solved}
    plot = output / "methods.png"
    written = (output / f"{name}_{end}" for name in photos for end in ends.values())
    check_no_photo((plot, *written), photos.values())

    found, pictures = [], []
    with tqdm(total=len(squares) * (1 + len(entries)) * (repeats + 1), desc="runs", disable=hide_progress()) as bar:
        plans = [each.plan for each in entries]
        compared = compare(loaded, plans, prepared, task=task, repeats=repeats, on_call=bar.update)
        for (name, square), results in zip(squares.items(), compared, strict=True):
            found.append(results)
            for budget in solved:
                pairs = zip(entries, results, strict=True)
                shown = [(entry, result) for entry, result in pairs if entry.budget in (None, budget)]
                pictures.append(str(output / f"{name}_{ends[budget]}"))
                write_image(pictures[-1], _picture(find_task(loaded, task), square, shown))
    rows = [_row(dict(zip(squares, results, strict=True))) for results in zip(*found, strict=True)]
    write_image(plot, _plot(entries, rows))
    gflops = found[0][0].figures.gflops
    latency = np.mean([results[0].figures.latency_ms for results in found])
    if model.json:
        print_json(
            {
                "model": model.model,
                "size": preprocessing.shape,
                "photographs": list(squares),
                "original": {"gflops": gflops, "latency_ms": float(latency)},
                "methods": [
                    {**entry._asdict(), "plan": plan_fields(entry.plan), **row._asdict()}
                    for entry, row in zip(entries, rows, strict=True)
                ],
                "left_out": left_out,
                "plot": str(plot),
                "pictures": pictures,
            }
        )
        return
    count = f"{len(squares)} photograph{'s' if len(squares) > 1 else ''} at {format_size(preprocessing.shape)}"
    table = Table("", "encoder", "GMACs", "ms", "faster", "features", "worst", "MAE", "pixels", title=count)
    table.add_row("original", "1.000", f"{gflops:.1f}", f"{latency:.0f}")
    for each, row in zip(entries, rows, strict=True):
        table.add_row(
            each.method,
            f"{each.share:.3f}",
            f"{row.gflops:.1f}",
            f"{row.latency_ms:.0f}",
            f"{row.speedup:.2f}",
            f"{row.cosine:.4f}",
            f"{row.worst:.4f}",
            f"{row.mae:.4f}",
            "" if row.agreement is None else f"{row.agreement:.1%}",
        )
    console().print(table)
    for entry in entries:
        console().print(f"{entry.method}: {describe(entry.plan)}")
    for problem in left_out:
        console().print(f"left out: {problem}")
    console().print(
        "GMACs are 10^9 multiply-accumulates of the whole model, encoder: share of what it costs without "
        "a plan. features: cosine of the encoder's final features with the original's, mean and worst photograph; "
        f"pixels: decided the same. Plot and pictures: {output}/"
    )


def _entries(
    model: "Model",
    size: tuple[int, int],
    chosen: "Plan | None",
    plan_given: bool,
    methods: Sequence[str],
    budgets: Sequence[float],
) -> tuple[list[Entry], list[str]]:
    """The plan given, every method's plan at every budget, and why methods are left out.

    Without budgets, the cost of the chosen plan is the budget.

    Raises:
        ValueError: none of the methods has a plan.
    """
    from hourglass_jax.search.budget import Costs

    if chosen is not None:
        model.backbone.check_plan(chosen, size)
    costs = Costs(model, size)
    entries, left_out = [], []
    shares = budgets if budgets or chosen is None else [costs(chosen)]
    tasks = list(itertools.product(dict.fromkeys(shares), dict.fromkeys(methods)))
    with tqdm(total=len(tasks), desc="plans", disable=hide_progress()) as bar:
        for budget, method in tasks:
            try:
                plan = costs.solve(method, budget)
                entries.append(Entry(method, plan, budget, costs(plan)))
            except ValueError as problem:
                left_out.append(str(problem))
            bar.update()
    if not entries:
        raise ValueError("; ".join(dict.fromkeys(left_out)))
    if plan_given and chosen is not None:
        entries.insert(0, Entry("the plan given", chosen, None, costs(chosen)))
    return entries, left_out


def _row(results: dict[str, "Comparison"]) -> PlanResult:
    """Summarizes the comparisons of one plan, by photograph."""
    import numpy as np

    figures = [comparison.figures for comparison in results.values()]

    def mean(field: str) -> float:
        return float(np.mean([getattr(row, field) for row in figures]))

    cosines = {name: comparison.figures.cosine for name, comparison in results.items()}
    return PlanResult(
        gflops=figures[0].gflops_expedited,
        latency_ms=mean("latency_ms_expedited"),
        speedup=mean("latency_ms") / mean("latency_ms_expedited"),
        cosine=mean("cosine"),
        worst=min(cosines.values()),
        mae=mean("mae"),
        agreement=None if figures[0].agreement is None else mean("agreement"),
        cosines=cosines,
    )


def _picture(task: "Task", photo: "np.ndarray", shown: Sequence[tuple[Entry, "Comparison"]]) -> "np.ndarray":
    """A column for every plan: what it made one, the model's result under it, and what differs."""
    import numpy as np

    from hourglass_jax.imaging.pictures import colorize, group_overlay, resize_photo, sheet, stretch

    _, first = shown[0]
    original = resize_photo(photo, first.size)
    photo = resize_photo(photo, (HEIGHT, HEIGHT))
    size = photo.shape[:2]

    def draw(result: object) -> np.ndarray:
        return task.render(original, result).overview

    groups = [("Photograph", photo)]
    results = [("Original\nall tokens", draw(first.result))]
    differences = [("Difference\nblack: 0, lightest: 0.25 or more", np.full((*size, 3), 255, np.uint8))]
    for entry, comparison in shown:
        figures = comparison.figures
        tokens = f"{len(np.unique(comparison.groups))} of {comparison.groups.size} tokens"
        title = f"{entry.method}\n{entry.share:.2f} of the encoder, {tokens}"
        groups.append((title, group_overlay(photo, comparison.groups)))
        results.append((f"speed-up {figures.speedup:.2f}", draw(comparison.result_expedited)))
        if comparison.difference.ndim:
            shade = colorize(stretch(np.asarray(comparison.difference, np.float32), size) / 0.25)
            differences.append((f"cosine {figures.cosine:.4f}", shade))
    return sheet([groups, results, differences] if first.difference.ndim else [groups, results], height=HEIGHT)


def _plot(entries: Sequence[Entry], rows: Sequence[PlanResult]) -> "np.ndarray":
    panels = defaultdict(lambda: defaultdict(list))
    for entry, row in zip(entries, rows, strict=True):
        for axis, x in (
            ("multiply-accumulates of the encoder, share", entry.share),
            ("speed-up of the whole model, measured", row.speedup),
        ):
            panels[axis][entry.method].append(PlotPoint(x, row.cosine, row.worst))
    return pareto_plot(panels)
