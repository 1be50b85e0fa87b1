"""Semantic segmentation by queries: every pixel gets the class that the queries there vote for."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field
from itertools import product

import numpy as np

from hourglass_jax.imaging.windows import Layout, whole_layout
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.tasks.base import only_view
from hourglass_jax.tasks.queries import BAND, QueryOutputs, bands, sigmoid, softmax
from hourglass_jax.tasks.segmentation import Segmentation


@dataclass(frozen=True)
class QuerySegmentation(Segmentation):
    """Queries to a label map, as `Segmentation` has it: the sum over queries of class times mask probability.

    Attributes:
        alone: whether the model is for this task only. Then the scores of classes are resized to the photograph,
            otherwise the mask logits before them, as in the official code.

    Source: facebookresearch/Mask2Former, mask2former/maskformer_model.py (semantic_inference, forward).
    """

    alone: bool = dataclass_field(default=True, kw_only=True)

    def postprocess(self, outputs: QueryOutputs, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; the scores of several views are averaged where these overlap."""
        scores = softmax(np.asarray(outputs.class_logits))[..., :-1]
        _, queries, classes = scores.shape
        labels = np.zeros(size, np.uint8 if classes <= 256 else np.uint16)
        if not self.alone:
            for rows, logits in bands(only_view(outputs.mask_logits), layout, size):
                labels[rows] = _votes(scores[0], logits).argmax(axis=0)
            return labels
        down, across = (
            resize_matrix(length, target, "bilinear").astype(np.float32)
            for length, target in zip(layout.image, size, strict=True)
        )
        step = max(1, BAND // (max(queries, classes) * max(size[1], layout.image[1])))
        for start in range(0, size[0], step):
            part = down[start : start + step]
            used = np.flatnonzero(part.any(axis=0))
            near = slice(used[0], used[-1] + 1)
            votes = _votes_of_views(scores, outputs.mask_logits, layout, near)
            labels[start : start + step] = (part[:, near] @ votes @ across.T).argmax(axis=0)
        return labels


def _votes_of_views(scores: np.ndarray, masks: np.ndarray, layout: Layout, rows: slice) -> np.ndarray:
    """The scores of classes for some rows of the image, the mean of the views there: [classes, rows, columns]."""
    votes = np.zeros((scores.shape[2], rows.stop - rows.start, layout.image[1]), np.float32)
    counts = np.zeros(votes.shape[1:], np.float32)
    height, width = layout.view
    for own, mask, (top, left) in zip(scores, masks, product(layout.tops, layout.lefts), strict=True):
        within = slice(max(0, rows.start - top), max(0, min(height, rows.stop - top)))
        for part, logits in bands(mask, whole_layout(layout.view), layout.view, within=within):
            there = slice(part.start + top - rows.start, part.stop + top - rows.start)
            votes[:, there, left : left + width] += _votes(own, logits)
            counts[there, left : left + width] += 1
    return votes / counts


def _votes(scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The scores of classes [classes, rows, columns] of class probabilities [Q, classes] and mask logits."""
    return np.tensordot(scores, sigmoid(logits), axes=(0, 0))
