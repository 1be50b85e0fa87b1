"""Semantic segmentation by queries: every pixel gets the class that the queries there vote for."""

from dataclasses import dataclass
from dataclasses import field as dataclass_field

import numpy as np

from hourglass_jax.imaging.windows import Layout, whole_layout
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.tasks.queries import BAND, QueryOutputs, bands, class_scores, sigmoid
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
        """See `Task.postprocess`."""
        scores, masks = class_scores(outputs)[:, :-1], outputs.mask_logits[0]
        labels = np.zeros(size, np.uint8 if scores.shape[1] <= 256 else np.uint16)
        if not self.alone:
            for rows, logits in bands(masks, layout, size):
                labels[rows] = _votes(scores, logits).argmax(axis=0)
            return labels
        down, across = (
            resize_matrix(length, target, "bilinear").astype(np.float32)
            for length, target in zip(layout.image, size, strict=True)
        )
        seen = whole_layout(layout.image)
        step = max(1, BAND // (max(scores.shape) * max(size[1], layout.image[1])))
        for start in range(0, size[0], step):
            part = down[start : start + step]
            used = np.flatnonzero(part.any(axis=0))
            near = slice(used[0], used[-1] + 1)
            votes = np.concatenate(
                [_votes(scores, logits) for _, logits in bands(masks, seen, layout.image, within=near)], axis=1
            )
            labels[start : start + step] = (part[:, near] @ votes @ across.T).argmax(axis=0)
        return labels


def _votes(scores: np.ndarray, logits: np.ndarray) -> np.ndarray:
    """The scores of classes [classes, rows, columns] of class probabilities [Q, classes] and mask logits."""
    return np.tensordot(scores, sigmoid(logits), axes=(0, 0))
