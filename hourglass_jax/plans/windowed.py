"""A plan inside the windows of a map: the clusters of all windows are a smaller map."""

import math
from dataclasses import dataclass

import jax
import numpy as np

from hourglass_jax.ops.grids import Grid, pooled_positions
from hourglass_jax.ops.windows import merge, partition, window_grid
from hourglass_jax.plans.base import Block, Tokens
from hourglass_jax.plans.wrapped import WrappedPlan


@dataclass(frozen=True)
class WindowedPlan(WrappedPlan):
    """A plan that works in windows (`Plan.in_windows`), on the tokens of whole maps.

    To the plan, every window is an image: before its first block on fewer tokens, the map is cut into windows,
    filled up with zeros below and on the right, and every window is clustered. From then on the clusters of all
    windows, padding included, are the tokens of one smaller map.

    Attributes:
        side: of a window, in tokens.

    Source: Expedit-SAM, segment_anything/modeling/image_encoder.py.
    """

    side: int

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        self.plan.in_windows(depth)
        self.plan.check(depth)
        self.plan.check_windows(self.side)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        if index != self.plan.in_windows(tokens.depth).start:
            return self.plan.before_block(index, tokens, block)
        windows = partition(as_map(tokens.values, tokens.grid), self.side)
        entering = Tokens.whole(windows, (self.side, self.side), depth=tokens.depth)
        clustered = self.plan.before_block(index, entering, block)
        kept = math.isqrt(clustered.count)
        down, across = window_grid(tokens.grid, self.side)
        cells = down * kept, across * kept

        def restore(values: jax.Array) -> jax.Array:
            restored = clustered.restore(partition(as_map(values, cells), kept))
            return as_tokens(merge(restored, tokens.grid, self.side))

        return tokens.with_values(
            as_tokens(merge(clustered.sequence, cells, kept)),
            positions=self._positions((down, across), kept),
            restore=restore,
        )

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        inside, windows = self.plan.in_windows(depth), math.prod(window_grid(token_grid, self.side))
        by_window = self.plan.counts(depth, (self.side, self.side))
        return [
            windows * by_window[index] if index in inside else math.prod(token_grid) for index in range(depth + 1)
        ]

    def _positions(self, windows: Grid, kept: int) -> np.ndarray:
        """Where the clusters of all windows lie on the map of tokens, float32 [1, clusters, 2]."""
        own = pooled_positions((self.side, self.side), (kept, kept)).reshape(1, kept, 1, kept, 2)
        corners = np.stack(np.meshgrid(*map(np.arange, windows), indexing="ij"), axis=-1)[:, None, :, None]
        return (own + np.float32(self.side) * corners).astype(np.float32).reshape(1, -1, 2)


def as_map(tokens: jax.Array, grid: Grid) -> jax.Array:
    """[B, H*W, C] -> [B, H, W, C]"""
    return tokens.reshape(tokens.shape[0], *grid, tokens.shape[-1])


def as_tokens(maps: jax.Array) -> jax.Array:
    """[B, H, W, C] -> [B, H*W, C]"""
    return maps.reshape(maps.shape[0], -1, maps.shape[-1])


def cells_of(tokens: Tokens, side: int) -> tuple[Grid, int]:
    """The map that tokens under a `WindowedPlan` are, (rows, columns), and the side of its windows."""
    if tokens.is_whole:
        return tokens.grid, side
    down, across = window_grid(tokens.grid, side)
    kept = math.isqrt(tokens.count // (down * across))
    return (down * kept, across * kept), kept
