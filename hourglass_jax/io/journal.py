"""Journals: JSON Lines files that survive a killed process; a header identifies the run, then come its results."""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from hourglass_jax.io.files import check_target

Entry = TypeVar("Entry")
Line = Mapping[str, Any]


def read_journal(
    path: Path, header: Line, entry: Callable[[dict[str, Any]], Entry], mismatch: str
) -> tuple[list[Entry], int]:
    """Reads a journal; an incomplete last line is ignored.

    Args:
        path: path of the journal; it need not exist.
        header: the expected first line.
        entry: parses every other line; raises KeyError, TypeError, ValueError or AttributeError for invalid ones.
        mismatch: for the message, a description of a journal with another first line.

    Returns:
        The parsed entries, and the number of bytes of the complete lines.

    Raises:
        ValueError: the journal has another first line, is damaged other than at its end, or is no plain file.
    """
    check_target(path)
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    if lines and not lines[-1].endswith(b"\n"):
        lines.pop()
    if not lines:
        return [], 0
    try:
        first, *others = map(json.loads, lines)
        entries = [entry(line) for line in others]
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ValueError(f"{path} must be lines of JSON, and one is damaged: {problem!r}") from None
    if first != header:
        raise ValueError(f"{path} is {mismatch}: {_difference(first, header)}")
    return entries, sum(map(len, lines))


class Journal(Generic[Entry]):
    """A journal to append to; an incomplete last line is overwritten.

    Attributes:
        entries: the entries when it was opened.

    Arguments and errors are those of `read_journal`; missing folders are created.
    """

    def __init__(self, path: Path, header: Line, entry: Callable[[dict[str, Any]], Entry], mismatch: str) -> None:
        self.entries, intact = read_journal(path, header, entry, mismatch)
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab")
        self._file.truncate(intact)
        if not intact:
            self.append([header])

    def append(self, lines: Iterable[Line]) -> None:
        """Adds lines; they are on the disk when this returns."""
        self._file.write("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _difference(theirs: object, ours: Line) -> str:
    if not isinstance(theirs, dict):
        return f"expected {dict(ours)}, got {theirs}"
    name = next(name for name in {**ours, **theirs} if theirs.get(name) != ours.get(name))
    return f"expected {name} {ours.get(name)}, got {theirs.get(name)}"
