"""A look inside the blocks: the tokens that enter one, whom they attend to, and what they become."""

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hourglass_jax.analysis.groups import Unrestored
from hourglass_jax.backbones.layers import Block
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import NO_PLAN, Plan, Tokens
from hourglass_jax.plans.expedite import expedite


class Seen(NamedTuple):
    """What was seen of one image.

    Attributes:
        entering: [M, C], the tokens or clusters before the block.
        attention: [Q, M], the weights with which each asked token, or the cluster that it is restored from most,
            attends to them in the block: mean of the heads. Class and register tokens have the rest.
        leaving: [M, C], after the last block and the norm.
        restored: [H*W, C], the same of all tokens.
    """

    entering: jax.Array
    attention: jax.Array
    leaving: jax.Array
    restored: jax.Array


@dataclass(frozen=True)
class _Watched(Unrestored):
    """Keeps what enters a block, while the function that runs it is traced."""

    block: int = 0
    positions: tuple[int, ...] = ()
    seen: dict[str, jax.Array] = field(default_factory=dict)

    def run_block(
        self, index: int, block: Block, special: jax.Array, tokens: Tokens, *, depth: int, token_grid: Grid
    ) -> tuple[jax.Array, Tokens]:
        """See `Plan.run_block`."""
        if index == self.block:
            query, key, _ = block.project(tokens.behind(special))
            nearest = jnp.argmax(tokens.restore(jnp.eye(tokens.values.shape[1])[None])[0], axis=-1)
            rows = special.shape[1] + nearest[jnp.asarray(self.positions)]
            asked = query[0][..., rows] * query.shape[2] ** -0.5
            logits = jnp.einsum("hdq,hdm->hqm", asked, key[0], preferred_element_type=jnp.float32)
            bias = tokens.key_bias(special)
            weights = jax.nn.softmax(logits if bias is None else logits + bias[0], axis=-1).mean(axis=0)
            self.seen.update(entering=tokens.values[0], attention=weights[:, special.shape[1] :])
        return super().run_block(index, block, special, tokens, depth=depth, token_grid=token_grid)


@functools.partial(jax.jit, static_argnames=("plan", "block", "positions"))
def look(
    backbone: ViT,
    images: jax.Array,
    *,
    plan: Plan | None,
    block: int,
    positions: tuple[int, ...],
) -> Seen:
    """Runs one image and keeps what is to be seen of a block.

    Args:
        backbone: under any plan.
        images: [1, rows, columns, 3], normalised.
        plan: the one to run under; None for all tokens.
        block: 0-based.
        positions: tokens, counted row by row, whose attention is wanted.

    Returns:
        `Seen`.

    Raises:
        ValueError: the plan or the block does not fit the backbone.
    """
    if block not in range(backbone.depth):
        raise ValueError(f"block must be one of the backbone's, 0 to {backbone.depth - 1}, got {block}")
    watched = _Watched(plan or NO_PLAN, block, positions)
    tokens = expedite(backbone, watched)(images).tokens
    return Seen(leaving=tokens.values[0], restored=tokens.restore(tokens.values)[0], **watched.seen)
