"""Inspection of one block: its input tokens, their attention weights, and the final tokens."""

import functools
import math
from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hourglass_jax.analysis.groups import TruncatedPlan, nearest_tokens
from hourglass_jax.backbones.base import Backbone
from hourglass_jax.backbones.swin import Block as WindowBlock
from hourglass_jax.backbones.swin import Swin
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.ops.windows import merge, partition, shifted_regions, window_grid
from hourglass_jax.plans.base import NO_PLAN, Block, Plan, Tokens
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.wrapped import WrappedPlan


class BlockTrace(NamedTuple):
    """The trace of one block, for one image.

    Attributes:
        entering: [M, C], the tokens or clusters before the block.
        attention: [Q, M], the weights with which each asked token, or the cluster that it is restored from most,
            attends to them in the block: mean of the heads. Class and register tokens have the rest, and the
            padding of a Swin's map.
        leaving: [M, C], after the last block and the norm; of a Swin after the block that was asked for.
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
    _check_block(backbone, block)
    if backbone.windows is not None:
        raise ValueError("blocks are looked into where all tokens attend to all, and this ViT has windows")
    recorder = _Recorder(plan or NO_PLAN, block, positions)
    tokens = expedite(backbone, recorder)(images).tokens
    return BlockTrace(leaving=tokens.values[0], restored=tokens.restore(tokens.values)[0], **recorder.recorded)


@dataclass(frozen=True)
class _WindowRecorder(WrappedPlan):
    """Keeps the windows that enter a block, and those that leave another one, while the function is traced."""

    block: int = 0
    last: int = 0
    recorded: dict[str, Tokens] = field(default_factory=dict)

    def in_windows(self, depth: int) -> range:
        """See `Plan.in_windows`; the plan that changes nothing is about the block that is looked at."""
        return range(self.block, self.block + 1) if self.plan == NO_PLAN else super().in_windows(depth)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        if index == self.last + 1:
            self.recorded.setdefault("leaving", tokens)
        tokens = super().before_block(index, tokens, block)
        if index == self.block:
            self.recorded["entering"] = tokens
        return tokens

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """See `Plan.after_blocks`."""
        if tokens.depth == self.last + 1:
            self.recorded["leaving"] = tokens
        return super().after_blocks(tokens)


@functools.partial(jax.jit, static_argnames=("plan", "block", "last", "positions"))
def inspect_window_block(
    backbone: Swin,
    images: jax.Array,
    *,
    plan: Plan | None,
    block: int,
    last: int,
    positions: tuple[int, ...],
) -> BlockTrace:
    """Runs one image and keeps what goes on in a block of a Swin.

    Maps of clusters are those of all windows side by side: with k x k clusters in a window, (k windows down) x (k
    windows across).

    Args:
        backbone: under any plan.
        images: [1, rows, columns, 3], normalised.
        plan: the one to run under; None for all tokens.
        block: 0-based, over all stages.
        last: the block after which tokens are kept, of the same stage; under a plan the last one on clusters.
        positions: tokens of the stage's map, counted row by row, whose attention is wanted.

    Returns:
        `BlockTrace`, maps row by row.

    Raises:
        ValueError: the plan or the blocks do not fit the backbone.
    """
    _check_block(backbone, block)
    stage, first, end = backbone.stage_of(block)
    if last not in range(block, end):
        raise ValueError(f"last must be a block of the same stage, {block} to {end - 1}, got {last}")
    recorder = _WindowRecorder(plan or NO_PLAN, block, last)
    fast = expedite(backbone, recorder)
    [restored] = fast(images, intermediates=(last,)).intermediates
    tokens, leaving = (recorder.recorded[name] for name in ("entering", "leaving"))
    grid = backbone.grids(images.shape[1], images.shape[2])[stage]
    window, side = tokens.grid[0], math.isqrt(tokens.count)
    down, across = window_grid(grid, window)
    cells = grid if tokens.is_whole else (side * down, side * across)
    entering = merge(tokens.sequence, cells, side)
    nearest = nearest_tokens(tokens)
    asked = []
    for row, column in (divmod(position, grid[1]) for position in positions):
        above, left = row // window, column // window
        near = nearest[above * across + left, row % window * window + column % window]
        asked.append((above * side + near // side) * cells[1] + left * side + near % side)
    attention = _window_attention(
        fast.stages[stage].blocks[block - first],
        entering,
        side,
        backbone.shift(block - first, side, grid),
        jnp.stack(asked),
    )
    return BlockTrace(
        entering=_row_by_row(entering),
        attention=attention,
        leaving=_row_by_row(merge(leaving.sequence, cells, side)),
        restored=_row_by_row(restored),
    )


def _row_by_row(maps: jax.Array) -> jax.Array:
    """The tokens [H*W, C] of the only map [1, H, W, C]."""
    return maps.reshape(-1, maps.shape[-1])


def _window_attention(block: WindowBlock, x: jax.Array, side: int, shift: int, asked: jax.Array) -> jax.Array:
    """The weights with which some tokens of a map [1, H, W, C] attend to all, mean of the heads: [Q, H*W].

    Args:
        block: of a Swin.
        x: what enters it.
        side, shift: of its windows.
        asked: int [Q], the tokens, counted row by row.
    """
    attention, grid = block.attention, (x.shape[1], x.shape[2])
    query, key, _ = attention.project(x if block.norms_after else block.norm1(x), side, shift)
    logits = jnp.einsum("wnhd,wmhd->whnm", query, key, preferred_element_type=jnp.float32)
    logits += attention.bias(side)
    if shift:
        regions = shifted_regions(grid, side, shift)
        logits -= 100 * jnp.asarray(regions[:, None, :, None] != regions[:, None, None])
    weights = jax.nn.softmax(logits, axis=-1).mean(axis=1)
    count = grid[0] * grid[1]
    # Tokens are numbered from 1; what fills up the map has the number 0.
    numbers = jnp.arange(1, count + 1, dtype=jnp.float32).reshape(1, *grid, 1)
    numbers = partition(numbers, side, shift)[..., 0].astype(jnp.int32)

    def spread(token: jax.Array) -> jax.Array:
        window, place = jnp.divmod(jnp.argmax(numbers.ravel() == token + 1), side**2)
        return jnp.zeros(count + 1).at[numbers[window]].set(weights[window, place])[1:]

    return jax.vmap(spread)(asked)


@functools.partial(jax.jit, static_argnames="block")
def entering_tokens(backbone: Backbone, images: jax.Array, *, block: int) -> jax.Array:
    """The image's tokens before a block: [1, N, C], or of every window, [windows, N, C].

    Args:
        backbone: a ViT or a Swin.
        images: [1, rows, columns, 3], normalised.
        block: 0-based.

    Raises:
        ValueError: the block or the backbone is none of these.
    """
    _check_block(backbone, block)
    recorder = _WindowRecorder(NO_PLAN, block, block)
    expedite(backbone, recorder)(images)
    return recorder.recorded["entering"].values


def _check_block(backbone: Backbone, block: int) -> None:
    if block not in range(backbone.depth):
        raise ValueError(f"block must be one of the backbone's, 0 to {backbone.depth - 1}, got {block}")
