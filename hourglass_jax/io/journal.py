"""Journals: lines of JSON that outlive their process, first what is measured, then what was found of it."""

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
    """What a journal says, without what a killed process left of its last line.

    Args:
        path: of the journal; it need not be there.
        header: the first line that is expected.
        entry: makes something of every other line; KeyError, TypeError, ValueError or AttributeError if it cannot.
        mismatch: what the journal is if its first line is another one.

    Returns:
        What `entry` made of the lines, and how many bytes of the file are whole lines.

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
        entries = [entry(each) for each in others]
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ValueError(f"{path} must be lines of JSON, and one is damaged: {problem!r}") from None
    if first != header:
        raise ValueError(f"{path} is {mismatch}: {_difference(first, header)}")
    return entries, sum(map(len, lines))


class Journal(Generic[Entry]):
    """A journal that is appended to; what a killed process left of a line is overwritten.

    Attributes:
        entries: what was in it when it was opened.

    Args and errors are those of `read_journal`; missing folders are made.
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
