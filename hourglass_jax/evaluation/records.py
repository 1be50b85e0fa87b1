"""The records of the images of an evaluation, in a journal for each process."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hourglass_jax.io.journal import Journal, Line, read_journal
from hourglass_jax.metrics.base import Metric

MISMATCH = "the journal of another evaluation"

Entry = tuple[str, Any]
"""The key of an image and its record, as `Metric.record` made it."""


def line_of(key: str, record: Any, metric: Metric) -> dict[str, Any]:
    """The line of an image with its record."""
    return {"key": key, metric.entry: record}


def open_journal(folder: Path, process: int, header: Line, metric: Metric) -> Journal[Entry]:
    """The journal of one process, to be appended to; errors are those of `read_journal`."""
    return Journal(folder / f"journal.{process}.jsonl", header, _reader(metric), MISMATCH)


def read_journals(folder: Path, header: Line, metric: Metric) -> dict[str, Any]:
    """The record of every image by its key, from all journals in a folder.

    Raises:
        ValueError: a journal is of another evaluation, or damaged other than at its end.
    """
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("journal.*.jsonl")):
        found |= dict(read_journal(path, header, _reader(metric), MISMATCH)[0])
    return found


def _reader(metric: Metric) -> Callable[[Mapping[str, Any]], Entry]:
    def read(line: Mapping[str, Any]) -> Entry:
        record = line[metric.entry]
        metric.add(metric.empty(), record)
        return line["key"], record

    return read
