"""Panoptic quality by its definition (arXiv 1801.00868) and the rules of COCO's evaluation, pixel by pixel.

Source: cocodataset/panopticapi, panopticapi/evaluation.py.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

Rows = Sequence[Sequence[int]]


class Labelled(NamedTuple):
    """A panoptic map: the segment of every pixel (0: none), the class of every segment, and which are crowds."""

    rows: Rows
    classes: Mapping[int, int]
    crowds: frozenset[int] = frozenset()


class ClassCounts(NamedTuple):
    """Matched segments, unmatched predictions, unmatched ground truth, and the sum of the matched overlaps."""

    matched: int
    false_positives: int
    false_negatives: int
    overlap: float


def count_class(label: int, images: Iterable[tuple[Labelled, Labelled]]) -> ClassCounts:
    """The counts of one class over pairs of prediction and ground truth."""
    matched, false_positives, false_negatives, overlap = 0, 0, 0, 0.0
    for prediction, truth in images:
        pairs = Counter(
            pair for row in zip(prediction.rows, truth.rows, strict=True) for pair in zip(*row, strict=True)
        )
        areas, true_areas = Counter(), Counter()
        for (segment, true_segment), pixels in pairs.items():
            areas[segment] += pixels
            true_areas[true_segment] += pixels
        segments = {number for number, its_class in prediction.classes.items() if its_class == label}
        of_class = {number for number, its_class in truth.classes.items() if its_class == label}
        missing, spare = of_class - truth.crowds, set(segments)
        for segment in segments:
            for true_segment in of_class - truth.crowds:
                common = pairs[segment, true_segment]
                union = areas[segment] + true_areas[true_segment] - common - pairs[segment, 0]
                if common and 2 * common > union:
                    matched += 1
                    overlap += common / union
                    missing.discard(true_segment)
                    spare.discard(segment)
        false_negatives += len(missing)
        for segment in spare:
            ignored = pairs[segment, 0] + sum(pairs[segment, crowd] for crowd in of_class & truth.crowds)
            false_positives += 2 * ignored <= areas[segment]
    return ClassCounts(matched, false_positives, false_negatives, overlap)


def quality(images: Sequence[tuple[Labelled, Labelled]], labels: Iterable[int]) -> tuple[float, float, float]:
    """PQ, SQ and RQ: means over those of the classes that occur."""
    figures = []
    for label in labels:
        matched, false_positives, false_negatives, overlap = count_class(label, images)
        segments = matched + (false_positives + false_negatives) / 2
        if segments:
            figures.append((overlap / segments, overlap / matched if matched else 0.0, matched / segments))
    pq, sq, rq = (sum(column) / len(figures) for column in zip(*figures, strict=True))
    return pq, sq, rq
