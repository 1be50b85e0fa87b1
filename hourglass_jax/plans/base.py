"""What a backbone knows of a plan: the tokens on their way through the blocks, and the family of reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Self

import jax
import jax.numpy as jnp

from hourglass_jax.ops.grids import Grid

if TYPE_CHECKING:
    from hourglass_jax.backbones.layers import Block
    from hourglass_jax.backbones.vit import ViT


def _unchanged(values: jax.Array) -> jax.Array:
    return values


class Tokens(NamedTuple):
    """The image's tokens on their way through the blocks, all of them or fewer.

    Attributes:
        values: [B, M, C]; no class or register tokens.
        restore: spreads values of the M tokens, [B, M, any], over the full grid, [B, H*W, any].
        sizes: [B, M], how many tokens of the grid each one stands for, or None where that plays no part. Attention
            adds log(sizes) to the logits of its keys.
    """

    values: jax.Array
    restore: Callable[[jax.Array], jax.Array] = _unchanged
    sizes: jax.Array | None = None

    def behind(self, special: jax.Array) -> jax.Array:
        """Special tokens [B, S, C] and these in one sequence, as blocks take them: [B, S + M, C]."""
        return jnp.concatenate([special, self.values], axis=1)

    def split(self, sequence: jax.Array, special: jax.Array) -> tuple[jax.Array, Tokens]:
        """The inverse of `behind` for what a block made of the sequence: new special tokens, and new values."""
        count = special.shape[1]
        return sequence[:, :count], self._replace(values=sequence[:, count:])

    def key_bias(self, special: jax.Array) -> jax.Array | None:
        """log(sizes) for the attention over `behind`, special tokens counting as one each: [B, S + M]."""
        return None if self.sizes is None else jnp.pad(jnp.log(self.sizes), ((0, 0), (special.shape[1], 0)))


class Plan:
    """What a backbone knows of a plan. This one changes nothing; members of the family say what they do otherwise.

    Members are frozen, hashable dataclasses. Shapes are static, and what happens to an image does not depend on the
    others of its batch.
    """

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """Raises ValueError if the plan fits no backbone of `depth` blocks, or not this grid of tokens."""

    def check_backbone(self, backbone: ViT) -> None:
        """Raises ValueError if the backbone lacks something that the plan needs beyond its blocks."""

    def embed(self, pixels: jax.Array, backbone: ViT) -> Tokens:
        """The tokens of normalised images [B, rows, columns, 3], or of the last map of the backbone's stem."""
        return Tokens(backbone.embed(pixels))

    def before_block(self, index: int, tokens: Tokens, *, depth: int, token_grid: Grid) -> Tokens:
        """The tokens that enter block `index` (0-based; `depth` stands for the end of the last block)."""
        return Tokens(tokens.restore(tokens.values)) if index == depth else tokens

    def run_block(
        self, index: int, block: Block, special: jax.Array, tokens: Tokens, *, depth: int, token_grid: Grid
    ) -> tuple[jax.Array, Tokens]:
        """Special tokens [B, S, C] and tokens after block `index`."""
        with jax.named_scope("blocks"):
            return tokens.split(block(tokens.behind(special), tokens.key_bias(special)), special)

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """How many of the image's tokens attend in block 0 .. depth - 1, and how many there are in the end."""
        return [token_grid[0] * token_grid[1]] * (depth + 1)

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """A plan of this kind whose cost rises with `share`, from the least that makes sense to (nearly) all.

        Args:
            share: in (0, 1].
            depth: blocks of the backbone.
            token_grid: (H, W) of the image.

        Returns:
            A plan that fits this depth and grid.
        """
        raise NotImplementedError


NO_PLAN = Plan()

TokenReduction = Plan
"""The name of `Plan` up to version 0.1; it goes in the next one."""
