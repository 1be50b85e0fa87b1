"""The order of timed calls and what becomes of their times; nothing here depends on how fast the machine is."""

from collections.abc import Iterator

import pytest

from hourglass_jax.analysis import latency
from hourglass_jax.analysis.latency import Latency, measure


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """A clock that shows the sum of what is in the list."""
    passed = [100.0]
    monkeypatch.setattr(latency.time, "perf_counter", lambda: sum(passed))
    return passed


def test_functions_take_turns_in_changing_order_and_the_first_call_is_apart(clock: list[float]) -> None:
    log = []

    def function(name: str, *durations: float):
        waiting = iter(durations)

        def call() -> None:
            log.append(name)
            clock.append(next(waiting))

        return call

    slow, fast = measure([function("a", 64, 4, 2, 3), function("b", 32, 1, 1, 7)], repeats=3)
    rounds = ["".join(log[start : start + 2]) for start in range(0, 8, 2)]
    assert rounds[0] == "ab" and set(rounds[1:]) == {"ab", "ba"}
    assert slow == Latency(64, (4, 2, 3))
    assert fast == Latency(32, (1, 1, 7))
    assert (slow.median, fast.median) == (3, 1)


def test_results_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waited = []
    monkeypatch.setattr(latency.jax, "block_until_ready", waited.append)
    measure([lambda: "a", lambda: "b"], repeats=1)
    assert waited[:2] == ["a", "b"] and sorted(waited[2:]) == ["a", "b"]


def test_progress_is_reported_after_every_call_and_not_timed(clock: list[float]) -> None:
    reports = []

    def report() -> None:
        reports.append(sum(clock))
        clock.append(1000)

    timed = measure([lambda: clock.append(1)], repeats=2, on_call=report)
    assert timed == [Latency(1, (1, 1))]
    assert len(reports) == 3


def test_at_least_one_repeat() -> None:
    with pytest.raises(ValueError, match="repeats must be at least 1, got 0"):
        measure([lambda: None], repeats=0)
