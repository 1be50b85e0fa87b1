"""The command `hourglass models`."""

import dataclasses

import tyro
from rich.table import Column, Table

from hourglass_jax.cli.options import console, describe, format_size, print_json


def models(json: tyro.conf.FlagCreatePairsOff[bool] = False) -> None:
    """Lists the models that can be loaded by name, and the presets.

    Example: hourglass models

    Args:
        json: Print machine-readable results.
    """
    from hourglass_jax.hub import PRETRAINED
    from hourglass_jax.plans.hourglass import Hourglass
    from hourglass_jax.plans.presets import PRESETS

    if json:
        print_json(
            {
                "models": PRETRAINED,
                "presets": {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()},
            }
        )
        return
    table = Table("model", "what it is", title="Models")
    for name, what in PRETRAINED.items():
        table.add_row(name, what)
    console().print(table)
    table = Table(
        Column("preset", no_wrap=True),
        "alpha",
        "clusters",
        "window",
        "kappa",
        "tau",
        "k",
        "image",
        "source",
        title="Presets",
    )
    for name, each in PRESETS.items():
        plan = each.plan
        if not isinstance(plan, Hourglass):
            table.add_row(name, *[""] * 6, format_size(each.size), f"{describe(plan)}: {each.source}")
            continue
        table.add_row(
            name,
            str(plan.alpha),
            format_size(plan.clusters),
            str(plan.window),
            str(plan.iterations),
            str(plan.temperature),
            str(plan.neighbors),
            format_size(each.size),
            each.source,
        )
    console().print(table)
