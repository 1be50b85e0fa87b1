"""Pipelines over photographs: reading, processing and writing overlap, and failures do not stop the others."""

import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from hourglass_jax.cli.options import hide_progress, print_json
from hourglass_jax.cli.photos import Photo
from hourglass_jax.io.text import printable

if TYPE_CHECKING:
    import numpy as np

QUEUE_LENGTH = 4
"""Maximum number of photographs that are read ahead, and of results that wait to be written."""
LONGEST_LINE = 100_000
"""Characters of a line, which names all files of a photograph."""
Record = TypeVar("Record")


def process(
    photos: Sequence[Photo],
    work: Callable[[Photo, "np.ndarray"], Callable[[], Record]],
    *,
    together: Callable[[Sequence["tuple[Photo, np.ndarray]"]], Sequence[Callable[[], Record]]] | None = None,
    batch: int = 1,
    on_row: Callable[[Photo, Record], None] = lambda photo, record: None,
) -> tuple[list[Record], int]:
    """Processes photographs; those that fail are named on stderr.

    Args:
        photos: the photographs, which are read ahead in other threads.
        work: processes a photograph, uint8 [rows, columns, 3], and returns a function that writes the result. That
            function runs in another thread, and returns a record of what was written.
        together: the same for several photographs at once; if it fails, `work` finds out at which.
        batch: number of photographs at once.
        on_row: called with every photograph that was written and its record, in order.

    Returns:
        The records in the order of the photographs, and the exit status: 1 if some photographs failed.

    Raises:
        ValueError: there is a single photograph, and it failed.
    """
    from hourglass_jax.imaging.images import read_image
    from hourglass_jax.predictor import is_out_of_memory

    records: list[Record] = []
    failures: list[tuple[Photo, Exception]] = []

    def attempt(photo: Photo, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as problem:
            if not isinstance(problem, ValueError | OSError) and not is_out_of_memory(problem):
                raise
            failures.append((photo, problem))
            return None

    def keep(photo: Photo, writing: Future[Record]) -> None:
        record = attempt(photo, writing.result)
        if record is not None:
            records.append(record)
            on_row(photo, record)

    def work_on(taken: "Sequence[tuple[Photo, np.ndarray]]") -> "Sequence[Callable[[], Record] | None]":
        if together is not None and len(taken) > 1:
            try:
                return together(taken)
            except Exception as problem:
                if not isinstance(problem, ValueError | OSError) and not is_out_of_memory(problem):
                    raise
        return [attempt(photo, functools.partial(work, photo, image)) for photo, image in taken]

    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        pending: deque[tuple[Photo, Future[Record]]] = deque()
        images = _read_ahead(photos, lambda photo: readers.submit(read_image, photo.path), max(QUEUE_LENGTH, batch))
        with tqdm(total=len(photos), desc="photographs", disable=hide_progress(photos)) as bar:
            while group := list(itertools.islice(images, batch)):
                read = [(photo, attempt(photo, reading.result)) for photo, reading in group]
                taken = [each for each in read if each[1] is not None]
                for (photo, _), write in zip(taken, work_on(taken), strict=True):
                    if write is not None:
                        pending.append((photo, writers.submit(write)))
                while len(pending) > QUEUE_LENGTH:
                    keep(*pending.popleft())
                bar.update(len(group))
        while pending:
            keep(*pending.popleft())
    if failures:
        _report(photos, failures)
    return records, int(bool(failures))


def finish(
    records: Sequence[Mapping[str, Any]], lines: Iterable[str], status: int, *, as_json: bool, **details: object
) -> None:
    """Ends a command: prints its records, and exits unless the status is 0.

    Args:
        records: one for each photograph, printed as JSON.
        lines: the same as text.
        status: exit status of the command.
        as_json: whether to print JSON instead of text.
        details: further entries of the JSON object.
    """
    if as_json:
        print_json({"images": records, **details})
    else:
        for line in lines:
            print(printable(line, LONGEST_LINE))
    if status:
        sys.exit(status)


def _read_ahead(
    photos: Sequence[Photo], read: Callable[[Photo], Future["np.ndarray"]], ahead: int
) -> Iterator[tuple[Photo, Future["np.ndarray"]]]:
    waiting: deque[tuple[Photo, Future[np.ndarray]]] = deque()
    for photo in photos:
        waiting.append((photo, read(photo)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _report(photos: Sequence[Photo], failures: Sequence[tuple[Photo, Exception]]) -> None:
    """Reports failures: raises the error of a single photograph, otherwise prints one line for each."""
    sentences = [_sentence(*failure) for failure in failures]
    if len(photos) == 1:
        raise ValueError(sentences[0])
    for sentence in sentences:
        print(printable(f"error: {sentence}"), file=sys.stderr)
    print(f"{len(photos) - len(failures)} of {len(photos)} photographs were done", file=sys.stderr)


def _sentence(photo: Photo, problem: Exception) -> str:
    from hourglass_jax.predictor import is_out_of_memory, memory_sentence

    text = " ".join((memory_sentence(problem) if is_out_of_memory(problem) else str(problem)).split())
    return text if str(photo.path) in text else f"{photo.path}: {text}"
