"""The paper's plan, the hourglass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import jax
import numpy as np

from hourglass_jax.ops.clustering import Representative, cluster_tokens, resolve_temperature
from hourglass_jax.ops.grids import Grid, check_grid, fit_clusters, pooled_positions, shrink_grid
from hourglass_jax.ops.reconstruction import reconstruct_tokens
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.checks import check_integer, check_reconstruction, is_integer


@dataclass(frozen=True)
class Hourglass(Plan):
    """The plan of arXiv 2210.01035: cluster after block alpha, reconstruct after block alpha + beta.

    Attributes:
        alpha: blocks that run on all tokens before the clustering.
        clusters: (h, w), the grid of clusters.
        beta: blocks that run on the clusters; None means all that remain.
        window: side of the square of clusters that a token may join (lambda = window^2); odd.
        iterations: kappa, the number of k-means iterations.
        temperature: tau, a divisor in units of squared feature distance, or "auto" (`ops.auto_temperature`). Within
            a compiled function it may be an array, to compute gradients; such a plan has no hash.
        neighbors: k, the number of clusters that a token is reconstructed from.
        representative: "mean" (the paper's) or "medoid"; see `ops.cluster_tokens`.
        reconstruct: "tokens" restores the full grid after block alpha + beta (the paper's Figure 2). "logits"
            leaves the clusters to the head, which restores its own result (the official Segmenter); then beta must
            be None.

    Raises:
        ValueError: a field is out of range.
    """

    alpha: int
    clusters: Grid
    beta: int | None = None
    window: int = 5
    iterations: int = 5
    temperature: float | Literal["auto"] = "auto"
    neighbors: int = 20
    representative: Representative = "mean"
    reconstruct: Literal["tokens", "logits"] = "tokens"

    def __post_init__(self) -> None:
        object.__setattr__(self, "clusters", check_grid("clusters", self.clusters))

        def require(field: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ValueError(f"{field} must be {expected}, got {getattr(self, field)!r}")

        check_integer("alpha", self.alpha, 0)
        require("beta", self.beta is None or is_integer(self.beta, 1), "None or an integer of at least 1")
        require("window", is_integer(self.window, 1) and self.window % 2 == 1, "a positive odd integer")
        check_integer("iterations", self.iterations, 0)
        check_reconstruction(self.neighbors, self.temperature)
        require("representative", self.representative in ("mean", "medoid"), "'mean' or 'medoid'")
        require("reconstruct", self.reconstruct in ("tokens", "logits"), "'tokens' or 'logits'")
        if self.reconstruct == "logits" and self.beta is not None:
            raise ValueError(f"reconstruct='logits' needs beta=None: clusters reach the head; got beta={self.beta}")

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        if self.alpha >= depth:
            raise ValueError(f"alpha must be less than the backbone's {depth} blocks, got {self.alpha}")
        if self.beta is not None and self.alpha + self.beta > depth:
            raise ValueError(
                f"alpha + beta must be at most the backbone's {depth} blocks, got {self.alpha} + {self.beta}"
            )
        if token_grid is not None and np.prod(self.clusters) > np.prod(token_grid):
            raise ValueError(
                "clusters must not outnumber the image's tokens: "
                f"got {self.clusters[0]} x {self.clusters[1]} clusters "
                f"for {token_grid[0]} x {token_grid[1]} tokens; use fewer clusters or a larger image"
            )

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        if index == self.alpha:
            return self._cluster(tokens)
        return tokens.restored() if index == self.end(tokens.depth) else tokens

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """See `Plan.after_blocks`."""
        return tokens if self.reconstruct == "logits" else tokens.restored()

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        full, reduced = int(np.prod(token_grid)), int(np.prod(self.clusters))
        end = self.end(depth) if self.reconstruct == "tokens" else depth + 1
        return [reduced if self.alpha <= index < end else full for index in range(depth + 1)]

    def in_windows(self, depth: int) -> range:
        """See `Plan.in_windows`."""
        if self.reconstruct != "tokens":
            raise ValueError(f"a backbone with windows takes only reconstruct='tokens', got {self.reconstruct!r}")
        return range(self.alpha, self.end(depth))

    def check_windows(self, side: int) -> None:
        """See `Plan.check_windows`."""
        if self.clusters[0] != self.clusters[1] or self.clusters[0] > side:
            raise ValueError(
                "clusters must be k x k with k at most the window's side: "
                f"got {self.clusters[0]} x {self.clusters[1]} for windows of {side} x {side} tokens"
            )

    def fitted(self, token_grid: Grid, made_for: Grid) -> Plan:
        """See `Plan.fitted`."""
        return replace(self, clusters=fit_clusters(self.clusters, made_for, token_grid))

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """As many clusters as a share of the tokens, after a third of the blocks; see `Plan.scaled`."""
        return cls(depth // 3, shrink_grid(token_grid, share))

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"alpha": range(depth), "iterations": (0, 1, 2, 3, 5, 8), "window": (3, 5, 7, 9)}

    def end(self, depth: int) -> int:
        """alpha + beta: the block before which the grid is restored, `depth` where beta is None."""
        return depth if self.beta is None else self.alpha + self.beta

    def _cluster(self, tokens: Tokens) -> Tokens:
        z = tokens.values
        with jax.named_scope("clustering"):
            temperature = resolve_temperature(self.temperature, z, tokens.grid)
            clusters = cluster_tokens(
                z,
                token_grid=tokens.grid,
                cluster_grid=self.clusters,
                window=self.window,
                iterations=self.iterations,
                temperature=temperature,
                representative=self.representative,
            )

        def restore(refined: jax.Array) -> jax.Array:
            with jax.named_scope("reconstruction"):
                return reconstruct_tokens(
                    refined, tokens=z, clusters=clusters, neighbors=self.neighbors, temperature=temperature
                )

        positions = pooled_positions(tokens.grid, self.clusters)[None]
        return tokens.with_values(clusters, positions=positions, restore=restore)
