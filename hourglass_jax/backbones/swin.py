"""The Swin transformer, V1 and V2, from image to the features of every stage.

A window is a small image: under a plan, the tokens of every window are clustered and reconstructed by the same
operators as a ViT's, and the blocks between them run on smaller windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.base import Backbone, check_call
from hourglass_jax.backbones.layers import MLP, PatchEmbedding, kernel_and_bias
from hourglass_jax.checks import MOST, check_config
from hourglass_jax.ops.attention import window_attention
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import resize
from hourglass_jax.ops.windows import merge, partition, relative_positions, shifted_regions, window_grid
from hourglass_jax.plans.base import NO_PLAN, Plan, Tokens

SIZES = {
    "tiny": (96, (2, 2, 6, 2)),
    "small": (96, (2, 2, 18, 2)),
    "base": (128, (2, 2, 18, 2)),
    "large": (192, (2, 2, 18, 2)),
}
"""The published sizes: width and depths."""
EPSILON = 1e-5
"""Of every LayerNorm."""
MOST_STAGES = 16
"""Of a config: every stage has twice the channels of the one before."""


@dataclass(frozen=True)
class SwinConfig:
    """The shape of a Swin transformer.

    Attributes:
        width: channels of a token in the first stage; every further stage has twice as many.
        depths: blocks of every stage.
        head_width: channels of an attention head.
        window: side of a window in tokens.
        version: 1, or 2: cosine attention, continuous position bias, norms after the branches.
        pretrained_windows: for every stage, the side of the windows for which its position bias was trained: the
            size of the table (V1), or the unit of the coordinates (V2). None at all means `window` for each.
        shrink_windows: what becomes of a map no larger than a window. False pads and shifts it like any other (the
            official detection code, Mask2Former); True makes it one window, not shifted (the classification code).
        stage_norms: whether every stage's output has a norm (detection), or the last one's alone (classification).
        patch_size: side of a square patch in pixels.
        mlp_ratio: hidden channels of the MLP, in units of the stage's width.
    """

    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    head_width: int = 32
    window: int = 7
    version: Literal[1, 2] = 1
    pretrained_windows: tuple[int, ...] = ()
    shrink_windows: bool = False
    stage_norms: bool = True
    patch_size: int = 4
    mlp_ratio: float = 4.0

    def __post_init__(self) -> None:
        check_config(self, layers=("depths",))
        if not 1 <= len(self.depths) <= MOST_STAGES:
            raise ValueError(f"depths must be those of 1 to {MOST_STAGES} stages, got {len(self.depths)}")
        if not 0 < self.mlp_ratio * self.width * 2 ** len(self.depths) <= MOST:
            raise ValueError(f"mlp_ratio must be positive, got {self.mlp_ratio} for a width of {self.width}")
        windows = self.pretrained_windows or (self.window,) * len(self.depths)
        object.__setattr__(self, "pretrained_windows", tuple(windows))
        if self.width % self.head_width:
            raise ValueError(f"width must be a multiple of head_width, got {self.width} and {self.head_width}")
        if len(self.pretrained_windows) != len(self.depths):
            raise ValueError(
                "pretrained_windows must have a side for each stage: "
                f"got {len(self.pretrained_windows)} for {len(self.depths)} stages"
            )

    @classmethod
    def sized(cls, size: Literal["tiny", "small", "base", "large"], **fields: Any) -> "SwinConfig":
        """One of the published `SIZES`, with further fields."""
        width, depths = SIZES[size]
        return cls(width=width, depths=depths, **fields)


class SwinFeatures(NamedTuple):
    """What a Swin returns.

    Attributes:
        stages: of every stage, [B, H, W, C] after its norm.
        intermediates: after each requested block, restored to the full map [B, H, W, C].
    """

    stages: tuple[jax.Array, ...]
    intermediates: tuple[jax.Array, ...] = ()

    def maps(self) -> dict[str, jax.Array]:
        """The stages by the names that detectors call them: res2, res3, ..."""
        return dict(zip(map(_map_name, range(len(self.stages))), self.stages, strict=True))


def _map_name(stage: int) -> str:
    return f"res{stage + 2}"


class PositionTable(nnx.Module):
    """V1's bias of relative positions: a table, resized bilinearly for windows of another side.

    Source: Expedit-Mask2Former, mask2former/modeling/backbone/hourglass_swin.py (`resize_rpb_table`).
    """

    def __init__(self, window: int, heads: int, *, rngs: nnx.Rngs) -> None:
        side = 2 * window - 1
        self.table = nnx.Param(nnx.initializers.truncated_normal(0.02)(rngs.params(), (side, side, heads)))

    def __call__(self, window: int) -> jax.Array:
        """The bias of every offset, [2 window - 1, 2 window - 1, heads]."""
        side = 2 * window - 1
        return resize(self.table[...][None], (side, side), "bilinear")[0]


class ContinuousPositions(nnx.Module):
    """V2's bias of relative positions: an MLP of the logarithm of the offset, for windows of any side.

    Source: microsoft/Swin-Transformer, models/swin_transformer_v2.py.
    """

    def __init__(self, window: int, heads: int, *, rngs: nnx.Rngs) -> None:
        self.window = window
        self.expand = nnx.Linear(2, 512, rngs=rngs)
        self.contract = nnx.Linear(512, heads, use_bias=False, rngs=rngs)

    def __call__(self, window: int) -> jax.Array:
        """The bias of every offset, [2 window - 1, 2 window - 1, heads]."""
        offsets = np.arange(1 - window, window) * (8 / max(self.window - 1, 1))
        logarithms = np.sign(offsets) * np.log2(np.abs(offsets) + 1) / np.log2(8)
        coordinates = np.stack(np.meshgrid(logarithms, logarithms, indexing="ij"), axis=-1).astype(np.float32)
        table = self.contract(jax.nn.relu(self.expand(jnp.asarray(coordinates))))
        return 16 * jax.nn.sigmoid(table)


def _by_pair(table: jax.Array) -> jax.Array:
    """The bias of every offset [2 window - 1, 2 window - 1, heads] for every pair of tokens, [heads, N, N]."""
    by_head = table.reshape(-1, table.shape[-1]).T
    return by_head[:, relative_positions((len(table) + 1) // 2)]


class WindowAttention(nnx.Module):
    """Attention inside the windows of a map.

    The projections run on the map's own tokens. The official code projects the padding too, to no other effect: its
    queries, keys and values are the bias, and what comes out of it is cut off.

    Attributes:
        cluster_bias: under a plan that runs this block on clusters, the bias of every offset between them.
    """

    def __init__(self, config: SwinConfig, stage: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.width * 2**stage
        self.heads = heads = width // config.head_width
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        bias = PositionTable if config.version == 1 else ContinuousPositions
        self.position_bias = bias(config.pretrained_windows[stage], heads, rngs=rngs)
        self.cluster_bias: nnx.Cache | None = nnx.data(None)
        self.logit_scale = nnx.Param(jnp.full(heads, np.log(10))) if config.version == 2 else None

    def set_clusters(self, side: int | None) -> None:
        """Prepares for windows of `side` x `side` clusters, or for those of tokens."""
        if side is None:
            self.cluster_bias = None
            return
        bias = self.position_bias
        is_abstract = any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(nnx.state(bias)))
        self.cluster_bias = nnx.Cache(nnx.eval_shape(lambda bias: bias(side), bias) if is_abstract else bias(side))

    def bias(self, window: int) -> jax.Array:
        """The position bias of every pair of tokens of a window, [heads, window^2, window^2]."""
        table = self.position_bias(window) if self.cluster_bias is None else self.cluster_bias[...]
        return _by_pair(table)

    def project(self, x: jax.Array, window: int, shift: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The scaled queries, the keys and the values of a map [B, H, W, C], each [B * windows, N, heads, D]."""
        kernel, bias = kernel_and_bias(self.qkv, x.dtype)
        windows = partition(x @ kernel, window, shift) + bias
        query, key, value = jnp.moveaxis(windows.reshape(*windows.shape[:2], 3, self.heads, -1), 2, 0)
        if self.logit_scale is None:
            query = query * query.shape[-1] ** -0.5
        else:
            scale = jnp.exp(jnp.minimum(self.logit_scale[...], np.log(100)))[:, None]
            query, key = _normalized(query) * scale.astype(x.dtype), _normalized(key)
        return query, key, value

    def __call__(self, x: jax.Array, window: int, shift: int) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]"""
        grid = x.shape[1], x.shape[2]
        query, key, value = self.project(x, window, shift)
        regions = jnp.asarray(shifted_regions(grid, window, shift)) if shift else None
        mixed = window_attention(query, key, value, bias=self.bias(window), regions=regions)
        return self.projection(merge(mixed.reshape(*mixed.shape[:2], -1), grid, window, shift))


def _normalized(x: jax.Array) -> jax.Array:
    """Vectors of length one along the last axis."""
    squares = jnp.sum(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.maximum(squares, 1e-24)).astype(x.dtype)


class Block(nnx.Module):
    """A transformer block on windows: norms before the branches (V1) or after them (V2)."""

    def __init__(self, config: SwinConfig, stage: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.width * 2**stage
        self.norms_after = config.version == 2
        self.norm1 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.attention = WindowAttention(config, stage, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, round(width * config.mlp_ratio), dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, window: int, shift: int) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]; windows of `window` x `window` tokens, shifted by `shift`."""
        if self.norms_after:
            x = x + self.norm1(self.attention(x, window, shift))
            return x + self.norm2(self.mlp(x))
        x = x + self.attention(self.norm1(x), window, shift)
        return x + self.mlp(self.norm2(x))


class PatchMerging(nnx.Module):
    """Every 2 x 2 tokens become one of twice the channels."""

    def __init__(self, config: SwinConfig, stage: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.width * 2**stage
        self.norm_after = config.version == 2
        self.norm = nnx.LayerNorm((2 if self.norm_after else 4) * width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.reduction = nnx.Linear(4 * width, 2 * width, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]"""
        batch, height, width, channels = x.shape
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(batch, -(-height // 2), 2, -(-width // 2), 2, channels)
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, x.shape[1], x.shape[3], 4 * channels)
        return self.norm(self.reduction(x)) if self.norm_after else self.reduction(self.norm(x))


class Stage(nnx.Module):
    """The blocks on one map, and the merging that leads to the next one."""

    def __init__(self, config: SwinConfig, number: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        depth, is_last = config.depths[number], number == len(config.depths) - 1
        self.blocks = nnx.List([Block(config, number, dtype=dtype, rngs=rngs) for _ in range(depth)])
        self.merging = None if is_last else PatchMerging(config, number, dtype=dtype, rngs=rngs)


class Swin(Backbone):
    """A Swin transformer without a head.

    Maps that are no multiple of the window are filled up with zeros below and on the right, in every block anew, as
    in the official detection code (`SwinConfig.shrink_windows` has the classification code's rule for small maps).
    timm differs for such maps: it rolls before it fills up, so that its masks are in the wrong place.

    A plan's alpha and beta count the blocks of all stages. Its clusters (k, k) are those of a window; where a map
    is filled up, the padding is clustered with the rest. The blocks on clusters have windows of k x k, every second
    one shifted by k // 2, also in the mask, which keeps the old shift in the official code. temperature="auto" is
    every window's own.

    Attributes:
        plan: one that works inside windows and whose blocks on clusters lie in one stage; set by `expedite`.

    Source: microsoft/Swin-Transformer, models/swin_transformer.py and swin_transformer_v2.py;
        SwinTransformer/Swin-Transformer-Object-Detection, mmdet/models/backbones/swin_transformer.py;
        Expedit-Mask2Former, mask2former/modeling/backbone/hourglass_swin.py.
    """

    def __init__(self, config: SwinConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.plan: Plan | None = None
        self.patch_embedding = PatchEmbedding(config.patch_size, 3, config.width, dtype=dtype, rngs=rngs)
        self.patch_norm = nnx.LayerNorm(config.width, epsilon=EPSILON, dtype=dtype, rngs=rngs)
        numbers = range(len(config.depths))
        self.stages = nnx.List([Stage(config, number, dtype=dtype, rngs=rngs) for number in numbers])
        self.norms = nnx.List(
            [
                nnx.LayerNorm(config.width * 2**number, epsilon=EPSILON, dtype=dtype, rngs=rngs)
                for number in numbers
                if config.stage_norms or number == numbers[-1]
            ]
        )

    @property
    def depth(self) -> int:
        """Number of blocks, over all stages."""
        return sum(self.config.depths)

    @property
    def windows(self) -> tuple[range, int]:
        """See `Backbone.windows`."""
        longest = int(np.argmax(self.config.depths))
        first = sum(self.config.depths[:longest])
        return range(first, first + self.config.depths[longest]), self.config.window

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every stage; see `Backbone.channels`."""
        return {_map_name(stage): self.config.width * 2**stage for stage in range(len(self.stages))}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels on a side of every stage's tokens; see `Backbone.strides`."""
        return {_map_name(stage): self.config.patch_size * 2**stage for stage in range(len(self.stages))}

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None:
        """See `Backbone.check_plan`."""
        first = plan.in_windows(self.depth).start
        plan.check(self.depth)
        stage, _, end = self.stage_of(first)
        last = plan.in_windows(end).stop
        if last > end:
            raise ValueError(
                f"the clustered blocks must lie inside one stage: blocks {first} to {last - 1} are not, "
                f"with stages of {', '.join(map(str, self.config.depths))} blocks"
            )
        plan.check_windows(self.config.window if size is None else self.window(self.grids(*size)[stage]))

    def set_plan(self, plan: Plan | None) -> None:
        """See `Backbone.set_plan`; the position bias of the blocks on clusters is computed here, once."""
        self.plan = plan
        sides = {} if plan is None else self._cluster_sides(plan)
        for number, block in enumerate(block for stage in self.stages for block in stage.blocks):
            block.attention.set_clusters(sides.get(number))

    def grids(self, rows: int, columns: int) -> list[Grid]:
        """(H, W) of every stage for an image of `rows` x `columns` pixels."""
        grids = []
        for factor in (self.config.patch_size, *(2,) * (len(self.config.depths) - 1)):
            rows, columns = -(-rows // factor), -(-columns // factor)
            grids.append((rows, columns))
        return grids

    def plan_grid(self, rows: int, columns: int) -> Grid:
        """See `Backbone.plan_grid`: a window's."""
        return self.config.window, self.config.window

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Tokens and clusters of the stage that the plan is about, of the longest one without a plan."""
        blocks = self.windows[0] if self.plan is None else self.plan.in_windows(self.depth)
        stage, *_ = self.stage_of(blocks.start)
        grid = self.grids(rows, columns)[stage]
        count = grid[0] * grid[1]
        if self.plan is None:
            return count, count
        down, across = window_grid(grid, self.window(grid))
        return count, down * across * min(self._cluster_sides(self.plan).values()) ** 2

    def __call__(self, images: jax.Array, *, intermediates: Sequence[int] = ()) -> SwinFeatures:
        """Runs the backbone under its plan.

        Args:
            images: [B, rows, columns, 3], normalised, of any size; filled up to whole patches with zeros.
            intermediates: 0-based blocks, counted over all stages, whose features are wanted too.

        Returns:
            `SwinFeatures`.

        Raises:
            ValueError: the images' shape, the plan or an intermediate does not fit.
        """
        size = check_call(images, intermediates, self.depth)
        if self.plan is not None:
            self.check_plan(self.plan, size)
        with jax.named_scope("embedding"):
            below, right = (-side % self.config.patch_size for side in size)
            images = jnp.pad(images.astype(self.dtype), ((0, 0), (0, below), (0, right), (0, 0)))
            tokens = self.patch_norm(self.patch_embedding(images))
            x = tokens.reshape(images.shape[0], *self.grids(*size)[0], -1)

        outputs, kept, first = [], {}, 0
        for stage in self.stages:
            x, found = self._run_stage(stage, first, x, intermediates)
            outputs.append(x)
            kept |= found
            if stage.merging is not None:
                with jax.named_scope("blocks"):
                    x = stage.merging(x)
            first += len(stage.blocks)
        without_norm = len(outputs) - len(self.norms)
        for number, norm in enumerate(self.norms, start=without_norm):
            outputs[number] = norm(outputs[number])
        return SwinFeatures(tuple(outputs), tuple(kept[index] for index in intermediates))

    def _run_stage(
        self, stage: Stage, first: int, x: jax.Array, intermediates: Sequence[int]
    ) -> tuple[jax.Array, dict[int, jax.Array]]:
        """The map [B, H, W, C] after a stage whose first block's number is `first`, and after some of its blocks.

        To the plan, every window is an image: its tokens enter a block in windows that are not shifted. Where it
        changes nothing, the blocks go on with the map.
        """
        plan = NO_PLAN if self.plan is None else self.plan
        grid, kept = (x.shape[1], x.shape[2]), {}
        side = window = self.window(grid)
        tokens = Tokens.whole(partition(x, window), (window, window), depth=first + len(stage.blocks))
        for number, block in enumerate(stage.blocks):
            entering = tokens.with_sequence(partition(x, side))
            tokens = plan.before_block(
                first + number,
                entering,
                block,  # pyright: ignore[reportArgumentType]  a plan that works in windows asks a block for nothing
            )
            if tokens is not entering:
                side = math.isqrt(tokens.count)
                down, across = window_grid(grid, window)
                x = merge(tokens.sequence, grid if tokens.is_whole else (side * down, side * across), side)
            with jax.named_scope("blocks"):
                x = block(x, side, self.shift(number, side, grid))
            if first + number in intermediates:
                whole = tokens.is_whole
                kept[first + number] = x if whole else merge(tokens.restore(partition(x, side)), grid, window)
        entering = tokens.with_sequence(partition(x, side))
        tokens = plan.after_blocks(entering)
        return x if tokens is entering else merge(tokens.sequence, grid, window), kept

    def stage_of(self, block: int) -> tuple[int, int, int]:
        """The stage of a block, the first block of it and that of the next stage; all are counted from 0."""
        ends = np.cumsum(self.config.depths).tolist()
        stage = next(number for number, end in enumerate(ends) if block < end)
        return stage, ends[stage] - self.config.depths[stage], ends[stage]

    def shift(self, number: int, side: int, grid: Grid) -> int:
        """How far a block's windows are shifted.

        Args:
            number: of the block in its stage, from 0 on.
            side: of its windows, in tokens or clusters.
            grid: (H, W) of the stage's tokens.
        """
        is_one_window = self.config.shrink_windows and self.window(grid) == min(grid)
        return side // 2 if number % 2 and not is_one_window else 0

    def _cluster_sides(self, plan: Plan) -> dict[int, int]:
        """For every block that runs on k x k clusters of a window, k."""
        *_, end = self.stage_of(plan.in_windows(self.depth).start)
        counts = plan.counts(end, (self.config.window, self.config.window))
        return {index: math.isqrt(counts[index]) for index in plan.in_windows(end)}

    def window(self, grid: Grid) -> int:
        """The side of the windows on a map of `grid` = (H, W) tokens."""
        return min(self.config.window, *grid) if self.config.shrink_windows else self.config.window
