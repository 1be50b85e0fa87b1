"""The command `hourglass bench`."""

from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    PlanOptions,
    Plans,
    console,
    describe,
    format_size,
    hide_progress,
    load_model,
    print_json,
)
from hourglass_jax.plans.files import plan_fields


def bench(
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    batch: int = 1,
    repeats: int = 10,
) -> None:
    """Measures the latency with and without a plan, on noise of the model's input size.

    Example: hourglass bench --alpha 4 --clusters 26 26 --size 518

    Args:
        batch: Number of images per call.
        repeats: Number of timed runs of each model, alternating; the median counts.
    """
    import jax
    import numpy as np

    from hourglass_jax.analysis.flops import count_macs
    from hourglass_jax.analysis.latency import measure
    from hourglass_jax.io.memory import check_memory

    if batch < 1 or repeats < 1:
        raise ValueError(f"batch and repeats must be at least 1, got {batch} and {repeats}")
    loaded, preprocessing, chosen = load_model(model, plan)
    fast = hj.expedite(loaded, chosen)
    size = preprocessing.shape
    macs = [count_macs(model, size)["total"] for model in (loaded, fast)]
    run = jax.jit(lambda model, images: model(images))
    images = jax.numpy.asarray(np.random.default_rng(0).standard_normal((batch, *size, 3)), "float32")
    for each in (loaded, fast):
        check_memory(run, each, images)
    with tqdm(total=2 * (repeats + 1), desc="runs", disable=hide_progress()) as bar:
        times = measure(
            [lambda: run(loaded, images), lambda: run(fast, images)], repeats=repeats, on_call=bar.update
        )
    rows = {
        name: {
            "gflops": cost / 1e9,
            "first_s": latency.first,
            "latency_ms": 1e3 * latency.median,
            "fastest_ms": 1e3 * min(latency.calls),
            "images_per_s": batch / latency.median,
        }
        for name, latency, cost in zip(("original", "expedited"), times, macs, strict=True)
    }
    ratios = {"speedup": times[0].median / times[1].median, "flops_ratio": macs[0] / macs[1]}
    if model.json:
        print_json({"size": size, "batch": batch, "plan": plan_fields(chosen), **rows, **ratios})
        return
    table = Table("", *rows, title=f"{format_size(size)}, batch {batch}, {describe(chosen)}, {jax.devices()[0]}")
    for figure in rows["original"]:
        table.add_row(figure, *(f"{row[figure]:.2f}" for row in rows.values()))
    console().print(table)
    console().print(f"speed-up {ratios['speedup']:.2f}, of the GFLOPs {ratios['flops_ratio']:.2f}")
