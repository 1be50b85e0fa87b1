"""Accuracy of label maps.

Source: open-mmlab/mmsegmentation, mmseg/core/evaluation/metrics.py (intersect_and_union, total_area_to_metrics).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hourglass_jax.metrics.base import CountMetric, percent, share

IGNORED = 255
"""The label of pixels that do not count."""


class Scores(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        miou: mean of `iou` over the classes that occur, in the labels or the predictions.
        mean_accuracy: mean over the classes that occur in the labels of the share of their pixels that are correct.
        pixel_accuracy: share of the labelled pixels that are right.
        iou: float64 [classes], intersection over union.
    """

    miou: float
    mean_accuracy: float
    pixel_accuracy: float
    iou: np.ndarray


@dataclass(frozen=True)
class SegmentationMetric(CountMetric):
    """Label maps: every pixel has one of `classes`."""

    classes: int
    task = "segmentation"

    def zeros(self) -> np.ndarray:
        """See `CountMetric.zeros`: pixels by the classes of ground truth (rows) and prediction (columns)."""
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
        true, predicted = truth[counted].astype(np.int64), result[counted].astype(np.int64)
        for name, values in (("result", predicted), ("truth", true)):
            if values.size and not 0 <= values.min() <= values.max() < self.classes:
                raise ValueError(f"{name} must lie in 0..{self.classes - 1}, got {values.min()} to {values.max()}")
        places = np.bincount(true * self.classes + predicted, minlength=self.classes**2)
        return places.reshape(self.classes, self.classes)

    def scores(self, counts: np.ndarray) -> Scores:
        """The figures of a data set, from the sum of the counts of its images."""
        right, true, predicted = np.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
        iou, accuracy = share(right, true + predicted - right), share(right, true)
        return Scores(_mean(iou), _mean(accuracy), float(share(right.sum(), true.sum())), iou)

    def shown(self, scores: Scores) -> dict[str, str]:
        """See `Metric.shown`."""
        return {
            "mIoU, %": percent(scores.miou),
            "mean accuracy, %": percent(scores.mean_accuracy),
            "pixel accuracy, %": percent(scores.pixel_accuracy),
        }


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
