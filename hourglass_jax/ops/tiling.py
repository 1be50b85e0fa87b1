"""Tiles of clusters and the tokens that can reach each.

A token can join only the window x window clusters around its home cell. If the grid of clusters is divided into
square tiles, one rectangle of tokens can reach every tile, and the clustering is a batched product over the tiles
instead of one of all tokens with all clusters: a fifth to a tenth of the time on CPU (benchmarks/operators.py).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from hourglass_jax.ops.grids import Grid, home_cells


def tile_side(cells: int, reach: int) -> int:
    """The number of clusters along a side of a tile, the fastest for the published plans (benchmarks/operators.py).

    If a tile would need nearly all tokens, it is the whole axis.
    """
    side = 8 if cells <= 16 else 4
    return side if side + 2 * reach < cells else cells


class Axis(NamedTuple):
    """One axis of a tiling: the assignment of `tokens` positions and `cells` clusters to tiles.

    Eight clusters in tiles of two, 16 tokens, and a window of three: a token can join its home cell and one on each
    side, so that the tokens of four clusters can reach a tile of two.

        clusters   0   1 | 2   3 | 4   5 | 6   7
        tokens     0 1 2 3 4 5 6 7 8 9 . . . . . .
        tile 0     [---------)                         tokens whose home is cluster 0 .. 2
        tile 1         [---------------)               tokens whose home is cluster 1 .. 4

    All tiles have as many tokens as the widest one, `span`; the first and the last are padded with neighbours,
    which are not candidates there.
    """

    side: int  # clusters in a tile
    span: int  # tokens in a tile
    starts: Int[np.ndarray, " tiles"]  # first token of every tile
    tile: Int[np.ndarray, "tokens window"]  # the tile of every candidate of every token
    cell: Int[np.ndarray, "tokens window"]  # its index inside the tile
    place: Int[np.ndarray, "tokens window"]  # the token's index inside that tile
    exists: Bool[np.ndarray, "tokens window"]  # false beyond the border of the grid

    @classmethod
    def build(cls, tokens: int, cells: int, window: int) -> "Axis":
        reach = (window - 1) // 2
        side = tile_side(cells, reach)
        home = home_cells(tokens, cells)
        firsts = np.arange(0, cells, side)
        starts = np.searchsorted(home, firsts - reach)
        stops = np.searchsorted(home, np.minimum(firsts + side, cells) - 1 + reach, side="right")
        span = int((stops - starts).max())
        starts = np.minimum(starts, tokens - span)

        candidates = home[:, None] + np.arange(-reach, reach + 1)
        exists = (candidates >= 0) & (candidates < cells)
        tile, cell = np.divmod(np.clip(candidates, 0, cells - 1), side)
        return cls(side, span, starts, tile, cell, np.arange(tokens)[:, None] - starts[tile], exists)


class Tiling(NamedTuple):
    """Tiles of clusters, each with the rectangle of tokens that can reach it, and the two index tables between
    "per token, its window^2 candidates" and "per tile, tokens x clusters"."""

    cluster_grid: Grid
    rows: Axis
    columns: Axis
    slots: Int[np.ndarray, "tokens window2"]  # the flat index of every candidate in [tiles, span^2, side^2]
    exists: Bool[np.ndarray, "tokens window2"]
    sources: Int[np.ndarray, "tiles span2 side2"]  # the inverse of slots; H*W*window^2 if there is none
    is_candidate: Bool[np.ndarray, "tiles span2 side2"]
    positions: Int[np.ndarray, "tiles span2"]  # the tokens of every rectangle

    @classmethod
    def build(cls, token_grid: Grid, cluster_grid: Grid, window: int) -> "Tiling":
        rows = Axis.build(token_grid[0], cluster_grid[0], window)
        columns = Axis.build(token_grid[1], cluster_grid[1], window)

        def over_rows(table: np.ndarray) -> np.ndarray:
            return table[:, None, :, None]

        def over_columns(table: np.ndarray) -> np.ndarray:
            return table[None, :, None, :]

        tile = over_rows(rows.tile) * len(columns.starts) + over_columns(columns.tile)
        place = over_rows(rows.place) * columns.span + over_columns(columns.place)
        cell = over_rows(rows.cell) * columns.side + over_columns(columns.cell)
        shape = (len(rows.starts) * len(columns.starts), rows.span * columns.span, rows.side * columns.side)
        slots = ((tile * shape[1] + place) * shape[2] + cell).reshape(-1, window**2)
        exists = (over_rows(rows.exists) & over_columns(columns.exists)).reshape(slots.shape)

        sources = np.full(shape, slots.size)
        sources.reshape(-1)[slots[exists]] = np.flatnonzero(exists)
        slots = np.where(exists, slots, 0)

        y = rows.starts[:, None, None, None] + np.arange(rows.span)[:, None]
        x = columns.starts[:, None, None] + np.arange(columns.span)
        positions = (y * token_grid[1] + x).reshape(shape[:2])
        return cls(cluster_grid, rows, columns, slots, exists, sources, sources < slots.size, positions)

    def split_tokens(
        self, tokens: Float[Array, "batch tokens channels"]
    ) -> Float[Array, "batch tiles span2 channels"]:
        """[B, H*W, C] -> [B, tiles, span^2, C]; the rectangles of neighbouring tiles overlap."""
        return jnp.take(tokens, self.positions, axis=1, mode="clip")

    def split_clusters(
        self, clusters: Float[Array, "batch clusters channels"]
    ) -> Float[Array, "batch tiles side2 channels"]:
        """[B, h*w, C] -> [B, tiles, side^2, C], with zeros where the grid does not fill the last tiles."""
        batch, _, channels = clusters.shape
        down, across = len(self.rows.starts), len(self.columns.starts)
        image = clusters.reshape(batch, *self.cluster_grid, channels)
        missing = (down * self.rows.side - image.shape[1], across * self.columns.side - image.shape[2])
        image = jnp.pad(image, ((0, 0), (0, missing[0]), (0, missing[1]), (0, 0)))
        image = image.reshape(batch, down, self.rows.side, across, self.columns.side, channels)
        return image.swapaxes(2, 3).reshape(batch, down * across, -1, channels)

    def merge_clusters(
        self, tiles: Float[Array, "batch tiles side2 channels"]
    ) -> Float[Array, "batch clusters channels"]:
        """The inverse of `split_clusters`."""
        batch, _, _, channels = tiles.shape
        down, across = len(self.rows.starts), len(self.columns.starts)
        image = tiles.reshape(batch, down, across, self.rows.side, self.columns.side, channels).swapaxes(2, 3)
        image = image.reshape(batch, down * self.rows.side, across * self.columns.side, channels)
        height, width = self.cluster_grid
        return image[:, :height, :width].reshape(batch, height * width, channels)

    def softmax(
        self, affinity: Float[Array, "batch tiles span2 side2"], temperature: Float[Array, " batch"]
    ) -> Float[Array, "batch tiles span2 side2"]:
        """Softmax of [B, tiles, span^2, side^2] over the candidates of every token, zero for all other pairs."""
        batch = affinity.shape[0]
        candidates = affinity.reshape(batch, -1)[:, self.slots]
        # The maximum is subtracted before the division, so that small temperatures do not overflow.
        highest = jax.lax.stop_gradient(candidates.max(axis=-1, keepdims=True, where=self.exists, initial=-jnp.inf))
        gaps = jnp.where(self.exists, candidates - highest, 0)
        weights = jax.nn.softmax(gaps / temperature[:, None, None], axis=-1, where=self.exists)
        flat = jnp.pad(weights.reshape(batch, -1), ((0, 0), (0, 1)))
        return flat[:, self.sources]
