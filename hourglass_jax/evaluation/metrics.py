"""How well results agree with the truth: counts that can be added up over images, and figures from their sum.

Every task has a `Metric`, in a file of its own.
"""

from typing import Any, ClassVar, Protocol

import numpy as np


class Metric(Protocol):
    """How the results of a task are compared with the truth.

    Attributes:
        task: the `task` of the models whose results they are.
    """

    task: ClassVar[str]

    def of(self, model: Any) -> "Metric":
        """The same for the results of a model for this task."""

    def zeros(self) -> np.ndarray:
        """The counts of no image, int64 or float64 of any shape; those of images are added to them."""

    def count(self, result: np.ndarray, truth: Any) -> np.ndarray:
        """The counts of an image; ValueError if its result or truth is none."""

    def scores(self, counts: np.ndarray) -> Any:
        """The figures of a sum of counts: a named tuple of numbers, and of arrays with one for each class."""

    def shown(self, scores: Any) -> dict[str, str]:
        """What is printed of figures, as text by its heading; the first while an evaluation runs."""


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` of `whole`, NaN of nothing."""
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def percent(share: float) -> str:
    """A share in percent, with two digits after the point."""
    return f"{100 * share:.2f}"
