"""The counts of every image of an evaluation, in a journal for each process."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hourglass_jax.evaluation.metrics import Metric
from hourglass_jax.io.journal import Journal, Line, read_journal

MISMATCH = "the journal of another evaluation"

Counts = tuple[str, np.ndarray]
"""The key of an image and its counts, as `rows_of` has them."""


def rows_of(counts: np.ndarray) -> np.ndarray:
    """Counts of any shape without the zeros: [n, axes + 1], the place of each and its value."""
    places = np.nonzero(counts)
    return np.stack([*places, counts[places]], axis=1)


def add_rows(total: np.ndarray, rows: np.ndarray) -> None:
    """Adds the counts of an image, as `rows_of` has them, to `total`."""
    *places, values = rows.T
    total[tuple(place.astype(np.intp) for place in places)] += values


def line_of(key: str, counts: np.ndarray) -> dict[str, Any]:
    """The line of an image with its counts."""
    return {"key": key, "counts": rows_of(counts).tolist()}


def open_journal(folder: Path, process: int, header: Line, metric: Metric) -> Journal[Counts]:
    """The journal of one process, to be appended to; errors are those of `read_journal`."""
    return Journal(folder / f"journal.{process}.jsonl", header, _reader(metric), MISMATCH)


def read_journals(folder: Path, header: Line, metric: Metric) -> dict[str, np.ndarray]:
    """What all journals in a folder say: the counts of every image, as `rows_of` has them, by its key.

    Raises:
        ValueError: a journal is of another evaluation, or damaged other than at its end.
    """
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("journal.*.jsonl")):
        found |= dict(read_journal(path, header, _reader(metric), MISMATCH)[0])
    return found


def _reader(metric: Metric) -> Callable[[Mapping[str, Any]], Counts]:
    return partial(_counts, empty=metric.zeros())


def _counts(line: Mapping[str, Any], empty: np.ndarray) -> Counts:
    return line["key"], np.array(line["counts"], empty.dtype).reshape(-1, empty.ndim + 1)
