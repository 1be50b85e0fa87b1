"""ACT (Adaptive Clustering Transformer, arXiv 2011.09315): similar queries share their attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import jax

from hourglass_jax.ops.adaptive_clustering import HASHES, clustered_attention
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.checks import check_integer


@dataclass(frozen=True)
class ACT(Plan):
    """In every block, each head groups its queries by hashing and computes one row of attention per group.

    The number of tokens does not change, only that of the rows of attention: the rest of a block costs as much as
    before. The number of rows is fixed, while the official algorithm has one row per hash code: with fewer codes
    some rows are unused, with more, neighbouring codes share a row. The random directions are fixed, too.

    Attributes:
        prototypes: number of groups of queries per head.
        hashes: number of hashes, up to 32; fewer hashes make larger groups.
        bucket: width of a hash's buckets, in units of queries divided by sqrt(D).
        seed: seed of the hashes' random directions.

    Raises:
        ValueError: a field is out of range.

    Source: gaopengcuhk/SMCA-DETR, Adaptive_Cluster_Transformer/ACT.
    """

    prototypes: int
    hashes: int = HASHES
    bucket: float = 8.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_integer("prototypes", self.prototypes, 1)
        check_integer("hashes", self.hashes, 1, HASHES)
        check_integer("seed", self.seed, 0)
        if (
            isinstance(self.bucket, bool)
            or not isinstance(self.bucket, (int, float))
            or not 0 < self.bucket < math.inf
        ):
            raise ValueError(f"bucket must be a positive number, got {self.bucket!r}")

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """See `Plan.attention`."""
        return clustered_attention(
            query,
            key,
            value,
            prototypes=self.prototypes,
            hashes=self.hashes,
            bucket=self.bucket,
            seed=self.seed,
        )

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """As many groups as a share of the tokens; see `Plan.scaled`."""
        return cls(max(1, round(share * token_grid[0] * token_grid[1])))

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"bucket": (1.0, 2.0, 4.0, 8.0, 16.0), "hashes": (8, 16, 24, 32)}
