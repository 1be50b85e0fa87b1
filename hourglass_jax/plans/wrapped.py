"""A wrapper around another plan."""

from dataclasses import dataclass

import jax

from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Backbone, Block, Plan, Tokens


@dataclass(frozen=True)
class WrappedPlan(Plan):
    """Base class of plans that observe or change a part of another plan."""

    plan: Plan

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        self.plan.check(depth, token_grid)

    def check_backbone(self, backbone: Backbone) -> None:
        """See `Plan.check_backbone`."""
        self.plan.check_backbone(backbone)

    def before_embedding(self, pixels: jax.Array, side: int) -> jax.Array:
        """See `Plan.before_embedding`."""
        return self.plan.before_embedding(pixels, side)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        return self.plan.before_block(index, tokens, block)

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """See `Plan.attention`."""
        return self.plan.attention(query, key, value, key_bias)

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """See `Plan.after_attention`."""
        return self.plan.after_attention(index, tokens, query, key)

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """See `Plan.after_blocks`."""
        return self.plan.after_blocks(tokens)

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        return self.plan.counts(depth, token_grid)

    def in_windows(self, depth: int) -> range:
        """See `Plan.in_windows`."""
        return self.plan.in_windows(depth)

    def check_windows(self, side: int) -> None:
        """See `Plan.check_windows`."""
        self.plan.check_windows(side)
