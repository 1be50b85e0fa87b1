"""The base class of plans: the hooks that a backbone calls around its blocks, and the tokens they work on."""

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
    """The part of a block that plans use.

    Attributes:
        predictor: DynamicViT's prediction module, tokens [B, M, C] -> scores [B, M]; None if the block has none.
    """

    @property
    def predictor(self) -> Callable[[jax.Array], jax.Array] | None: ...

    def keys(self, x: jax.Array, *, mean: bool = False) -> jax.Array:
        """Keys of tokens [B, N, C]: the heads side by side, [B, N, C], or their mean, [B, N, D]."""
        ...


class BackboneConfig(Protocol):
    """The part of a backbone's config that plans use.

    Attributes:
        special_tokens: number of class, distillation and register tokens, the class token first.
    """

    @property
    def special_tokens(self) -> int: ...


class Backbone(Protocol):
    """The part of a backbone that plans are checked against."""

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
    """The tokens of a batch of images between blocks: S special tokens, then M image tokens, at most H*W.

    Attributes:
        sequence: tokens, [B, S + M, C].
        special: S, the number of class, distillation and register tokens.
        grid: (H, W), the full grid of image tokens (of a window, in a backbone that works in windows).
        depth: the block before which the full grid must be restored: the number of blocks, or the first block of
            the next stage.
        positions: [1 or B, M, 2], row and column of each image token on the grid, the mean of its members; rotary
            embeddings follow them. A NumPy array if they are the same for every image.
        restore: spreads values of the M image tokens, [B, M, any], over the full grid, [B, H*W, any].
        sizes: [B, M], the number of grid tokens merged into each token; None if attention ignores it. Otherwise
            attention adds log(sizes) to the logits of the keys.
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
        """Tokens of the full grid, which no plan has changed.

        Args:
            sequence: [B, S + H*W, C], or [B, S + h*w, C] with `cells`.
            grid: (H, W).
            special: S.
            depth: see `Tokens`.
            cells: (h, w), the grid of the embedded tokens if the image was resized before; None for the full grid.
        """
        return cls(sequence, special, grid, depth, grid_positions(grid, cells or grid)[None])

    @property
    def values(self) -> jax.Array:
        """Image tokens, [B, M, C]."""
        return self.sequence[:, self.special :] if self.special else self.sequence

    @property
    def special_values(self) -> jax.Array:
        """Special tokens, [B, S, C]."""
        return self.sequence[:, : self.special]

    @property
    def count(self) -> int:
        """M, the number of image tokens."""
        return self.sequence.shape[1] - self.special

    @property
    def key_bias(self) -> jax.Array | None:
        """log(sizes) of the sequence for attention, [B, S + M]; special tokens have size 1."""
        return None if self.sizes is None else jnp.pad(jnp.log(self.sizes), ((0, 0), (self.special, 0)))

    @property
    def is_whole(self) -> bool:
        """Whether these are the unreduced tokens of the full grid."""
        return self.restore is _unchanged

    def with_sequence(self, sequence: jax.Array) -> Tokens:
        """The same tokens with another sequence, [B, S + M, C], such as the output of a block."""
        return replace(self, sequence=sequence)

    def without_special(self) -> Tokens:
        """The image tokens alone."""
        return replace(self, sequence=self.values, special=0)

    def with_values(self, values: jax.Array, **changes: Any) -> Tokens:
        """The same special tokens with other image tokens, [B, M', C], and changes of further fields."""
        sequence = jnp.concatenate([self.special_values, values], axis=1) if self.special else values
        return replace(self, sequence=sequence, **changes)

    def restored(self) -> Tokens:
        """Tokens of the full grid, restored if they were reduced."""
        if self.is_whole:
            return self
        whole = Tokens.whole(self.sequence, self.grid, special=self.special, depth=self.depth)
        return whole.with_values(self.restore(self.values))


@dataclass(frozen=True, eq=False)
class Plan:
    """Base class of all plans, and the identity plan. Subclasses override the hooks they need.

    Plans are frozen, hashable dataclasses. Shapes are static, and the images of a batch are independent of one
    another. A backbone calls the hooks in this order: `before_embedding`; for every block
    `before_block`, `attention` and `after_attention`; `after_blocks`.
    """

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """Raises ValueError if the plan does not fit a backbone of `depth` blocks, or this grid of tokens."""

    def check_backbone(self, backbone: Backbone) -> None:
        """Raises ValueError if the backbone lacks a part that the plan needs, such as a class token."""

    def before_embedding(self, pixels: jax.Array, side: int) -> jax.Array:
        """Transforms the input of the patch embedding.

        Args:
            pixels: normalised images [B, rows, columns, 3], or the last feature map of the backbone's stem.
            side: side of a patch, in rows and columns of `pixels`.

        Returns:
            Images [B, rows', columns', channels], whose sides are multiples of `side`.
        """
        return pixels

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """The tokens that enter the block `index` (0-based); the same object if they do not change."""
        return tokens

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """The attention of a block; see `ops.attention.attention` for the shapes."""
        return attention(query, key, value, key_bias=key_bias)

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """The tokens that enter the MLP of the block `index`.

        Args:
            index: 0-based index of the block.
            tokens: tokens after the attention of the block.
            query, key: queries and keys of that attention, [B, heads, D, S + M].
        """
        return tokens

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """The image tokens after the last block, restored to the full grid unless the head takes clusters.

        Special tokens are passed on separately: a head that reads the class token alone needs no restoration.
        """
        return tokens.restored()

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """Number of image tokens in the attention of every block, and after the last one: depth + 1 numbers."""
        return [token_grid[0] * token_grid[1]] * (depth + 1)

    def in_windows(self, depth: int) -> range:
        """The blocks that run on reduced tokens in every window, for a backbone that works in windows.

        In these blocks `counts` are square numbers: the tokens of a window are a square grid.

        Raises:
            ValueError: the plan does not work inside windows.
        """
        raise ValueError(
            f"a backbone with windows takes an Hourglass, which works inside windows; got {type(self).__name__}"
        )

    def check_windows(self, side: int) -> None:
        """Raises ValueError if the plan does not fit windows of `side` x `side` tokens."""

    def fitted(self, token_grid: Grid, made_for: Grid) -> Plan:
        """The same plan for another grid of tokens, with the share of tokens that it keeps on the grid `made_for`.

        A plan whose fields are shares does not change.
        """
        return self

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """A plan of this kind whose cost increases with `share`, from the cheapest useful one to hardly any saving.

        Args:
            share: in (0, 1].
            depth: number of blocks of the backbone.
            token_grid: (H, W), the tokens of an image.

        Returns:
            A plan that fits this depth and grid.

        Raises:
            ValueError: this kind of plan does not override `scaled`.
        """
        raise ValueError(f"{cls.__name__} makes no plans for a cost: it does not override `scaled`")

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """Field -> values that the tuner tries; numbers in increasing order, as the search climbs along them.

        Fields of the types bool and Literal are tuned without being listed here.

        Args:
            depth: number of blocks of the backbone.
        """
        return {}


NO_PLAN = Plan()

TokenReduction = Plan
"""Deprecated alias of `Plan`, its name in version 0.1; to be removed in the next version."""
