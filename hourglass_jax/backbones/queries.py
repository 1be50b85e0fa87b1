"""Queries in the last blocks of a ViT: they join its special tokens, which plans leave alone.

Source: tue-mps/eomt, models/eomt.py (arXiv 2503.19108).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.backbones.vit import ViT, ViTFeatures
from hourglass_jax.ops.masked_attention import masked_attention
from hourglass_jax.plans.base import NO_PLAN, Block, Tokens
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.wrapped import WrappedPlan

Masks = Callable[[jax.Array, jax.Array], jax.Array]
"""Queries [B, Q, C] and the map of the image's tokens [B, H, W, C] -> what each may read, bool [B, Q, H, W]."""


def run_with_queries(
    backbone: ViT,
    images: jax.Array,
    queries: jax.Array,
    *,
    first: int,
    masked: tuple[int, ...],
    masks: Masks,
) -> ViTFeatures:
    """Runs a ViT under its plan, with queries in its last blocks.

    Args:
        backbone: the ViT.
        images: see `ViT.__call__`.
        queries: [Q, C].
        first: the 0-based block that they enter.
        masked: blocks in which queries read, of the image's tokens, only those that `masks` allows.
        masks: is given what enters such a block, after the final norm, on the full grid.

    Returns:
        The ViT's features; the queries are the last Q of the special tokens.

    Raises:
        ValueError: see `ViT.__call__`.
    """
    plan = NO_PLAN if backbone.plan is None else backbone.plan

    def allowed(tokens: Tokens) -> jax.Array:
        normed = tokens.with_sequence(backbone.norm(tokens.sequence))
        whole = normed.restore(normed.values).reshape(images.shape[0], *tokens.grid, -1)
        return _at_tokens(masks(normed.special_values[:, -len(queries) :], whole), tokens)

    return expedite(backbone, _WithQueries(plan, queries, first, masked, allowed))(images)


@dataclass(frozen=True, eq=False)
class _WithQueries(WrappedPlan):
    """The backbone's plan, and queries that join its tokens before a block, as the last special ones.

    Attributes:
        queries: [Q, C].
        first: the block.
        masked: blocks in which queries read what `allowed` says alone.
        allowed: the tokens that enter a block -> bool [B, Q, S + M].
        current: of the block that is traced: where its queries are, and what they may read.
    """

    queries: jax.Array
    first: int
    masked: tuple[int, ...]
    allowed: Callable[[Tokens], jax.Array]
    current: list[tuple[slice, jax.Array]] = field(default_factory=list)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        tokens = self.plan.before_block(index, tokens, block)
        if index == self.first:
            queries = self.queries.astype(tokens.sequence.dtype)
            queries = jnp.broadcast_to(queries, (tokens.sequence.shape[0], *queries.shape))
            sequence = jnp.concatenate([tokens.special_values, queries, tokens.values], axis=1)
            tokens = replace(tokens, sequence=sequence, special=tokens.special + queries.shape[1])
        self.current.clear()
        if index in self.masked:
            place = slice(tokens.special - len(self.queries), tokens.special)
            self.current.append((place, self.allowed(tokens)))
        return tokens

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """See `Plan.attention`; the queries' own rows stand apart where they are masked."""
        if not self.current:
            return self.plan.attention(query, key, value, key_bias)
        [(place, allowed)] = self.current
        others = jnp.concatenate([query[..., : place.start], query[..., place.stop :]], axis=-1)
        mixed = self.plan.attention(others, key, value, key_bias)
        q, k, v = (each.transpose(0, 3, 1, 2) for each in (query[..., place], key, value))
        of_queries = masked_attention(q, k, v, allowed, key_bias=key_bias)
        return jnp.concatenate([mixed[:, : place.start], of_queries, mixed[:, place.start :]], axis=1)


def _at_tokens(masks: jax.Array, tokens: Tokens) -> jax.Array:
    """What queries may read, bool [B, Q, H, W], as they attend to it: [B, Q, S + M], special tokens always.

    A token that stands for several lies at the place that `Tokens.positions` says.
    """
    cells = jnp.round(jnp.asarray(tokens.positions)).astype(int)
    cells = jnp.clip(cells, 0, np.asarray(tokens.grid) - 1)
    places = cells[..., 0] * tokens.grid[1] + cells[..., 1]
    read = jnp.take_along_axis(masks.reshape(*masks.shape[:2], -1), places[:, None], axis=2)
    return jnp.pad(read, ((0, 0), (0, 0), (tokens.special, 0)), constant_values=True)
