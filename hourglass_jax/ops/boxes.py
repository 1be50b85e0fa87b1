"""Boxes of detectors, (x1, y1, x2, y2) in pixels: anchors, the coding of regressed boxes, and their overlap.

Coordinates are continuous: a box is x2 - x1 pixels wide. Source: open-mmlab/mmdetection 2.28,
mmdet/core/anchor/anchor_generator.py and mmdet/core/bbox/coder/delta_xywh_bbox_coder.py.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float32

from hourglass_jax.ops.grids import Grid

LARGEST_CHANGE = float(np.log(1000 / 16))
"""Of the logarithm of a side that is regressed, in both directions."""


def anchor_boxes(
    grid: Grid, stride: int, *, scale: float = 8, ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> Float32[np.ndarray, "anchors 4"]:
    """The anchors of a map: at every position boxes of one area around its upper left corner.

    Args:
        grid: (H, W) of the map.
        stride: pixels on a side of a position.
        scale: sides of the square anchor, in strides.
        ratios: heights over widths.

    Returns:
        float32 [H * W * ratios, 4], row by row.
    """
    heights = stride * scale * np.sqrt(np.asarray(ratios))
    widths = stride * scale / np.sqrt(np.asarray(ratios))
    around = np.stack([-widths, -heights, widths, heights], axis=-1) / 2
    y, x = np.meshgrid(*(stride * np.arange(length) for length in grid), indexing="ij")
    centres = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return (centres + around).reshape(-1, 4).astype(np.float32)


def decode_boxes(
    boxes: Float[Array | np.ndarray, "*#any 4"],
    deltas: Float[Array | np.ndarray, "*#any 4"],
    stds: Sequence[float],
    size: Float[Array | np.ndarray, "2"],
) -> Float[Array, "*#any 4"]:
    """Boxes moved and scaled by what was regressed for them, clipped to the image.

    Args:
        boxes: [..., 4].
        deltas: shifts of the centre (x, y) in units of the box's sides, and logarithms of the sides' factors, each
            divided by its std.
        stds: of the four.
        size: (rows, columns) of the image in pixels.

    Returns:
        [..., 4]
    """
    scaled = deltas * jnp.asarray(stds, deltas.dtype)
    sides = boxes[..., 2:] - boxes[..., :2]
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2 + scaled[..., :2] * sides
    halves = sides * jnp.exp(jnp.clip(scaled[..., 2:], -LARGEST_CHANGE, LARGEST_CHANGE)) / 2
    corners = jnp.concatenate([centres - halves, centres + halves], axis=-1)
    return jnp.clip(corners, 0, jnp.asarray(size)[jnp.array([1, 0, 1, 0])])


def overlaps(
    a: Float[Array | np.ndarray, "*#any 4"], b: Float[Array | np.ndarray, "*#any 4"]
) -> Float[Array, "*#any"]:
    """Intersection over union of pairs of boxes, [..., 4] each; 0 of two boxes without an area."""
    sides = jnp.minimum(a[..., 2:], b[..., 2:]) - jnp.maximum(a[..., :2], b[..., :2])
    both = jnp.prod(jnp.maximum(sides, 0), axis=-1)
    areas = (jnp.prod(each[..., 2:] - each[..., :2], axis=-1) for each in (a, b))
    either = sum(areas) - both
    return jnp.where(either > 0, both / jnp.where(either > 0, either, 1), 0)
