"""Many photographs: read ahead, worked on one after the other, written behind, and no bad one stops the others."""

import functools
import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tqdm import tqdm

from hourglass_jax.cli.options import hide_progress, printable
from hourglass_jax.cli.photos import Photo

if TYPE_CHECKING:
    import numpy as np

AHEAD = 4
"""Photographs that wait to be worked on, and results that wait to be written."""
Row = TypeVar("Row")


def process(
    photos: Sequence[Photo],
    work: Callable[[Photo, "np.ndarray"], Callable[[], Row]],
    *,
    together: Callable[[Sequence["tuple[Photo, np.ndarray]"]], Sequence[Callable[[], Row]]] | None = None,
    batch: int = 1,
    on_row: Callable[[Photo, Row], None] = lambda photo, row: None,
) -> tuple[list[Row], int]:
    """Works on photographs; those that fail are named on stderr.

    Args:
        photos: what is read, in other threads, ahead of the work.
        work: makes something of a photograph, uint8 [rows, columns, 3], and returns what writes it, which runs in
            another thread; what that returns is kept.
        together: the same for several photographs at once. Where it fails, `work` finds out at which.
        batch: how many those are.
        on_row: called with every photograph that was written, in their order.

    Returns:
        What was kept, in the order of the photographs, and the exit status: 1 if some of them failed.

    Raises:
        ValueError: the only photograph failed.
    """
    from hourglass_jax.imaging.images import read_image
    from hourglass_jax.predictor import is_out_of_memory

    rows: list[Row] = []
    failures: list[tuple[Photo, Exception]] = []

    def attempt(photo: Photo, action: Callable[[], Any]) -> Any:
        try:
            return action()
        except Exception as problem:
            if not isinstance(problem, ValueError | OSError) and not is_out_of_memory(problem):
                raise
            failures.append((photo, problem))
            return None

    def keep(photo: Photo, writing: Future[Row]) -> None:
        row = attempt(photo, writing.result)
        if row is not None:
            rows.append(row)
            on_row(photo, row)

    def work_on(taken: "Sequence[tuple[Photo, np.ndarray]]") -> "Sequence[Callable[[], Row] | None]":
        if together is not None and len(taken) > 1:
            try:
                return together(taken)
            except Exception as problem:
                if not isinstance(problem, ValueError | OSError) and not is_out_of_memory(problem):
                    raise
        return [attempt(photo, functools.partial(work, photo, image)) for photo, image in taken]

    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        pending: deque[tuple[Photo, Future[Row]]] = deque()
        images = _read_ahead(photos, lambda photo: readers.submit(read_image, photo.path), max(AHEAD, batch))
        with tqdm(total=len(photos), desc="photographs", disable=hide_progress(photos)) as bar:
            while group := list(itertools.islice(images, batch)):
                read = [(photo, attempt(photo, reading.result)) for photo, reading in group]
                taken = [each for each in read if each[1] is not None]
                for (photo, _), write in zip(taken, work_on(taken), strict=True):
                    if write is not None:
                        pending.append((photo, writers.submit(write)))
                while len(pending) > AHEAD:
                    keep(*pending.popleft())
                bar.update(len(group))
        while pending:
            keep(*pending.popleft())
    if failures:
        _report(photos, failures)
    return rows, int(bool(failures))


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
    """What failed: the error itself of the only photograph, otherwise a line for each."""
    sentences = [_sentence(*failure) for failure in failures]
    if len(photos) == 1:
        raise ValueError(sentences[0])
    for sentence in sentences:
        print(printable(f"error: {sentence}"), file=sys.stderr)
    print(f"{len(photos) - len(failures)} of {len(photos)} photographs were done", file=sys.stderr)


def _sentence(photo: Photo, problem: Exception) -> str:
    text = " ".join(str(problem).split()) or "not enough memory"
    return text if str(photo.path) in text else f"{photo.path}: {text}"
