"""What was counted so far, as lines of JSON that outlive their process: what is evaluated, then every image."""

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np


def rows_of(counts: np.ndarray) -> np.ndarray:
    """Confusion counts [classes, classes] without the zeros: int64 [n, 3] of label, prediction and pixels."""
    places = np.nonzero(counts)
    return np.stack([*places, counts[places]], axis=1)


def add_rows(total: np.ndarray, rows: np.ndarray) -> None:
    """Adds the counts of an image, as `rows_of` has them, to `total`, int64 [classes, classes]."""
    labels, predictions, pixels = rows.T
    total[labels, predictions] += pixels


def read_journals(folder: Path, header: Mapping[str, object]) -> dict[str, np.ndarray]:
    """What all journals in a folder say.

    Args:
        folder: of the journals; it need not be there.
        header: what is evaluated.

    Returns:
        The counts of an image, as `rows_of` has them, by its key.

    Raises:
        ValueError: a journal is of another evaluation, or damaged other than at its end.
    """
    found: dict[str, np.ndarray] = {}
    for path in sorted(folder.glob("journal.*.jsonl")):
        found |= _read(path, header)[0]
    return found


class Journal:
    """The journal that one process appends to; what a killed process left of a line is overwritten.

        with Journal(folder, 0, header) as journal:
            journal.append({"ADE_val_00000001": rows_of(counts)})

    Args:
        folder: of the journals, made if it is missing.
        process: number of the process.
        header: what is evaluated.

    Raises:
        ValueError: as for `read_journals`.
    """

    def __init__(self, folder: Path, process: int, header: Mapping[str, object]) -> None:
        path = folder / f"journal.{process}.jsonl"
        folder.mkdir(parents=True, exist_ok=True)
        intact = _read(path, header)[1] if path.exists() else 0
        self._file = path.open("ab")
        self._file.truncate(intact)
        if not intact:
            self._write([header])

    def append(self, images: Mapping[str, np.ndarray]) -> None:
        """Adds images, as `rows_of` has them, by their keys; they are on the disk when this returns."""
        self._write({"key": key, "counts": rows.tolist()} for key, rows in images.items())

    def _write(self, lines: Iterable[Mapping[str, object]]) -> None:
        self._file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _read(path: Path, header: Mapping[str, object]) -> tuple[dict[str, np.ndarray], int]:
    """The counts by key, and how many bytes of the file are whole lines."""
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        return {}, 0
    try:
        images = map(json.loads, lines)
        first = next(images)
        counts = {image["key"]: np.array(image["counts"], np.int64).reshape(-1, 3) for image in images}
    except (ValueError, TypeError, KeyError) as problem:
        raise ValueError(f"{path} must be lines of JSON, and one is damaged: {problem!r}") from None
    if first != header:
        raise ValueError(f"{path} is the journal of another evaluation: {_difference(first, header)}")
    return counts, sum(map(len, lines))


def _difference(theirs: object, ours: Mapping[str, object]) -> str:
    if not isinstance(theirs, dict):
        return f"expected {ours}, got {theirs}"
    name = next(name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name))
    return f"expected {name} {ours.get(name)}, got {theirs.get(name)}"
