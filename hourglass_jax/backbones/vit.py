"""The vision transformer (ViT, DeiT, DINOv2, DINOv3, hybrids), from image to features.

`ViT.__call__` is the whole forward pass; a plan is what it calls around its blocks (`plans.base.Plan`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.base import Backbone, check_call
from hourglass_jax.backbones.layers import Block, PatchEmbedding, kernel_and_bias
from hourglass_jax.backbones.resnet import ResNet, ResNetConfig
from hourglass_jax.backbones.windowed import RelativePositions, Windows, no_norm
from hourglass_jax.checks import MOST, check_config
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import ResizeMethod, resize
from hourglass_jax.ops.rotary import Rotation, rotate, rotation
from hourglass_jax.plans.base import NO_PLAN, Plan, Tokens
from hourglass_jax.plans.windowed import WindowedPlan

SIZES = MappingProxyType(
    {
        "tiny": {"width": 192, "depth": 12},
        "small": {"width": 384, "depth": 12},
        "base": {"width": 768, "depth": 12},
        "large": {"width": 1024, "depth": 24},
        "huge": {"width": 1280, "depth": 32},
        "giant": {"width": 1536, "depth": 40, "mlp": "swiglu", "mlp_ratio": 8 / 3},
    }
)
"""The published sizes of DeiT (tiny to base), ViT (base to huge) and DINOv2 (small to large, giant)."""
DINOV3 = MappingProxyType(
    {
        "small": {"width": 384, "depth": 12, "heads": 6},
        "small-plus": {"width": 384, "depth": 12, "heads": 6, "mlp": "swiglu"},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
        "huge-plus": {"width": 1280, "depth": 32, "heads": 20, "mlp": "swiglu"},
        "7b": {"width": 4096, "depth": 40, "heads": 32, "mlp": "swiglu", "mlp_ratio": 2.0},
    }
)
"""The published sizes of DINOv3 (arXiv 2508.10104)."""
HEADS = MappingProxyType({1280: 16, 1408: 16, 1664: 16})
"""Heads by width for the ViTs whose heads are not 64 channels wide: H, and the g and G of arXiv 2106.04560."""


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
        patch_size: side of a square patch in pixels; with a stem, of what a token stands for.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP, in units of `width`.
        mlp: "gelu", or "swiglu" (DINOv2 ViT-g, some of DINOv3): silu of one half of the expansion times the other.
        special_tokens: class, distillation and register tokens, in this order, in front of the image's.
        position_grid: (rows, columns) of the stored position embedding; None if tokens get none when they enter.
        position_resize: how it is resized to another grid: "bicubic" (DINOv2), "bicubic-antialias" (timm, DINOv2
            with registers), "bilinear" (Segmenter), "bicubic-align-corners" (SWAG).
        position_offset: added to the target's sides where the scale is computed: 0.1 in DINOv2's first release.
        rotary_base: of the frequencies by which queries and keys of the image's tokens are turned in every block
            (`ops.rotary`); None if they are not.
        layer_scale: whether blocks scale their branches.
        norm_epsilon: of every LayerNorm.
        stem: the convolutional network whose features are embedded in place of pixels (a hybrid), or None.
        predictors: blocks that have a prediction module of DynamicViT.
        windows: attention inside windows with relative positions (SAM), or None.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    special_tokens: int = 1
    position_grid: Grid | None = (14, 14)
    position_resize: ResizeMethod = "bicubic"
    position_offset: float = 0.0
    rotary_base: float | None = None
    layer_scale: bool = False
    norm_epsilon: float = 1e-6
    stem: ResNetConfig | None = None
    predictors: tuple[int, ...] = ()
    windows: Windows | None = None

    def __post_init__(self) -> None:
        check_config(self, layers=("depth",), zero=("special_tokens", "predictors"))
        if not 0 < self.mlp_ratio * self.width <= MOST or self.norm_epsilon < 0:
            raise ValueError(
                "mlp_ratio must be positive and norm_epsilon not negative, "
                f"got {self.mlp_ratio} for a width of {self.width}, and {self.norm_epsilon}"
            )
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and {self.heads} heads")
        if self.position_grid is None and self.rotary_base is None:
            raise ValueError("position_grid may be None only beside a rotary_base: tokens need positions")
        if self.rotary_base is not None and (self.rotary_base <= 0 or self.width // self.heads % 4):
            raise ValueError(
                "rotary_base must be positive, and heads a multiple of 4 channels wide, "
                f"got {self.rotary_base} and {self.width // self.heads} channels"
            )
        if self.stem is not None and self.patch_size % self.stem.stride:
            raise ValueError(
                f"patch_size must be a multiple of the stem's stride, {self.stem.stride}, got {self.patch_size}"
            )
        if self.windows is not None:
            if self.position_grid is None:
                raise ValueError("windows need a position_grid, whose relative positions they have; got None")
            self.windows.check(self.depth, self.special_tokens)

    @classmethod
    def sized(cls, size: Literal["tiny", "small", "base", "large", "huge", "giant"], **fields: Any) -> "ViTConfig":
        """One of the published `SIZES`, with further fields."""
        shape = SIZES[size]
        return cls(**{**shape, "heads": heads_of(shape["width"]), **fields})

    @classmethod
    def dinov3(
        cls, size: Literal["small", "small-plus", "base", "large", "huge-plus", "7b"], **fields: Any
    ) -> "ViTConfig":
        """One of the published sizes of DINOv3, with further fields.

        Source: facebookresearch/dinov3, dinov3/hub/backbones.py.
        """
        common = {
            "special_tokens": 5,
            "position_grid": None,
            "rotary_base": 100.0,
            "layer_scale": True,
            "norm_epsilon": 1e-5,
        }
        return cls(**{**common, **DINOV3[size], **fields})


def heads_of(width: int) -> int:
    """The number of heads that published ViTs of a width have.

    Raises:
        ValueError: there is none of this width.
    """
    if width not in HEADS and width % 64:
        raise ValueError(f"the number of heads is not known for tokens of {width} channels")
    return HEADS.get(width, width // 64)


class BlockFeatures(NamedTuple):
    """What a block returns, without the final norm: special tokens [B, S, C], and the image's, [B, H*W, C]."""

    special: jax.Array
    tokens: jax.Array


class ViTFeatures(NamedTuple):
    """What a ViT returns.

    Attributes:
        special: [B, S, C], the class, distillation and register tokens after the final norm.
        tokens: the image's tokens after the final norm: `tokens.values` is [B, H*W, C], or the clusters where the
            plan leaves the reconstruction to the head (`tokens.restore`).
        token_grid: (H, W).
        intermediates: the features after each requested block, restored to the full grid.
        stem: the feature maps of the stem's stages, each [B, rows, columns, channels]; none without a stem.
    """

    special: jax.Array
    tokens: Tokens
    token_grid: Grid
    intermediates: tuple[BlockFeatures, ...]
    stem: tuple[jax.Array, ...] = ()

    def maps(self) -> dict[str, jax.Array]:
        """The final features of the full grid by name, [B, H, W, C]."""
        tokens = self.tokens.restore(self.tokens.values)
        return {"features": tokens.reshape(tokens.shape[0], *self.token_grid, -1)}


class ViT(Backbone):
    """A vision transformer without a head.

    The class token's own position embedding is part of `special_tokens`: their sum is what the blocks see.

    Attributes:
        plan: how many tokens the blocks work on; set by `expedite`.

    Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py; facebookresearch/dinov2,
        dinov2/models/vision_transformer.py; facebookresearch/dinov3, dinov3/models/vision_transformer.py;
        rstrudel/segmenter, segm/model/vit.py.
    """

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.plan: Plan | None = None
        normal = nnx.initializers.truncated_normal(0.02)
        self.stem = None if config.stem is None else ResNet(config.stem, dtype=dtype, rngs=rngs)
        stride, channels = (config.stem.stride, config.stem.widths[-1]) if config.stem else (1, 3)
        self.patch_embedding = PatchEmbedding(
            config.patch_size // stride, channels, config.width, dtype=dtype, rngs=rngs
        )
        self.special_tokens = nnx.Param(normal(rngs.params(), (config.special_tokens, config.width)))
        self.position_embedding = (
            None
            if config.position_grid is None
            else nnx.Param(normal(rngs.params(), (*config.position_grid, config.width)))
        )
        self.blocks = nnx.List(
            [
                Block(
                    config.width,
                    config.heads,
                    round(config.width * config.mlp_ratio),
                    gated=config.mlp == "swiglu",
                    layer_scale=config.layer_scale,
                    norm_epsilon=config.norm_epsilon,
                    predictor=index in config.predictors,
                    dtype=dtype,
                    rngs=rngs,
                )
                for index in range(config.depth)
            ]
        )
        if config.windows is None:
            self.relative_positions = None
            self.norm = nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        else:
            grid, width = config.position_grid, config.width // config.heads
            assert grid is not None, "see `ViTConfig`"
            self.relative_positions = nnx.List(
                [RelativePositions(config.windows, grid, index, width, rngs=rngs) for index in range(config.depth)]
            )
            self.norm = no_norm

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    @property
    def windows(self) -> tuple[range, int] | None:
        """See `Backbone.windows`."""
        return None if self.config.windows is None else (range(self.depth), self.config.windows.side)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of the map; see `Backbone.channels`."""
        return {"features": self.config.width}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels on a side of a patch; see `Backbone.strides`."""
        return {"features": self.config.patch_size}

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None:
        """See `Backbone.check_plan`."""
        plan = self._in_windows(plan)
        plan.check(self.depth, None if size is None else self.token_grid(*size))
        plan.check_backbone(self)

    def fit_plan(self, plan: Plan, size: tuple[int, int], made_for: tuple[int, int]) -> Plan:
        """See `Backbone.fit_plan`; a size counts in whole patches, as models pad."""
        side = self.config.patch_size
        grid, usual = ((-(-rows // side), -(-columns // side)) for rows, columns in (size, made_for))
        try:
            self._in_windows(plan).check(self.depth, grid)
        except ValueError:
            plan.check(self.depth, usual)
            plan = plan.fitted(grid, usual)
            plan.check(self.depth, grid)
        return plan

    def image_size(self, token_grid: Grid) -> tuple[int, int]:
        """(rows, columns) in pixels of images with so many tokens."""
        return token_grid[0] * self.config.patch_size, token_grid[1] * self.config.patch_size

    def plan_grid(self, rows: int, columns: int) -> Grid:
        """See `Backbone.plan_grid`: that of all tokens, or of a window's."""
        windows = self.config.windows
        return self.token_grid(rows, columns) if windows is None else (windows.side, windows.side)

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Tokens of an image of `rows` x `columns` pixels, and the fewest that the plan leaves of them."""
        plan = NO_PLAN if self.plan is None else self.plan
        counts = self._in_windows(plan).counts(self.depth, self.token_grid(rows, columns))
        return max(counts), min(counts)

    def token_grid(self, rows: int, columns: int) -> Grid:
        """(H, W) for an image of `rows` x `columns` pixels.

        Raises:
            ValueError: a side is not a positive multiple of the patch size.
        """
        side = self.config.patch_size
        if rows < side or columns < side or rows % side or columns % side:
            raise ValueError(f"image sides must be positive multiples of {side} pixels, got {rows} x {columns}")
        return rows // side, columns // side

    def __call__(self, images: jax.Array, *, intermediates: Sequence[int] = ()) -> ViTFeatures:
        """Runs the backbone under its plan.

        Args:
            images: [B, rows, columns, 3], normalised; sides are multiples of the patch size.
            intermediates: 0-based blocks whose features are wanted too.

        Returns:
            `ViTFeatures`.

        Raises:
            ValueError: the image's size, the plan or an intermediate does not fit.
        """
        grid = self.token_grid(*check_call(images, intermediates, self.depth))
        plan = NO_PLAN if self.plan is None else self._in_windows(self.plan)
        plan.check(self.depth, grid)

        with jax.named_scope("embedding"):
            stem = () if self.stem is None else self.stem(images)
            pixels = stem[-1] if stem else images.astype(self.dtype)
            side = self.patch_embedding.patch_size
            pixels = plan.before_embedding(pixels, side)
            cells = pixels.shape[1] // side, pixels.shape[2] // side
            special = self.special_tokens[...].astype(self.dtype)
            special = jnp.broadcast_to(special, (images.shape[0], *special.shape))
            sequence = jnp.concatenate([special, self.embed(pixels)], axis=1)
        tokens = Tokens.whole(sequence, grid, special=special.shape[1], depth=self.depth, cells=cells)

        kept, turns = {}, None
        for index, block in enumerate(self.blocks):
            tokens = plan.before_block(index, tokens, block)
            with jax.named_scope("blocks"):
                query, key, value = block.project(tokens.sequence)
                if self.config.rotary_base is not None:
                    turns = self._turns(tokens, turns)
                    query, key = (rotate(each, turns.rotation) for each in (query, key))
                if self.relative_positions is None:
                    mixed = plan.attention(query, key, value, tokens.key_bias)
                else:
                    _, bias = kernel_and_bias(block.attention.qkv)
                    mixed = self.relative_positions[index](query, key, value, tokens, bias)
                tokens = tokens.with_sequence(block.attend(tokens.sequence, mixed))
            tokens = plan.after_attention(index, tokens, query, key)
            with jax.named_scope("blocks"):
                tokens = tokens.with_sequence(block.feed_forward(tokens.sequence))
            if index in intermediates:
                kept[index] = BlockFeatures(tokens.special_values, tokens.restore(tokens.values))

        special = self.norm(tokens.special_values)
        tokens = plan.after_blocks(tokens.without_special())
        tokens = tokens.with_sequence(self.norm(tokens.sequence))
        return ViTFeatures(special, tokens, grid, tuple(kept[index] for index in intermediates), stem)

    def _in_windows(self, plan: Plan) -> Plan:
        """The plan on the maps of this backbone: inside windows where it has some."""
        windows = self.config.windows
        return plan if windows is None or plan is NO_PLAN else WindowedPlan(plan, windows.side)

    def embed(self, pixels: jax.Array) -> jax.Array:
        """The tokens that enter the first block, [B, H*W, C], of normalised images or of the stem's last map."""
        side = self.patch_embedding.patch_size
        grid = pixels.shape[1] // side, pixels.shape[2] // side
        embedded = self.patch_embedding(pixels)
        if self.position_embedding is None:
            return embedded
        return embedded + self._position_embedding(self.position_embedding[...], grid)

    def _position_embedding(self, stored: jax.Array, grid: Grid) -> jax.Array:
        offset = self.config.position_offset
        rows, columns, _ = stored.shape
        scale = None
        if offset and grid != (rows, columns):
            scale = (grid[0] + offset) / rows, (grid[1] + offset) / columns
        resized = resize(stored[None], grid, self.config.position_resize, scale=scale)
        return resized.reshape(1, -1, self.config.width).astype(self.dtype)

    def _turns(self, tokens: Tokens, before: "_Turns | None") -> "_Turns":
        """How queries and keys are turned in a block; computed anew where a plan has moved the tokens."""
        if before is not None and tokens.positions is before.positions and tokens.special == before.special:
            return before
        base, width = self.config.rotary_base, self.config.width // self.config.heads
        assert base is not None
        turned = rotation(tokens.positions, tokens.grid, width=width, base=base, special=tokens.special)
        return _Turns(tokens.positions, tokens.special, turned)


class _Turns(NamedTuple):
    """A rotation, and the tokens that it is of."""

    positions: jax.Array | np.ndarray
    special: int
    rotation: Rotation
