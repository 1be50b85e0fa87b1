"""Attention on a map of tokens with decomposed relative positions, over all of the map or inside its windows.

The bias of a pair of tokens is the query's product with a vector of the rows between them, and with one of the
columns. So the bias of a query is a sum of two short vectors, one for each row of keys and one for each column, and
the array of all pairs of all heads, which would be the largest of the whole encoder, is never made.

Source: facebookresearch/segment-anything, segment_anything/modeling/image_encoder.py.
"""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hourglass_jax.ops.attention import row_maximum
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import resize
from hourglass_jax.ops.windows import window_grid

QUERY_CHUNK = 512
"""At about this many queries of a head are handled at once, in whole rows of the map."""


def resized_table(table: Float[Array, "offsets width"], side: int) -> Float[Array, "{2*side-1} width"]:
    """A table of relative positions for `side` tokens along an axis, resized linearly where it is of others."""
    return resize(table[None, :, None], (2 * side - 1, 1), "bilinear")[0, :, 0]


def grid_attention(
    query: Float[Array, "batch heads width tokens"],
    key: Float[Array, "batch heads width tokens"],
    value: Float[Array, "batch heads width tokens"],
    *,
    grid: Grid,
    rows: Float[Array, "row_offsets width"],
    columns: Float[Array, "column_offsets width"],
    window: int | None = None,
    padding: Float[Array, "3 heads width"] | None = None,
) -> Float[Array, "batch tokens heads width"]:
    """softmax(query^T key / sqrt(D) + position bias) value^T, for every head.

    The bias of tokens p and q is query_p . rows[y_p - y_q + h - 1] + query_p . columns[x_p - x_q + w - 1], where
    h and w are the sides of the window, or of the map.

    Args:
        query, key, value: [B, heads, D, H*W], row by row.
        grid: (H, W).
        rows: [2h - 1, D], or a table of another length, which is resized linearly.
        columns: [2w - 1, D], likewise.
        window: side of the windows that tokens attend in, or None for the whole map.
        padding: [3, heads, D], query, key and value of the tokens by which a map is filled up to whole windows,
            below and on the right; they are attended to like others.

    Returns:
        [B, H*W, heads, D] in the dtype of `query`.
    """
    batch, heads, width, count = query.shape
    sides = grid if window is None else (window, window)
    by_pair = [
        _by_pair(resized_table(table.astype(jnp.float32), side), side).astype(query.dtype)
        for table, side in zip((rows, columns), sides, strict=True)
    ]

    def one_head(inputs: tuple[Array, ...]) -> Array:
        """What a head mixes, [N, D]."""
        if window is None:
            q, k, v = inputs[:3]
            return jnp.concatenate([mix(q[:, at], k, v, top) for at, top in _chunks(grid)])
        q, k, v = (_partition(each, grid, window, fill) for each, fill in zip(inputs[:3], inputs[3:], strict=True))
        return _merge(jax.vmap(lambda q, k, v: mix(q, k, v, 0))(q, k, v), grid, window)

    def mix(q: Array, k: Array, v: Array, top: int) -> Array:
        """What the queries [D, n] of whole rows from `top` on mix, [n, D]."""
        places = q.reshape(width, -1, sides[1])
        below = top + places.shape[1]
        down = jnp.einsum("dyx,ykd->yxk", places, by_pair[0][top:below], preferred_element_type=jnp.float32)
        across = jnp.einsum("dyx,xkd->yxk", places, by_pair[1], preferred_element_type=jnp.float32)
        # The columns' part goes into the product, as channels of which every key has a one: a quarter less time.
        named = across.reshape(q.shape[1], -1).T.astype(q.dtype)
        q = jnp.concatenate([q * width**-0.5, named])
        k = jnp.concatenate([k, jnp.tile(jnp.eye(sides[1], dtype=k.dtype), (1, sides[0]))])
        logits = jnp.einsum("dn,dm->nm", q, k, preferred_element_type=jnp.float32)
        logits = (logits.reshape(*down.shape, sides[1]) + down[..., None]).reshape(q.shape[1], -1)
        weights = jnp.exp(logits - row_maximum(logits))
        mixed = jnp.einsum("nm,dm->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

    inputs = tuple(each.reshape(batch * heads, width, count) for each in (query, key, value))
    if window is not None:
        fills = jnp.zeros((3, heads, width)) if padding is None else padding
        inputs += tuple(jnp.tile(fills.astype(query.dtype), (1, batch, 1)))
    return jax.lax.map(one_head, inputs).reshape(batch, heads, count, width).swapaxes(1, 2)


def _by_pair(table: Float[Array, "offsets width"], side: int) -> Float[Array, "{side} {side} width"]:
    """The vectors of every pair of places along an axis, of a query's and a key's."""
    places = np.arange(side)
    return table[places[:, None] - places + side - 1]


def _chunks(grid: Grid) -> list[tuple[slice, int]]:
    """Queries of a few whole rows each, and the first of the rows."""
    height, width = grid
    count = max(1, -(-height * width // QUERY_CHUNK))
    tops = np.linspace(0, height, min(count, height) + 1).astype(int).tolist()
    return [(slice(top * width, below * width), top) for top, below in pairwise(tops)]


def _partition(
    tokens: Float[Array, "width tokens"], grid: Grid, window: int, fill: Float[Array, " width"]
) -> Float[Array, "windows width {window**2}"]:
    """The windows of a map whose channels come first; it is filled up below and on the right."""
    width = len(tokens)
    down, across = window_grid(grid, window)
    missing = down * window - grid[0], across * window - grid[1]
    maps = tokens.reshape(width, *grid)
    if any(missing):
        inside = np.pad(np.ones(grid, bool), [(0, each) for each in missing])
        maps = jnp.pad(maps, ((0, 0), (0, missing[0]), (0, missing[1])))
        maps = jnp.where(inside, maps, fill[:, None, None])
    maps = maps.reshape(width, down, window, across, window).transpose(1, 3, 0, 2, 4)
    return maps.reshape(down * across, width, window**2)


def _merge(
    windows: Float[Array, "windows {window**2} width"], grid: Grid, window: int
) -> Float[Array, "{grid[0]*grid[1]} width"]:
    """The map of windows, without what it was filled up with."""
    down, across = window_grid(grid, window)
    maps = windows.reshape(down, across, window, window, -1).transpose(0, 2, 1, 3, 4)
    maps = maps.reshape(down * window, across * window, -1)
    return maps[: grid[0], : grid[1]].reshape(grid[0] * grid[1], -1)
