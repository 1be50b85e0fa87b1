"""Many photographs: read ahead, worked on one after the other, written behind, and no bad one stops the others."""

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
    on_row: Callable[[Photo, Row], None] = lambda photo, row: None,
) -> tuple[list[Row], int]:
    """Works on photographs; those that fail are named on stderr.

    Args:
        photos: what is read, in other threads, ahead of the work.
        work: makes something of a photograph, uint8 [rows, columns, 3], and returns what writes it, which runs in
            another thread; what that returns is kept.
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

    with ThreadPoolExecutor(2) as readers, ThreadPoolExecutor(2) as writers:
        pending: deque[tuple[Photo, Future[Row]]] = deque()
        images = _read_ahead(photos, lambda photo: readers.submit(read_image, photo.path))
        for photo, reading in tqdm(images, total=len(photos), desc="photographs", disable=hide_progress(photos)):
            image = attempt(photo, reading.result)
            write = None if image is None else attempt(photo, lambda: work(photo, image))  # noqa: B023
            if write is not None:
                pending.append((photo, writers.submit(write)))
            while len(pending) > AHEAD:
                keep(*pending.popleft())
        while pending:
            keep(*pending.popleft())
    if failures:
        _report(photos, failures)
    return rows, int(bool(failures))


def _read_ahead(
    photos: Sequence[Photo], read: Callable[[Photo], Future["np.ndarray"]]
) -> Iterator[tuple[Photo, Future["np.ndarray"]]]:
    waiting: deque[tuple[Photo, Future[np.ndarray]]] = deque()
    for photo in photos:
        waiting.append((photo, read(photo)))
        if len(waiting) > AHEAD:
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
    from hourglass_jax.predictor import is_out_of_memory, memory_sentence

    text = " ".join((memory_sentence(problem) if is_out_of_memory(problem) else str(problem)).split())
    return text if str(photo.path) in text else f"{photo.path}: {text}"
