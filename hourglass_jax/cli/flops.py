"""The command `hourglass flops`."""

from rich.table import Table

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    PlanOptions,
    Plans,
    console,
    describe,
    format_size,
    load_model,
    print_json,
)
from hourglass_jax.plans.files import plan_fields


def flops(model: Models = ModelOptions(), plan: Plans = PlanOptions()) -> None:
    """Counts the executed multiply-accumulates by part, for an image of the model's input size.

    Example: hourglass flops --alpha 4 --clusters 26 26 --size 518
    """
    from hourglass_jax.analysis.flops import count_macs

    loaded, preprocessing, chosen = load_model(model, plan)
    size = preprocessing.shape
    original, expedited = count_macs(loaded, size), count_macs(hj.expedite(loaded, chosen), size)
    if model.json:
        print_json({"size": size, "plan": plan_fields(chosen), "original": original, "expedited": expedited})
        return
    table = Table(
        "part", "original", "expedited", "ratio", title=f"GFLOPs at {format_size(size)}, {describe(chosen)}"
    )
    for part, macs in original.items():
        ratio = f"{expedited[part] / macs:.3f}" if macs else ""
        table.add_row(part, f"{macs / 1e9:.2f}", f"{expedited[part] / 1e9:.2f}", ratio)
    console().print(table)
    console().print("GFLOPs are 10^9 multiply-accumulates, as in the paper.")
