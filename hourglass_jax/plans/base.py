"""What a plan is: the hooks that a backbone calls around its blocks, and the tokens that pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.ops.attention import attention
from hourglass_jax.ops.grids import Grid, grid_positions


class Block(Protocol):
    """What plans use of a block.

    Attributes:
        predictor: DynamicViT's scores of tokens, [B, M, C] -> [B, M], or None if the block has none.
    """

    @property
    def predictor(self) -> Callable[[jax.Array], jax.Array] | None: ...

    def keys(self, x: jax.Array, *, mean: bool = False) -> jax.Array:
        """The keys of tokens [B, N, C]: of all heads side by side, [B, N, C], or their mean, [B, N, D]."""
        ...


class BackboneConfig(Protocol):
    """What plans use of a backbone's config.

    Attributes:
        special_tokens: class, distillation and register tokens, the class token first.
    """

    @property
    def special_tokens(self) -> int: ...


class Backbone(Protocol):
    """What plans use of a backbone, to say whether they fit it."""

    @property
    def config(self) -> BackboneConfig: ...

    @property
    def depth(self) -> int: ...

    @property
    def blocks(self) -> Sequence[Block]: ...


def _unchanged(values: jax.Array) -> jax.Array:
    return values


@dataclass(frozen=True, eq=False)
class Tokens:
    """The tokens of images on their way through the blocks: special ones first, then the image's, all or fewer.

    Attributes:
        sequence: [B, S + M, C].
        special: S, how many class, distillation and register tokens there are.
        grid: (H, W), the grid of all tokens of an image (or of a window, in a backbone that works in windows).
        depth: the number of the block after which all tokens are there again: how many blocks there are, or the
            first one of the next stage.
        positions: [1 or B, M, 2], row and column on the grid that each of the image's tokens stands for, the mean
            of its members.
        restore: spreads values of the image's M tokens, [B, M, any], over the full grid, [B, H*W, any].
        sizes: [B, M], how many tokens of the grid each one stands for, or None where that plays no part. Attention
            adds log(sizes) to the logits of its keys.
    """

    sequence: jax.Array
    special: int
    grid: Grid
    depth: int
    positions: jax.Array | np.ndarray
    restore: Callable[[jax.Array], jax.Array] = _unchanged
    sizes: jax.Array | None = None

    @classmethod
    def whole(
        cls, sequence: jax.Array, grid: Grid, *, special: int = 0, depth: int, cells: Grid | None = None
    ) -> Self:
        """Tokens that no plan has changed.

        Args:
            sequence: [B, S + H*W, C], or [B, S + h*w, C] with `cells`.
            grid: (H, W).
            special: S.
            depth: see `Tokens`.
            cells: (h, w) where the image was made smaller before its tokens were embedded.
        """
        return cls(sequence, special, grid, depth, grid_positions(grid, cells or grid)[None])

    @property
    def values(self) -> jax.Array:
        """The image's tokens, [B, M, C]."""
        return self.sequence[:, self.special :] if self.special else self.sequence

    @property
    def special_values(self) -> jax.Array:
        """The special tokens, [B, S, C]."""
        return self.sequence[:, : self.special]

    @property
    def count(self) -> int:
        """M, how many of the image's tokens there are."""
        return self.sequence.shape[1] - self.special

    @property
    def key_bias(self) -> jax.Array | None:
        """log(sizes) for the attention over the sequence, special tokens counting as one each: [B, S + M]."""
        return None if self.sizes is None else jnp.pad(jnp.log(self.sizes), ((0, 0), (self.special, 0)))

    @property
    def is_whole(self) -> bool:
        """Whether these are all tokens of the grid, as they are."""
        return self.restore is _unchanged

    def with_sequence(self, sequence: jax.Array) -> Tokens:
        """What a block made of the sequence, [B, S + M, C]."""
        return replace(self, sequence=sequence)

    def without_special(self) -> Tokens:
        """The image's tokens alone."""
        return replace(self, sequence=self.values, special=0)

    def with_values(self, values: jax.Array, **changes: Any) -> Tokens:
        """The same special tokens before other tokens of the image, [B, M', C], with further fields changed."""
        sequence = jnp.concatenate([self.special_values, values], axis=1) if self.special else values
        return replace(self, sequence=sequence, **changes)

    def restored(self) -> Tokens:
        """All tokens of the grid."""
        if self.is_whole:
            return self
        whole = Tokens.whole(self.sequence, self.grid, special=self.special, depth=self.depth)
        return whole.with_values(self.restore(self.values))


@dataclass(frozen=True, eq=False)
class Plan:
    """Base class of all plans, and the plan that changes nothing. Subclasses override the hooks they need.

    Plans are frozen, hashable dataclasses. Shapes are static, and what happens to an image does not depend on the
    others of its batch. A backbone calls the hooks in this order: `before_embedding`; for every block
    `before_block`, `attention` and `after_attention`; `after_blocks`.
    """

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """Raises ValueError if the plan fits no backbone of `depth` blocks, or not this grid of tokens."""

    def check_backbone(self, backbone: Backbone) -> None:
        """Raises ValueError if the backbone lacks something that the plan needs beyond its blocks."""

    def before_embedding(self, pixels: jax.Array, side: int) -> jax.Array:
        """What is embedded of normalised images [B, rows, columns, 3], or of the last map of the backbone's stem.

        Args:
            pixels: as above.
            side: rows and columns of `pixels` that become one token.

        Returns:
            As many images, whose sides are multiples of `side`, too.
        """
        return pixels

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """The tokens that enter block `index`, from 0 on; the same object where they are not changed."""
        return tokens

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """The attention of a block; see `ops.attention.attention` for the shapes."""
        return attention(query, key, value, key_bias=key_bias)

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """The tokens that enter the second half of block `index`.

        Args:
            index: from 0 on.
            tokens: after the attention of the block.
            query, key: of that attention, [B, heads, D, S + M].
        """
        return tokens

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """What is made of the tokens that leave the last block, without special ones.

        Restored apart from those, as a head that reads the class token needs no other.
        """
        return tokens.restored()

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """How many of the image's tokens attend in block 0 .. depth - 1, and how many there are in the end."""
        return [token_grid[0] * token_grid[1]] * (depth + 1)

    def in_windows(self, depth: int) -> range:
        """The blocks, of `depth`, that run on fewer tokens of every window, for a backbone that works in windows.

        As many tokens as `counts` tells of such a block are a square grid.

        Raises:
            ValueError: the plan does not work inside windows.
        """
        raise ValueError(
            f"a backbone with windows takes an Hourglass, which works inside windows; got {type(self).__name__}"
        )

    def check_windows(self, side: int) -> None:
        """Raises ValueError if the plan does not fit windows of `side` x `side` tokens."""

    def fitted(self, token_grid: Grid, made_for: Grid) -> Plan:
        """The plan for another grid of tokens, at the share of them that it keeps on the grid `made_for`.

        A plan whose numbers are shares is its own.
        """
        return self

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """A plan of this kind whose cost rises with `share`, from the least that makes sense to (nearly) all.

        Args:
            share: in (0, 1].
            depth: blocks of the backbone.
            token_grid: (H, W) of the image.

        Returns:
            A plan that fits this depth and grid.

        Raises:
            ValueError: plans of this kind are not made for a cost.
        """
        raise ValueError(f"{cls.__name__} makes no plans for a cost: it does not override `scaled`")

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """Field -> what the tuner tries of it; numbers are in order, as the search climbs along them.

        Fields whose type lists their values, and switches, are tried without this, and before.

        Args:
            depth: blocks of the backbone.
        """
        return {}


NO_PLAN = Plan()

TokenReduction = Plan
"""The name of `Plan` up to version 0.1; it goes in the next one."""
