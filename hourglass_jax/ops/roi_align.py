"""RoIAlign: the features of a box as a small map of bins, each the mean of samples between the positions of a map.

Samples stand in rows and columns, and interpolation is bilinear: what a box's bins take of a map's rows is one
small matrix, what they take of its columns another. They are applied to the map under the box, tile by tile.

Source: open-mmlab/mmcv 1.7, mmcv/ops/csrc/pytorch/cpu/roi_align.cpp with aligned=True and sampling_ratio=0.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

TILE = 16
"""Positions of a map on a side of what is read at once."""
NEAREST = 56.0
"""A box as large as a square of this side, in pixels, or up to twice that, is read from the finest map."""


def roi_align(
    maps: Sequence[Float[Array, "_ _ channels"]],
    boxes: Float[Array, "boxes 4"],
    levels: Int32[Array, " boxes"],
    strides: Sequence[int],
    bins: int,
) -> Float[Array, "boxes {bins} {bins} channels"]:
    """The features of boxes, each read from one of several maps.

    Along either axis a bin has as many samples as it covers positions, rounded up. A sample more than one position
    outside of the map is zero; one within that is moved to the border. A box without a side is all zeros.

    Args:
        maps: of an image, [H, W, C].
        boxes: [N, 4] in pixels.
        levels: [N], the map of each.
        strides: pixels on a side of a position of every map.
        bins: on a side of what is made of a box.

    Returns:
        [N, bins, bins, C] in the dtype of the maps.
    """
    padded = [jnp.pad(each, [(0, max(0, TILE - side)) for side in each.shape[:2]] + [(0, 0)]) for each in maps]
    order = jnp.argsort(levels, stable=True)
    counts = jnp.sum(levels[:, None] == jnp.arange(len(maps)), axis=0)
    ends = jnp.cumsum(counts)
    found = jnp.zeros((len(boxes), bins, bins, maps[0].shape[-1]), maps[0].dtype)
    for level, (features, whole, stride) in enumerate(zip(padded, maps, strides, strict=True)):

        def read(number: Array, found: Array, features=features, whole=whole, stride=stride) -> Array:
            place = order[number]
            box = boxes[place] / stride - 0.5
            return found.at[place].set(_read(features, (whole.shape[0], whole.shape[1]), box, bins))

        found = jax.lax.fori_loop(ends[level] - counts[level], ends[level], read, found)
    return found


def roi_levels(boxes: Float[Array, "*any 4"], maps: int) -> Int32[Array, "*any"]:
    """Which of several maps, each half as fine as the one before, a box is read from, by its area."""
    area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    level = jnp.floor(jnp.log2(jnp.sqrt(area) / NEAREST + 1e-6))
    return jnp.clip(level, 0, maps - 1).astype(jnp.int32)


def _read(
    features: Float[Array, "_ _ channels"], grid: tuple[int, int], box: Float[Array, "4"], bins: int
) -> Float[Array, "{bins} {bins} channels"]:
    """The bins of a box in units of positions, from a map of `grid` positions that is filled up to whole tiles."""
    starts, ends = box[1::-1], box[:1:-1]
    lengths = jnp.array(grid)
    first = jnp.floor(jnp.clip(starts, 0, lengths - 1)).astype(jnp.int32)
    last = jnp.minimum(jnp.floor(jnp.clip(ends, 0, lengths - 1)).astype(jnp.int32) + 1, lengths - 1)
    tiles = (last - first) // TILE + 1
    channels = features.shape[-1]

    def along(axis: int, tile: Array) -> tuple[Array, Array]:
        """Where a tile is read along an axis, and what the bins take of its positions."""
        wanted = first[axis] + tile * TILE
        start = jnp.minimum(wanted, features.shape[axis] - TILE)
        positions = start + jnp.arange(TILE)
        weights = bin_weights(starts[axis], ends[axis], grid[axis], bins, positions)
        return start, jnp.where(positions >= wanted, weights, 0).astype(features.dtype)

    def add(number: Array, found: Array) -> Array:
        row, column = jnp.divmod(number, tiles[1])
        top, rows = along(0, row)
        left, columns = along(1, column)
        part = jax.lax.dynamic_slice(features, (top, left, 0), (TILE, TILE, channels))
        part = jnp.dot(rows, part.reshape(TILE, -1), precision="highest").reshape(bins, TILE, channels)
        return found + jnp.einsum("bpc,dp->bdc", part, columns, precision="highest")

    zeros = jnp.zeros((bins, bins, channels), features.dtype)
    return jax.lax.fori_loop(0, tiles[0] * tiles[1], add, zeros)


SAMPLES = 7
"""Samples that may take of one position: they are more than half a position apart, or one in a bin."""


def bin_weights(
    start: Float[Array, ""],
    end: Float[Array, ""],
    length: int,
    bins: int,
    positions: Int32[Array, " positions"],
) -> Float[Array, "{bins} positions"]:
    """What the bins of a box take of some positions along one axis.

    Args:
        start: of the box, in positions, 0 being the middle of the first one.
        end: likewise.
        length: positions of the whole axis.
        bins: of the box.
        positions: [P], any of the axis.

    Returns:
        float32 [bins, P]
    """
    side = (end - start) / bins
    count = jnp.ceil(side)
    step = side / jnp.maximum(count, 1)
    origin = start + jnp.arange(bins, dtype=jnp.float32)[:, None, None] * side
    centre = positions[:, None].astype(jnp.float32)
    near = jnp.floor((centre - 1 - origin) / jnp.where(step > 0, step, 1) - 0.5)
    samples = jnp.maximum(near, 0) + jnp.arange(SAMPLES)
    places = origin + (samples + 0.5) * step
    is_sample = (samples < count) & (places >= -1) & (places <= length)
    taken = jnp.maximum(0, 1 - jnp.abs(jnp.clip(places, 0, length - 1) - centre))
    return jnp.sum(jnp.where(is_sample, taken, 0), axis=-1) / jnp.maximum(count, 1)
