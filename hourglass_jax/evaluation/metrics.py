"""How well results agree with the truth: counts that can be added up over images, and figures from their sum.

Every task has a `Metric`; here is the one of segmentation.

Source: open-mmlab/mmsegmentation, mmseg/core/evaluation/metrics.py (intersect_and_union, total_area_to_metrics).
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

IGNORED = 255
"""The label of pixels that do not count."""


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


class Scores(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        miou: mean of `iou` over the classes that occur, in the labels or the predictions.
        mean_accuracy: mean over the classes that occur in the labels of the share of their pixels that are found.
        pixel_accuracy: share of the labelled pixels that are right.
        iou: float64 [classes], intersection over union.
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: np.ndarray


@dataclass(frozen=True)
class Segmentation:
    """Label maps: every pixel has one of `classes`."""

    classes: int
    task: ClassVar[str] = "segmentation"

    def of(self, model: Any) -> "Segmentation":
        """See `Metric.of`: all models that label pixels do it alike."""
        return self

    def zeros(self) -> np.ndarray:
        """See `Metric.zeros`: pixels by what they are (rows) and what they are taken for (columns)."""
        return np.zeros((self.classes, self.classes), np.int64)

    def count(self, result: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """Counts the pixels of one image.

        Args:
            result: int [H, W], classes.
            truth: int [H, W], classes, or `IGNORED` where a pixel does not count.

        Returns:
            int64 [classes, classes], as `zeros`.

        Raises:
            ValueError: another shape or type, or a class out of range.
        """
        for name, values in (("result", result), ("truth", truth)):
            if values.ndim != 2 or not np.issubdtype(values.dtype, np.integer):
                raise ValueError(f"{name} must be integers [H, W], got {values.dtype} {list(values.shape)}")
        if result.shape != truth.shape:
            raise ValueError(f"result must have the truth's shape {list(truth.shape)}, got {list(result.shape)}")
        counted = truth != IGNORED
        true, found = truth[counted].astype(np.int64), result[counted].astype(np.int64)
        for name, values in (("result", found), ("truth", true)):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(f"{name} must lie in 0..{self.classes - 1}, got {values.min()} to {values.max()}")
        places = np.bincount(true * self.classes + found, minlength=self.classes**2)
        return places.reshape(self.classes, self.classes)

    def scores(self, counts: np.ndarray) -> Scores:
        """The figures of a data set, from the sum of the counts of its images."""
        right, true, found = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
        iou, accuracy = share(right, true + found - right), share(right, true)
        return Scores(_mean(iou), _mean(accuracy), float(share(right.sum(), true.sum())), iou)

    def shown(self, scores: Scores) -> dict[str, str]:
        """See `Metric.shown`."""
        return {
            "mIoU, %": percent(scores.miou),
            "mean accuracy, %": percent(scores.mean_accuracy),
            "pixel accuracy, %": percent(scores.pixel_accuracy),
        }


def share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """`part` of `whole`, NaN of nothing."""
    with np.errstate(invalid="ignore"):
        return np.divide(part, whole)


def percent(share: float) -> str:
    """A share in percent, with two digits after the point."""
    return f"{100 * share:.2f}"


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
