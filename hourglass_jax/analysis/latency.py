"""How long compiled functions take, side by side."""

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
    on_call: Callable[[], None] = lambda: None,
) -> list[Latency]:
    """Times functions in turn, A B A B ..., so that a machine that drifts treats them alike.

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
    rounds = [[seconds(function) for function in functions] for _ in range(repeats)]
    return [Latency(compiled, calls) for compiled, calls in zip(first, zip(*rounds, strict=True), strict=True)]
