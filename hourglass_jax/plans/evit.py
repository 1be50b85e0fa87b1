"""EViT (arXiv 2202.07800): drops the tokens with the least attention from the class token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import jax
import jax.numpy as jnp

from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.merging import take
from hourglass_jax.plans.base import Backbone, Plan, Tokens
from hourglass_jax.plans.checks import (
    check_among_blocks,
    check_blocks,
    check_reconstruction,
    check_share,
    scaled_blocks,
)
from hourglass_jax.plans.selection import NEIGHBORS, Restore, select

STAGES = (7, 13, 19)
"""Default stages of 24 blocks."""


@dataclass(frozen=True)
class EViT(Plan):
    """In three blocks, between attention and MLP, the tokens with the least class attention are dropped.

    Attributes:
        keep: share of its tokens that every stage keeps.
        stages: indices of the blocks; None for 7, 13, 19 of 24, scaled to the depth.
        fuse: whether the sum of the dropped tokens, weighted by their class attention, is kept as a token; later
            stages treat it like any other.
        restore: how dropped tokens are restored in the end, the last ones first: see `selection.select`.
        neighbors: k of the reconstruction.
        temperature: tau of the reconstruction, or "auto".

    Raises:
        ValueError: a field is out of range.

    Source: youweiliang/evit, evit.py; arXiv 2210.01035, appendix D, for the reconstruction.
    """

    keep: float
    stages: tuple[int, ...] | None = None
    fuse: bool = False
    restore: Restore = "reconstruction"
    neighbors: int = 20
    temperature: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        if self.stages is not None:
            object.__setattr__(self, "stages", check_blocks("stages", self.stages))
        if self.restore not in ("reconstruction", "reuse"):
            raise ValueError(f"restore must be 'reconstruction' or 'reuse', got {self.restore!r}")
        check_reconstruction(self.neighbors, self.temperature)

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        check_among_blocks("stages", self.stages or (), depth)

    def check_backbone(self, backbone: Backbone) -> None:
        """See `Plan.check_backbone`."""
        if backbone.config.special_tokens == 0:
            raise ValueError(
                "EViT ranks tokens by the class token's attention, and this backbone has no class token"
            )

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """See `Plan.after_attention`."""
        before, after = self._block_counts(tokens.depth, tokens.grid)[index : index + 2]
        if after == before:
            return tokens
        scores = _class_attention(query, key)[:, tokens.special :]
        kept, dropped = select(
            tokens,
            scores,
            after - self.fuse,
            restore=self.restore,
            neighbors=self.neighbors,
            temperature=self.temperature,
        )
        if not self.fuse:
            return kept
        with jax.named_scope("clustering"):
            weights, lost = take(scores, dropped), take(tokens.values, dropped)
            fused = (weights[:, None] @ lost.astype(weights.dtype)).astype(lost.dtype)
            share = weights / jnp.sum(weights, axis=-1, keepdims=True)
            positions = take(jnp.broadcast_to(tokens.positions, (*scores.shape, 2)), dropped)
            position = jnp.sum(share[..., None] * positions, axis=1, keepdims=True)
        return kept.with_values(
            jnp.concatenate([kept.values, fused], axis=1),
            positions=jnp.concatenate([kept.positions, position], axis=1),
        )

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        left = self._block_counts(depth, token_grid)
        return [*left[:-1], left[0]]

    def _block_counts(self, depth: int, token_grid: Grid) -> list[int]:
        """Number of tokens before every block, and after the last one."""
        stages = scaled_blocks(STAGES, 24, depth) if self.stages is None else self.stages
        left = [token_grid[0] * token_grid[1]]
        for index in range(depth):
            kept = math.ceil(self.keep * left[-1]) + self.fuse
            left.append(kept if index in stages and kept < left[-1] else left[-1])
        return left

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """See `Plan.scaled`."""
        return cls(share)

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"neighbors": NEIGHBORS}


def _class_attention(query: jax.Array, key: jax.Array) -> jax.Array:
    """Attention weights of the first token, mean over the heads: [B, heads, D, N] -> [B, N]."""
    with jax.named_scope("clustering"):
        first = query[..., 0] * query.shape[2] ** -0.5
        logits = jnp.einsum("bhd,bhdn->bhn", first, key, preferred_element_type=jnp.float32)
        return jax.nn.softmax(logits, axis=-1).mean(axis=1)
