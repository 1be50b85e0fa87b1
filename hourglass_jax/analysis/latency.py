"""How long compiled functions take, side by side."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Latency:
    """Seconds of one function: the first call, with compilation, and every later one."""

    first: float
    calls: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median of the later calls."""
        return statistics.median(self.calls)


def measure(
    functions: Sequence[Callable[[], object]],
    *,
    repeats: int = 7,
    on_call: Callable[[], object] = lambda: None,
) -> list[Latency]:
    """Times functions in rounds, each of them once in a round, in an order drawn anew for every round.

    So a machine that drifts treats them alike, and none always follows the same other one, which leaves it the
    caches and the memory in its own state.

    Args:
        functions: each returns JAX arrays, which are waited for.
        repeats: timed calls of each, after one that compiles.
        on_call: called after every call, for a progress bar.

    Returns:
        One `Latency` for each function.

    Raises:
        ValueError: `repeats` is less than one.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, got {repeats}")

    def seconds(function: Callable[[], object]) -> float:
        started = time.perf_counter()
        jax.block_until_ready(function())
        elapsed = time.perf_counter() - started
        on_call()
        return elapsed

    first = [seconds(function) for function in functions]
    calls: list[list[float]] = [[] for _ in functions]
    order = random.Random(0)
    for _ in range(repeats):
        for index in order.sample(range(len(functions)), len(functions)):
            calls[index].append(seconds(functions[index]))
    return [Latency(compiled, tuple(each)) for compiled, each in zip(first, calls, strict=True)]
