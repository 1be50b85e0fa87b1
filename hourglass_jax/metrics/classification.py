"""Classification accuracy.

Source: facebookresearch/SWAG, imagenet_1k_eval.py (accuracy).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hourglass_jax.metrics.base import CountMetric, percent, share

TOP = 5


class Accuracies(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        top1: share of the images whose class is the most probable one.
        top5: share of the images whose class is among the five most probable ones.
        top1_by_class: float64 [classes], `top1` of the images of each class.
    """

    top1: float
    top5: float
    top1_by_class: np.ndarray


@dataclass(frozen=True)
class ClassificationMetric(CountMetric):
    """Images with one class each, of `classes`."""

    classes: int
    task = "classification"

    def zeros(self) -> np.ndarray:
        """See `CountMetric.zeros`: of each class the images, those that are found, and those among the five."""
        return np.zeros((self.classes, 3), np.int64)

    def count(self, result: np.ndarray, truth: int) -> np.ndarray:
        """Counts one image.

        Args:
            result: float [classes], larger for more probable classes; of equal ones the first counts more.
            truth: class of the ground truth.

        Returns:
            int64 [classes, 3], as `zeros`.

        Raises:
            ValueError: another shape or type, a class out of range, or a result that is not finite.
        """
        if result.shape != (self.classes,) or not np.issubdtype(result.dtype, np.floating):
            raise ValueError(f"result must be floats [{self.classes}], got {result.dtype} {list(result.shape)}")
        if not np.isfinite(result).all():
            raise ValueError("result must be finite, got NaN or infinity")
        if not 0 <= truth < self.classes:
            raise ValueError(f"truth must lie in 0..{self.classes - 1}, got {truth}")
        best = np.argsort(-result, kind="stable")[:TOP]
        counts = self.zeros()
        counts[truth] = 1, best[0] == truth, truth in best
        return counts

    def scores(self, counts: np.ndarray) -> Accuracies:
        """The figures of a data set, from the sum of the counts of its images."""
        images, correct, among = counts.sum(axis=0)
        return Accuracies(
            float(share(correct, images)), float(share(among, images)), share(counts[:, 1], counts[:, 0])
        )

    def shown(self, scores: Accuracies) -> dict[str, str]:
        """See `Metric.shown`."""
        return {"top-1, %": percent(scores.top1), "top-5, %": percent(scores.top5)}
