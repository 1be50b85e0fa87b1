"""Inspection of one block: its input tokens, their attention weights, and the final tokens."""

import functools
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hourglass_jax.analysis.groups import TruncatedPlan, nearest_tokens
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.plans.base import NO_PLAN, Block, Plan, Tokens
from hourglass_jax.plans.expedite import expedite


class BlockTrace(NamedTuple):
    """The trace of one block, for one image.

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
class _Recorder(TruncatedPlan):
    """A plan that records the trace of a block, while the function that runs it is traced."""

    block: int = 0
    positions: tuple[int, ...] = ()
    recorded: dict[str, jax.Array] = field(default_factory=dict)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        tokens = super().before_block(index, tokens, block)
        if index == self.block:
            self.recorded["entering"] = tokens.values[0]
        return tokens

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """See `Plan.after_attention`."""
        if index == self.block:
            rows = tokens.special + nearest_tokens(tokens)[0, jnp.asarray(self.positions)]
            asked = query[0][..., rows] * query.shape[2] ** -0.5
            logits = jnp.einsum("hdq,hdm->hqm", asked, key[0], preferred_element_type=jnp.float32)
            bias = tokens.key_bias
            weights = jax.nn.softmax(logits if bias is None else logits + bias[0], axis=-1).mean(axis=0)
            self.recorded["attention"] = weights[:, tokens.special :]
        return super().after_attention(index, tokens, query, key)


def entering_tokens(backbone: ViT, images: jax.Array, *, block: int) -> jax.Array:
    """The image's tokens that enter a block of a backbone without a plan, [B, H*W, C].

    Args:
        backbone: under any plan.
        images: [B, rows, columns, 3], normalised.
        block: 0-based.
    """
    return _entering(expedite(backbone, None), images, block=block)


@functools.partial(jax.jit, static_argnames="block")
def _entering(backbone: ViT, images: jax.Array, *, block: int) -> jax.Array:
    if block == 0:
        return backbone.embed(backbone.stem(images)[-1] if backbone.stem is not None else images)
    return backbone(images, intermediates=[block - 1]).intermediates[0].tokens


@functools.partial(jax.jit, static_argnames=("plan", "block", "positions"))
def inspect_block(
    backbone: ViT,
    images: jax.Array,
    *,
    plan: Plan | None,
    block: int,
    positions: tuple[int, ...],
) -> BlockTrace:
    """Runs one image and records a block.

    Args:
        backbone: a ViT, under any plan.
        images: [1, rows, columns, 3], normalised.
        plan: the plan to run; None for all tokens.
        block: 0-based index of the block.
        positions: query tokens for `BlockTrace.attention`, numbered row by row.

    Returns:
        The trace.

    Raises:
        ValueError: the plan or the block does not fit the backbone.
    """
    if block not in range(backbone.depth):
        raise ValueError(f"block must be one of the backbone's, 0 to {backbone.depth - 1}, got {block}")
    if backbone.config.windows is not None:
        raise ValueError("blocks are looked into where all tokens attend to all, and this ViT has windows")
    recorder = _Recorder(plan or NO_PLAN, block, positions)
    tokens = expedite(backbone, recorder)(images).tokens
    return BlockTrace(leaving=tokens.values[0], restored=tokens.restore(tokens.values)[0], **recorder.recorded)
