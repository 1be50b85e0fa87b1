"""The protocol of metrics: a record of every image, and figures of all records.

A record is JSON, so that an evaluation can keep it in a journal. There are two forms of metrics: the records of a
`CountMetric` are counts that are added up (a confusion matrix); the figures of an `ImageMetric` need the records of
all images at the end (average precision).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

Total = TypeVar("Total")


@dataclass(frozen=True, eq=False)
class Metric(ABC, Generic[Total]):
    """A comparison of results with a ground truth. Metrics are frozen dataclasses.

    Attributes:
        task: name of the task that the results are of.
        entry: key of a record in the lines of a journal.
    """

    task: ClassVar[str]
    entry: ClassVar[str]

    @abstractmethod
    def record(self, result: Any, truth: Any) -> Any:
        """The record of one image, as JSON; ValueError if its result or ground truth is invalid."""

    @abstractmethod
    def empty(self) -> Total:
        """The total of no images."""

    @abstractmethod
    def add(self, total: Total, record: Any) -> None:
        """Adds the record of an image to a total, in place; ValueError if it is invalid."""

    @abstractmethod
    def scores(self, total: Total) -> Any:
        """The figures of a total: a named tuple of numbers, and of arrays with one for each class."""

    @abstractmethod
    def shown(self, scores: Any) -> dict[str, str]:
        """Heading -> text, for printing figures."""

    def progress(self, total: Total) -> str:
        """Text for the progress bar of an evaluation, from a total."""
        heading, text = next(iter(self.shown(self.scores(total)).items()))
        return f"{heading} {text}"


class CountMetric(Metric[np.ndarray]):
    """A metric whose counts of single images add up to those of a data set."""

    entry = "counts"

    @abstractmethod
    def zeros(self) -> np.ndarray:
        """The counts of no image, int64 or float64 of any shape."""

    @abstractmethod
    def count(self, result: Any, truth: Any) -> np.ndarray:
        """The counts of one image, as `zeros`; ValueError if its result or ground truth is invalid."""

    def record(self, result: Any, truth: Any) -> list[list[float]]:
        """The counts of one image that are not zero: the place of each and its value."""
        counts = self.count(result, truth)
        places = np.nonzero(counts)
        return np.stack([*places, counts[places]], axis=1).tolist()

    def empty(self) -> np.ndarray:
        """See `Metric.empty`."""
        return self.zeros()

    def add(self, total: np.ndarray, record: list[list[float]]) -> None:
        """See `Metric.add`."""
        *places, values = np.array(record, total.dtype).reshape(-1, total.ndim + 1).T
        total[tuple(place.astype(np.intp) for place in places)] += values


class ImageMetric(Metric[list[Any]]):
    """A metric whose figures are computed from the records of all images, in the order of the data set."""

    entry = "record"

    def empty(self) -> list[Any]:
        """See `Metric.empty`."""
        return []

    def add(self, total: list[Any], record: Any) -> None:
        """See `Metric.add`."""
        total.append(record)

    def progress(self, total: list[Any]) -> str:
        """The number of images: figures of all records may take long."""
        return f"{len(total)} images"


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` of `whole`, NaN of nothing."""
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def percent(share: float) -> str:
    """A share in percent, with two digits after the point."""
    return f"{100 * share:.2f}"
