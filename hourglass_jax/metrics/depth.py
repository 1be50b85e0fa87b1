"""Errors of depth maps.

Source: cogaplex-bts/bts, utils/eval_with_pngs.py (figures and crops), which isl-org/DPT, EVALUATION.md, names; the
alignment of relative inverse depth is MiDaS's (arXiv 1907.01341).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hourglass_jax.metrics.base import CountMetric

NEAREST = 1e-3
"""Metres: smaller depths do not count in the ground truth, and predictions are clipped to it."""

GARG = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
EIGEN = (0.3324324, 0.91351351, 0.0359477, 0.96405229)
EIGEN_NYU = (45 / 480, 471 / 480, 41 / 640, 601 / 640)
"""Begin and end of the evaluated crop: rows and columns relative to the sides of the ground truth."""

Crop = tuple[float, float, float, float]


class DepthScores(NamedTuple):
    """Figures of a whole data set, means over its images; NaN if there is none.

    Attributes:
        delta1, delta2, delta3: share of the pixels that are off by a factor below 1.25, 1.25^2, 1.25^3.
        abs_rel: mean absolute error, in units of the true depth.
        sq_rel: mean of the squared error in units of the true depth, in metres.
        rmse: root of the mean squared error, in metres.
        rmse_log: the same of the logarithms.
        silog: standard deviation of the error of the logarithms, times 100.
        log10: mean absolute error of the decimal logarithms.
    """

    delta1: float
    delta2: float
    delta3: float
    abs_rel: float
    sq_rel: float
    rmse: float
    rmse_log: float
    silog: float
    log10: float


@dataclass(frozen=True)
class DepthMetric(CountMetric):
    """Depth maps in metres.

    Attributes:
        cap: depth in metres up to which pixels count, and to which estimates are clipped.
        crop: which pixels count, or None for all; see `GARG`.
        is_relative: whether results are relative inverse depth. Then scale and shift of each image are those that
            fit the inverse depth of its ground truth best, in the sense of least squares.
    """

    cap: float = 80.0
    crop: Crop | None = None
    is_relative: bool = False
    task = "depth"

    def __post_init__(self) -> None:
        if not self.cap > NEAREST:
            raise ValueError(f"cap must be more than {NEAREST} metres, got {self.cap}")

    def zeros(self) -> np.ndarray:
        """See `CountMetric.zeros`: the number of images, and the sums of their figures."""
        return np.zeros(1 + len(DepthScores._fields))

    def count(self, result: np.ndarray, truth: np.ndarray) -> np.ndarray:
        """The figures of one image.

        Args:
            result: float [h, w], metres or relative inverse depth. If it is smaller than the truth, it is of the
                part in the middle at the bottom of the image (KITTI's benchmark crop).
            truth: float [H, W], metres; 0 where it is not known.

        Returns:
            float64 [10] as `zeros`; zeros if no pixel counts.

        Raises:
            ValueError: another shape, or a result that is not finite.
        """
        fits = result.ndim == truth.ndim == 2 and all(
            a <= b for a, b in zip(result.shape, truth.shape, strict=True)
        )
        if not fits:
            raise ValueError(
                f"result must have at most the truth's shape {list(truth.shape)}, got {list(result.shape)}"
            )
        if not np.isfinite(result).all():
            raise ValueError("result must be finite, got NaN or infinity")
        counted = self._counted_pixels(truth)
        (rows, columns), left = result.shape, (truth.shape[1] - result.shape[1]) // 2
        seen = np.s_[truth.shape[0] - rows :, left : left + columns]
        counted, truth = counted[seen], truth[seen]
        if not counted.any():
            return self.zeros()
        true, predicted = truth[counted].astype(np.float64), result[counted].astype(np.float64)
        if self.is_relative:
            predicted = _align(predicted, true, self.cap)
        predicted = np.clip(predicted, NEAREST, self.cap)
        return np.concatenate([[1.0], figures(predicted, true)])

    def scores(self, counts: np.ndarray) -> DepthScores:
        """The figures of a data set, from the sum of the counts of its images."""
        images, *sums = counts.tolist()
        return DepthScores(*(total / images if images else float("nan") for total in sums))

    def shown(self, scores: DepthScores) -> dict[str, str]:
        """See `Metric.shown`; the order is that of the paper's Table 7."""
        names = ("d1", "d2", "d3", "AbsRel", "SqRel", "RMSE", "RMSElog", "SILog", "log10")
        return {name: f"{value:.3f}" for name, value in zip(names, scores, strict=True)}

    def _counted_pixels(self, truth: np.ndarray) -> np.ndarray:
        counted = (truth > NEAREST) & (truth < self.cap)
        if self.crop is not None:
            sides = (truth.shape[0], truth.shape[0], truth.shape[1], truth.shape[1])
            edges = zip(self.crop, sides, strict=True)
            top, bottom, left, right = (int(share * side + 1e-9) for share, side in edges)
            inside = np.zeros_like(counted)
            inside[top:bottom, left:right] = True
            counted &= inside
        return counted


def figures(predicted: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The figures of `DepthScores` of positive depths in metres, float64 [n] both: float64 [9]."""
    factor = np.maximum(true / predicted, predicted / true)
    logs = np.log(predicted) - np.log(true)
    errors = predicted - true
    return np.array(
        [
            *((factor < 1.25**power).mean() for power in (1, 2, 3)),
            (np.abs(errors) / true).mean(),
            (errors**2 / true).mean(),
            np.sqrt((errors**2).mean()),
            np.sqrt((logs**2).mean()),
            100 * logs.std(),
            np.abs(logs).mean() / np.log(10),
        ]
    )


def _align(predicted: np.ndarray, true: np.ndarray, cap: float) -> np.ndarray:
    """Relative inverse depth as depth in metres, at most `cap`; by scale and shift of its own image."""
    terms = np.stack([predicted, np.ones_like(predicted)], axis=1)
    solution, *_ = np.linalg.lstsq(terms, 1 / true)
    return 1 / np.maximum(terms @ solution, 1 / cap)
