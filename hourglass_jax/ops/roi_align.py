"""RoIAlign: the features of a box as a small map of bins, each the mean of samples between the positions of a map.

Samples stand in rows and columns, and interpolation is bilinear: what a box's bins take of a map's rows is one
small matrix, what they take of its columns another. They are applied to the map under the box, tile by tile.

Source: open-mmlab/mmcv 1.7, mmcv/ops/csrc/pytorch/cpu/roi_align.cpp with aligned=True and sampling_ratio=0.
"""

from collections.abc import Callable, Sequence
from functools import partial

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
    grids = [(each.shape[0], each.shape[1]) for each in maps]
    padded = [
        jnp.pad(each, [(0, max(0, TILE - side)) for side in grid] + [(0, 0)])
        for each, grid in zip(maps, grids, strict=True)
    ]
    tiles = [partial(_tile, each) for each in padded]
    lengths = jnp.array(grids, jnp.int32)
    places = boxes / jnp.array(strides, boxes.dtype)[levels][:, None] - 0.5

    def read(each: tuple[Array, Array]) -> Array:
        box, level = each
        return _read(lambda top, left: jax.lax.switch(level, tiles, top, left), lengths[level], box, bins)

    return jax.lax.map(read, (places, levels))


def roi_levels(boxes: Float[Array, "*any 4"], maps: int) -> Int32[Array, "*any"]:
    """Which of several maps, each half as fine as the one before, a box is read from, by its area."""
    area = jnp.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    level = jnp.floor(jnp.log2(jnp.sqrt(area) / NEAREST + 1e-6))
    return jnp.clip(level, 0, maps - 1).astype(jnp.int32)


def _tile(image: Float[Array, "_ _ channels"], top: Array, left: Array) -> Float[Array, "_ _ channels"]:
    """Some of the positions of a map."""
    return jax.lax.dynamic_slice(image, (top, left, 0), (TILE, TILE, image.shape[-1]))


def _read(
    tile_at: Callable[[Array, Array], Array], lengths: Int32[Array, "2"], box: Float[Array, "4"], bins: int
) -> Float[Array, "{bins} {bins} channels"]:
    """The bins of a box, in positions of a map of `lengths` of which `tile_at` gives tiles."""
    starts, ends = box[1::-1], box[:1:-1]
    first = jnp.floor(jnp.clip(starts, 0, lengths - 1)).astype(jnp.int32)
    last = jnp.minimum(jnp.floor(jnp.clip(ends, 0, lengths - 1)).astype(jnp.int32) + 1, lengths - 1)
    counts = (last - first) // TILE + 1

    def along(axis: int, number: Array) -> tuple[Array, Array]:
        """Where a tile begins along an axis, and what the bins take of its positions."""
        wanted = first[axis] + number * TILE
        start = jnp.clip(wanted, 0, jnp.maximum(lengths[axis] - TILE, 0))
        positions = start + jnp.arange(TILE)
        weights = bin_weights(starts[axis], ends[axis], lengths[axis], bins, positions)
        return start, jnp.where(positions >= wanted, weights, 0)

    def add(number: Array, found: Array) -> Array:
        row, column = jnp.divmod(number, counts[1])
        top, rows = along(0, row)
        left, columns = along(1, column)
        part = tile_at(top, left)
        part = jnp.dot(rows.astype(part.dtype), part.reshape(TILE, -1), precision="highest")
        part = part.reshape(bins, TILE, -1)
        return found + jnp.einsum("bpc,dp->bdc", part, columns.astype(part.dtype), precision="highest")

    kind = jax.eval_shape(tile_at, first[0], first[1])
    zeros = jnp.zeros((bins, bins, kind.shape[-1]), kind.dtype)
    return jax.lax.fori_loop(0, counts[0] * counts[1], add, zeros)


SAMPLES = 7
"""Samples that may take of one position: they are more than half a position apart, or one in a bin."""


def bin_weights(
    start: Float[Array, ""],
    end: Float[Array, ""],
    length: Int32[Array, ""],
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
