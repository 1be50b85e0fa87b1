"""What models with queries say of an image, a mask and a class each, and how masks get a photograph's size."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from hourglass_jax.imaging.windows import Layout
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.tasks.base import only_view

BAND = 2**23
"""Mask logits that are enlarged at once: those of all queries for a whole photograph would take gigabytes."""
STRIDE = 4
"""Pixels of the padded image on a side of one position of the mask logits."""


class QueryOutputs(NamedTuple):
    """The outputs of a model with queries.

    Attributes:
        class_logits: float32 [B, Q, classes + 1]; the last class is "no object".
        mask_logits: float32 [B, Q, H, W] of the image padded on the right and below, `STRIDE` pixels a position.
    """

    class_logits: Any
    mask_logits: Any


def class_scores(outputs: QueryOutputs) -> np.ndarray:
    """The probability of every class, "no object" included, for the queries of the only view: [Q, classes + 1]."""
    return softmax(only_view(outputs.class_logits))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities that sum to one along the last axis, float32."""
    weights = np.exp(logits.astype(np.float32) - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-logits)), float32."""
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-logits.astype(np.float32)))


def bands(
    masks: np.ndarray, layout: Layout, size: tuple[int, int], *, within: slice = slice(None)
) -> Iterator[tuple[slice, np.ndarray]]:
    """Mask logits at the size of a photograph, some of its rows at a time.

    They are enlarged to the padded image, cropped to the image and resized to the photograph, all bilinearly.

    Args:
        masks: [Q, H, W], of the padded image.
        layout: of the only view.
        size: (rows, columns) of the photograph.
        within: the rows that are wanted.

    Yields:
        Rows, and their logits [Q, rows, columns], float32.
    """
    rows, columns = (
        _matrix(length, count, target)
        for length, count, target in zip(masks.shape[1:], layout.image, size, strict=True)
    )
    step = max(1, BAND // max(1, len(masks) * size[1]))
    first, last, _ = within.indices(size[0])
    for start in range(first, last, step):
        part = slice(start, min(start + step, last))
        used = np.flatnonzero(rows[part].any(axis=0))
        near = slice(used[0], used[-1] + 1)
        yield part, rows[part, near] @ masks[:, near] @ columns.T


def _matrix(positions: int, image: int, target: int) -> np.ndarray:
    """What every pixel of the photograph takes of every position along one axis, float32 [target, positions]."""
    padded = resize_matrix(positions, positions * STRIDE, "bilinear")[:image]
    return (resize_matrix(image, target, "bilinear") @ padded).astype(np.float32)
