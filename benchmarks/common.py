"""What the benchmarks share; JAX and PyTorch are imported only where a function needs them."""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import cache
from multiprocessing import get_context
from types import ModuleType
from typing import TypeVar

Result = TypeVar("Result")


def alone(function: Callable[..., Result], *arguments: object) -> Result:
    """Calls a function of a benchmark in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def report(results: Mapping[str, Mapping[str, Sequence[float]]], *, as_json: bool, digits: str = ".3f") -> None:
    """Prints what the processes found: the median of every figure, the least and the greatest.

    Args:
        results: of every case, by figure, a value for each process.
        as_json: whether the values themselves are printed.
        digits: how numbers are shown.
    """
    import jax
    import torch
    from rich.console import Console
    from rich.table import Table

    if as_json:
        print(json.dumps(results, indent=2))
        return
    table = Table("", *results, title=f"{jax.devices()[0]}, {torch.get_num_threads()} PyTorch threads")
    for figure in next(iter(results.values())):
        found = [result[figure] for result in results.values()]
        numbers = [[format(each, digits) for each in (statistics.median(x), min(x), max(x))] for x in found]
        table.add_row(figure, *(f"{median} ({least} to {greatest})" for median, least, greatest in numbers))
    Console().print(table)


@cache
def torchvision_operators() -> object:
    """Stands for torchvision's compiled operators, which may belong to another build of PyTorch; none is needed."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def import_timm() -> ModuleType:
    """timm imports torchvision, of which it needs only the Python part."""
    torchvision_operators()
    import timm

    return timm


def ratios(seconds: Mapping[str, float], macs: Mapping[str, float], peer: str) -> dict[str, float]:
    """How the runs of a peer, of ours, and of both with the hourglass compare.

    Args:
        seconds: of `peer`, "ours", and both with "_hourglass" after the name.
        macs: multiply-accumulates of "ours" and "ours_hourglass".
        peer: its name.
    """
    speedup, flops_ratio = seconds["ours"] / seconds["ours_hourglass"], macs["ours"] / macs["ours_hourglass"]
    return {
        **{f"{name}_s": value for name, value in seconds.items()},
        f"ours_over_{peer}": seconds[peer] / seconds["ours"],
        f"ours_over_{peer}_hourglass": seconds[f"{peer}_hourglass"] / seconds["ours_hourglass"],
        f"{peer}_speedup": seconds[peer] / seconds[f"{peer}_hourglass"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "speedup_of_flops_ratio": speedup / flops_ratio,
    }
