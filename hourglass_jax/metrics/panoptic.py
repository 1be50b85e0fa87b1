"""Panoptic quality.

Source: cocodataset/panopticapi, panopticapi/evaluation.py (arXiv 1801.00868).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hourglass_jax.metrics.base import CountMetric, percent, share


class Segment(NamedTuple):
    """A segment of a panoptic map.

    Attributes:
        id: its number in the map.
        label: its class.
        is_thing: whether things of its class are counted.
        score: of a prediction, in 0..1.
        area: in pixels.
        is_crowd: of a ground truth, whether it is several things that were not told apart.
    """

    id: int
    label: int
    is_thing: bool
    score: float
    area: int
    is_crowd: bool = False


class PanopticMap(NamedTuple):
    """The segments of an image.

    Attributes:
        segments: int32 [rows, columns], the segment of every pixel; 0 is none.
        table: of the segments, by their number.
    """

    segments: np.ndarray
    table: tuple[Segment, ...]


class Quality(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        pq: panoptic quality, the mean over the classes that occur of `sq` times `rq`.
        sq: segmentation quality, the mean of the intersections over union of matched segments.
        rq: recognition quality, matched segments by the mean number of true and of found ones.
        pq_things, sq_things, rq_things: of the classes that are counted.
        pq_stuff, sq_stuff, rq_stuff: of the others.
        by_class: float64 [classes], the panoptic quality of each.
    """

    pq: float
    sq: float
    rq: float
    pq_things: float
    sq_things: float
    rq_things: float
    pq_stuff: float
    sq_stuff: float
    rq_stuff: float
    by_class: np.ndarray


class Pair(NamedTuple):
    """Two segments of one class that are mostly the same, and their intersection over union."""

    first: int
    second: int
    overlap: float


def match_segments(
    first: np.ndarray, first_labels: Mapping[int, int], second: np.ndarray, second_labels: Mapping[int, int]
) -> list[Pair]:
    """The pairs of segments of one class whose intersection over union exceeds one half; each is in one at most.

    What `second` says nothing of, 0, does not count as a part of the first's segments.

    Args:
        first: int [rows, columns], numbers of segments.
        first_labels: their classes; a number without one matches nothing.
        second, second_labels: likewise.
    """
    places, areas = np.unique(np.stack([first.ravel(), second.ravel()]), axis=1, return_counts=True)
    shared = {(a, b): area for a, b, area in zip(*places.tolist(), areas.tolist(), strict=True)}
    of_first, of_second = (dict(zip(*_counts(segments), strict=True)) for segments in (first, second))
    pairs = []
    for (a, b), area in shared.items():
        if a in first_labels and first_labels[a] == second_labels.get(b):
            overlap = area / (of_first[a] + of_second[b] - area - shared.get((a, 0), 0))
            if overlap > 0.5:
                pairs.append(Pair(a, b, overlap))
    return pairs


def _counts(segments: np.ndarray) -> tuple[list[int], list[int]]:
    numbers, areas = np.unique(segments, return_counts=True)
    return numbers.tolist(), areas.tolist()


@dataclass(frozen=True)
class PanopticMetric(CountMetric):
    """Panoptic maps of `classes`, of which `things` can be counted.

    A predicted segment is not counted if most of it lies on pixels without ground truth or in a crowd of its class.
    """

    classes: int
    things: tuple[int, ...]
    task = "panoptic"

    def zeros(self) -> np.ndarray:
        """See `CountMetric.zeros`: matches, false positives, false negatives, sums of IoU; float64 [classes, 4]."""
        return np.zeros((self.classes, 4))

    def count(self, result: PanopticMap, truth: PanopticMap) -> np.ndarray:
        """Counts the segments of one image.

        Returns:
            As `zeros`.

        Raises:
            ValueError: another shape or type, a class out of range, or a number without a segment.
        """
        for name, panoptic in (("result", result), ("truth", truth)):
            _check(name, panoptic, self.classes)
        if result.segments.shape != truth.segments.shape:
            expected, got = list(truth.segments.shape), list(result.segments.shape)
            raise ValueError(f"result must have the truth's shape {expected}, got {got}")
        predicted = {segment.id: segment.label for segment in result.table}
        true = {segment.id: segment.label for segment in truth.table if not segment.is_crowd}
        crowds = {segment.id: segment.label for segment in truth.table if segment.is_crowd}
        counts = self.zeros()
        matched = match_segments(result.segments, predicted, truth.segments, true)
        for number, _, overlap in matched:
            counts[predicted[number], [0, 3]] += (1, overlap)
        for number in true.keys() - {pair.second for pair in matched}:
            counts[true[number], 2] += 1
        for number in predicted.keys() - {pair.first for pair in matched}:
            label, own = predicted[number], truth.segments[result.segments == number]
            ignored = [0, *(crowd for crowd, its_label in crowds.items() if its_label == label)]
            if own.size and np.isin(own, ignored).mean() <= 0.5:
                counts[label, 1] += 1
        return counts

    def scores(self, counts: np.ndarray) -> Quality:
        """The figures of a data set, from the sum of the counts of its images."""
        matched, found_alone, true_alone, overlaps = counts.T
        of_segments = matched + (found_alone + true_alone) / 2
        occurs = of_segments > 0
        recognition = share(matched, of_segments)
        segmentation = np.where(matched > 0, overlaps / np.maximum(matched, 1), 0)
        by_class = share(overlaps, of_segments)
        is_thing = np.isin(np.arange(self.classes), self.things)
        figures = [
            float(values[chosen & occurs].mean()) if (chosen & occurs).any() else float("nan")
            for chosen in (np.ones_like(is_thing), is_thing, ~is_thing)
            for values in (by_class, segmentation, recognition)
        ]
        return Quality._make([*figures, by_class])

    def shown(self, scores: Quality) -> dict[str, str]:
        """See `Metric.shown`."""
        return {
            "PQ, %": percent(scores.pq),
            "SQ, %": percent(scores.sq),
            "RQ, %": percent(scores.rq),
            "PQ things, %": percent(scores.pq_things),
            "PQ stuff, %": percent(scores.pq_stuff),
        }


def _check(name: str, panoptic: PanopticMap, classes: int) -> None:
    segments, table = panoptic
    if segments.ndim != 2 or not np.issubdtype(segments.dtype, np.integer):
        raise ValueError(f"{name} must be integers [H, W], got {segments.dtype} {list(segments.shape)}")
    known = {segment.id for segment in table} | {0}
    unknown = sorted(set(np.unique(segments).tolist()) - known)
    if unknown:
        raise ValueError(f"every number of {name} must be a segment of its table, got {unknown[0]}")
    wrong = [segment.label for segment in table if not 0 <= segment.label < classes]
    if wrong:
        raise ValueError(f"classes of {name} must lie in 0..{classes - 1}, got {wrong[0]}")
