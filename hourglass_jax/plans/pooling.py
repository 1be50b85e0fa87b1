"""The paper's baselines without parameters (Tables 4 and 5, Figure 6): pooling, and a smaller image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Self

import jax

from hourglass_jax.ops.grids import Grid, check_grid, fit_clusters, pooled_positions, shrink_grid
from hourglass_jax.ops.pooling import pool_tokens, upsample_tokens
from hourglass_jax.ops.resize import resize
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.checks import check_integer, check_share


@dataclass(frozen=True)
class Pooling(Plan):
    """Adaptive average pooling after block alpha, bilinear upsampling in the end.

    Attributes:
        alpha: blocks that run on all tokens before the pooling.
        clusters: (h, w), the pooled grid.

    Raises:
        ValueError: a field is out of range.
    """

    alpha: int
    clusters: Grid

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusters", check_grid("clusters", self.clusters))
        check_integer("alpha", self.alpha, 0)

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        if self.alpha >= depth:
            raise ValueError(f"alpha must be less than the backbone's {depth} blocks, got {self.alpha}")
        if token_grid is not None and any(few > all_ for few, all_ in zip(self.clusters, token_grid, strict=True)):
            raise ValueError(f"clusters must fit into the image's tokens {token_grid}, got {self.clusters}")

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        if index != self.alpha:
            return tokens
        grid = tokens.grid
        with jax.named_scope("clustering"):
            pooled = pool_tokens(tokens.values, token_grid=grid, cluster_grid=self.clusters)
        positions = pooled_positions(grid, self.clusters)[None]
        return tokens.with_values(pooled, positions=positions, restore=_upsampling(self.clusters, grid))

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        full, pooled = token_grid[0] * token_grid[1], self.clusters[0] * self.clusters[1]
        return [full] * self.alpha + [pooled] * (depth - self.alpha) + [full]

    def fitted(self, token_grid: Grid, made_for: Grid) -> Plan:
        """See `Plan.fitted`."""
        return replace(self, clusters=fit_clusters(self.clusters, made_for, token_grid))

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """A grid with a share of the tokens, after a third of the blocks; see `Plan.scaled`."""
        return cls(depth // 3, shrink_grid(token_grid, share))

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"alpha": range(depth)}


@dataclass(frozen=True)
class Downsampling(Plan):
    """Downsamples the image (bicubic, antialiased), and upsamples the final features bilinearly.

    In a hybrid, the feature map of the convolutional stem is downsampled instead of the image.

    Attributes:
        keep: approximate share of the tokens that are kept: the sides of the image become whole numbers of tokens.

    Raises:
        ValueError: a field is out of range.
    """

    keep: float

    def __post_init__(self) -> None:
        check_share("keep", self.keep)

    def before_embedding(self, pixels: jax.Array, side: int) -> jax.Array:
        """See `Plan.before_embedding`."""
        rows, columns = shrink_grid((pixels.shape[1] // side, pixels.shape[2] // side), self.keep)
        return resize(pixels, (rows * side, columns * side), "bicubic-antialias")

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        if index:
            return tokens
        return replace(tokens, restore=_upsampling(shrink_grid(tokens.grid, self.keep), tokens.grid))

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        rows, columns = shrink_grid(token_grid, self.keep)
        return [rows * columns] * depth + [token_grid[0] * token_grid[1]]

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """See `Plan.scaled`."""
        return cls(share)


def _upsampling(few: Grid, full: Grid) -> Callable[[jax.Array], jax.Array]:
    def restore(values: jax.Array) -> jax.Array:
        with jax.named_scope("reconstruction"):
            return upsample_tokens(values, cluster_grid=few, token_grid=full)

    return restore
