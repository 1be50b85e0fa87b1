"""`hourglass compare` with --method: several plans side by side."""

import dataclasses
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from rich.table import Table
from tqdm import tqdm

from hourglass_jax.analysis.plots import Place, check_matplotlib, pareto_plot
from hourglass_jax.options import (
    ModelOptions,
    PlanOptions,
    by,
    console,
    describe,
    load_model,
    naming,
    print_json,
    quiet,
    square_input,
)
from hourglass_jax.plans import plan_fields

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.analysis.comparison import Comparison
    from hourglass_jax.tokens import TokenReduction


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan that is compared, and what came out of it.

    Attributes:
        method: of the plan, or "the plan given".
        plan: as it ran.
        budget: the share that it was made for; None for the plan given.
        share: of the encoder's multiply-accumulates that it costs.
        gflops: 10^9 multiply-accumulates of the whole model.
        latency_ms: mean over the photographs of the medians.
        speedup: of the mean latencies.
        cosine, worst: of the final features with the original's: mean of the photographs, and the worst one.
        mae, agreement: of the results, means of the photographs.
        cosines: of every photograph.
    """

    method: str
    plan: "TokenReduction"
    budget: float | None
    share: float
    gflops: float
    latency_ms: float
    speedup: float
    cosine: float
    worst: float
    mae: float
    agreement: float | None
    cosines: dict[str, float]


def compare_methods(
    photos: Sequence[Path],
    output: Path,
    model: ModelOptions,
    plan: PlanOptions,
    methods: Sequence[str],
    budgets: Sequence[float],
    repeats: int,
) -> None:
    """Prints a table of the methods at every budget, draws a plot, and a picture of each photograph and budget."""
    import numpy as np

    from hourglass_jax.analysis.budget import Costs
    from hourglass_jax.analysis.comparison import compare
    from hourglass_jax.inference.images import center_crop_square, read_image, write_image

    check_matplotlib()
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")
    squares = {photo.stem: center_crop_square(read_image(photo)) for photo in photos}
    is_given = plan != PlanOptions()
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=is_given or not budgets)
    preprocessing = square_input(loaded, preprocessing)
    size = preprocessing.shape
    prepared = []
    for name, square in squares.items():
        with naming(name):
            prepared.append(preprocessing(square))
    costs = Costs(loaded, size)
    if chosen is not None:
        loaded.backbone.check_plan(chosen, size)
    budgets = list(dict.fromkeys(budgets)) or [costs(chosen)]
    plans = [("the plan given", None, chosen)] if is_given else []
    with tqdm(total=len(methods) * len(budgets), desc="plans", disable=quiet()) as bar:
        for budget in budgets:
            for method in dict.fromkeys(methods):
                plans.append((method, budget, costs.solve(method, budget)))
                bar.update()
    found: list[list[Comparison]] = []
    with tqdm(total=len(squares) * (1 + len(plans)) * (repeats + 1), desc="runs", disable=quiet()) as bar:
        compared = compare(loaded, [each for *_, each in plans], prepared, repeats=repeats, on_call=bar.update)
        for name, square, results in zip(squares, squares.values(), compared, strict=True):
            found.append(results)
            for budget in budgets:
                shown = [
                    (f"{method}\n{cost:.2f} of the encoder", result)
                    for (method, each, chosen), result in zip(plans, results, strict=True)
                    if each in (None, budget)
                    for cost in [costs(chosen)]
                ]
                picture = _picture(loaded, square, shown)
                write_image(output / _picture_name(name, budget, budgets), picture)
    rows = [
        _row(method, budget, plan, costs(plan), dict(zip(squares, results, strict=True)))
        for (method, budget, plan), results in zip(plans, zip(*found, strict=True), strict=True)
    ]
    original = {
        "gflops": found[0][0].figures.gflops,
        "latency_ms": float(np.mean([results[0].figures.latency_ms for results in found])),
    }
    write_image(output / "methods.png", _plot(rows))
    pictures = [str(output / _picture_name(name, budget, budgets)) for name in squares for budget in budgets]
    if model.json:
        print_json(
            {
                "model": model.model,
                "size": size,
                "photographs": list(squares),
                "original": original,
                "methods": [
                    {
                        **{field.name: getattr(row, field.name) for field in dataclasses.fields(row)},
                        "plan": plan_fields(row.plan),
                    }
                    for row in rows
                ],
                "plot": str(output / "methods.png"),
                "pictures": pictures,
            }
        )
        return
    table = Table(
        *("", "budget", "encoder", "GFLOPs", "ms", "speed-up", "cosine", "worst", "MAE", "agreement"),
        title=f"{len(squares)} photographs at {by(size)}",
    )
    table.add_row("original", "", "1.000", f"{original['gflops']:.1f}", f"{original['latency_ms']:.0f}", "1.00")
    for row in rows:
        table.add_row(
            row.method,
            "" if row.budget is None else f"{row.budget:.2f}",
            f"{row.share:.3f}",
            f"{row.gflops:.1f}",
            f"{row.latency_ms:.0f}",
            f"{row.speedup:.2f}",
            f"{row.cosine:.4f}",
            f"{row.worst:.4f}",
            f"{row.mae:.4f}",
            "" if row.agreement is None else f"{row.agreement:.4f}",
        )
    console().print(table)
    for row in rows:
        console().print(f"{row.method}: {describe(row.plan)}")
    console().print(
        "GFLOPs are 10^9 multiply-accumulates of the whole model; the encoder's are a share of what it costs "
        "without a plan. Cosines are of the encoder's final features with the original's. "
        f"Plot and pictures: {output}/"
    )


def _row(
    method: str,
    budget: float | None,
    plan: "TokenReduction",
    share: float,
    results: dict[str, "Comparison"],
) -> Row:
    import numpy as np

    figures = [each.figures for each in results.values()]

    def mean(field: str) -> float:
        return float(np.mean([getattr(each, field) for each in figures]))

    cosines = {name: each.figures.cosine for name, each in results.items()}
    return Row(
        method=method,
        plan=plan,
        budget=budget,
        share=share,
        gflops=figures[0].gflops_expedited,
        latency_ms=mean("latency_ms_expedited"),
        speedup=mean("latency_ms") / mean("latency_ms_expedited"),
        cosine=mean("cosine"),
        worst=min(cosines.values()),
        mae=mean("mae"),
        agreement=None if figures[0].agreement is None else mean("agreement"),
        cosines=cosines,
    )


def _picture_name(name: str, budget: float, budgets: Sequence[float]) -> str:
    return f"{name}_methods.png" if len(budgets) == 1 else f"{name}_methods_{budget:g}.png"


def _picture(model, photo: "np.ndarray", shown: Sequence[tuple[str, "Comparison"]]) -> "np.ndarray":
    """A column for every plan: what it made one, the model's result under it, and what differs."""
    import numpy as np

    from hourglass_jax.inference.pictures import colorize, group_overlay, sheet, stretched

    photo = np.asarray(Image.fromarray(photo).resize((HEIGHT, HEIGHT), Image.Resampling.BICUBIC))
    size = photo.shape[:2]

    def drawn(result: np.ndarray) -> np.ndarray:
        return [*model.pictures(photo, stretched(result, size)).values()][-1]

    tokens = shown[0][1].groups.size
    groups = [("Photograph", photo)]
    results = [("Original\nall tokens", drawn(shown[0][1].result))]
    differences = [("Difference\nblack: 0, lightest: 0.25 or more", np.full((*size, 3), 255, np.uint8))]
    is_map = shown[0][1].difference.ndim > 0
    for title, each in shown:
        left = len(np.unique(each.groups))
        groups.append((f"{title}, {left} of {tokens} tokens", group_overlay(photo, each.groups)))
        results.append((f"speed-up {each.figures.speedup:.2f}", drawn(each.result_expedited)))
        if is_map:
            shade = colorize(stretched(np.asarray(each.difference, np.float32), size) / 0.25)
            differences.append((f"cosine {each.figures.cosine:.4f}", shade))
    return sheet([groups, results, differences] if is_map else [groups, results], height=HEIGHT)


HEIGHT = 296
"""Of the pictures in a sheet, in pixels."""


def _plot(rows: Sequence[Row]) -> "np.ndarray":
    panels = defaultdict(lambda: defaultdict(list))
    for row in rows:
        panels["multiply-accumulates of the encoder, share"][row.method].append(
            Place(row.share, row.cosine, row.worst)
        )
        panels["speed-up of the whole model, measured"][row.method].append(
            Place(row.speedup, row.cosine, row.worst)
        )
    return pareto_plot(panels)
