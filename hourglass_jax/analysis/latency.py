"""Latency of compiled functions, measured side by side."""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax


@dataclass(frozen=True)
class Latency:
    """Durations of one function in seconds: the first call, with compilation, and every later one."""

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
    """Times functions in rounds; every round calls each function once, in random order.

    So a drift of the machine affects all functions alike, and no function always runs on the caches that the same
    other one left behind.

    Args:
        functions: functions that return JAX arrays; the time includes waiting for them.
        repeats: number of timed calls of each function, after one that compiles.
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
    return [Latency(compiled, tuple(times)) for compiled, times in zip(first, calls, strict=True)]
