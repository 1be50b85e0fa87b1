"""Detection: boxes of things with a class, a score and a mask, which is pasted into its box."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.detections import DetectionMetric
from hourglass_jax.metrics.instances import InstanceMetric, InstanceSet
from hourglass_jax.metrics.mask_crops import MaskCrop, MaskCrops
from hourglass_jax.tasks.base import only_view
from hourglass_jax.tasks.instances import Instances

INSIDE = 0.5
"""The least probability of a mask's pixels."""


class DetectionOutputs(NamedTuple):
    """The outputs of a detector, the best first; what it did not find has the score 0.

    Attributes:
        boxes: float32 [B, D, 4], (x1, y1, x2, y2) in pixels of the image.
        scores: float32 [B, D], in 0..1.
        labels: int32 [B, D], classes.
        masks: float32 [B, D, S, S], the probability of every part of a box.
    """

    boxes: Any
    scores: Any
    labels: Any
    masks: Any


@dataclass(frozen=True)
class Detections(Instances):
    """What a detector found, at the size of the photograph. Further attributes are those of `Instances`.

    Source: open-mmlab/mmdetection 2.28, mmdet/models/roi_heads/mask_heads/fcn_mask_head.py (`get_seg_masks`).
    """

    def postprocess(self, outputs: DetectionOutputs, layout: Layout, size: tuple[int, int]) -> InstanceSet:
        """See `Task.postprocess`."""
        boxes, scores, labels, masks = (only_view(each) for each in outputs)
        found = scores > 0
        rows, columns = (np.float32(seen) / np.float32(side) for seen, side in zip(layout.image, size, strict=True))
        boxes = boxes[found] / np.array([columns, rows, columns, rows], np.float32)
        crops = [paste(mask, box, size) for mask, box in zip(masks[found], boxes, strict=True)]
        return InstanceSet(boxes, scores[found], labels[found].astype(np.int32), MaskCrops(size, crops))

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: boxes are compared, too."""
        return DetectionMetric(published.classes) if isinstance(published, InstanceMetric) else published


def paste(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> MaskCrop:
    """A mask of a box at the pixels of a photograph: bilinear between its parts, and nothing outside.

    Args:
        mask: float32 [S, S], probabilities.
        box: float32 [4], (x1, y1, x2, y2) in pixels.
        size: (rows, columns) of the photograph.

    Returns:
        What is inside, around the box; nothing of a box without a side.
    """
    starts, ends = box[1::-1], box[:1:-1]
    if not (ends > starts).all():
        return MaskCrop(np.zeros((0, 0), bool), 0, 0)
    first = np.maximum(np.floor(starts).astype(int) - 1, 0)
    last = np.minimum(np.ceil(ends).astype(int) + 1, size)
    rows, columns = (
        _weights(start, end, low, high, parts)
        for start, end, low, high, parts in zip(starts, ends, first, last, mask.shape, strict=True)
    )
    return MaskCrop(rows @ mask @ columns.T >= INSIDE, int(first[0]), int(first[1]))


def _weights(start: np.float32, end: np.float32, low: int, high: int, parts: int) -> np.ndarray:
    """What the pixels low .. high - 1 take of the parts of a box along an axis, float32 [pixels, parts]."""
    centres = np.arange(low, max(low, high), dtype=np.float32) + np.float32(0.5)
    places = (centres - start) / (end - start) * np.float32(parts) - np.float32(0.5)
    return np.maximum(0, 1 - np.abs(places[:, None] - np.arange(parts, dtype=np.float32)))
