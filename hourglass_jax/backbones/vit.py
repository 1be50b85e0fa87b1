"""The vision transformer (ViT, DeiT, DINOv2, hybrids), from image to features.

The backbone knows of a plan only that it embeds the image, runs the blocks, and gets all tokens back.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.prediction import PredictionModule
from hourglass_jax.backbones.resnet import ResNet, ResNetConfig
from hourglass_jax.checks import MOST, check_config
from hourglass_jax.ops.attention import attention
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import ResizeMethod, resize
from hourglass_jax.tokens import NO_REDUCTION, TokenReduction, Tokens


@dataclass(frozen=True)
class ViTConfig:
    """The shape of a vision transformer.

    Attributes:
        patch_size: side of a square patch in pixels; with a stem, of what a token stands for.
        width: channels of a token.
        depth: number of blocks.
        heads: attention heads.
        mlp_ratio: hidden channels of the MLP, in units of `width`.
        mlp: "gelu", or "swiglu" (DINOv2 ViT-g): silu of one half of the expansion times the other.
        special_tokens: class, distillation and register tokens, in this order, in front of the image's.
        position_grid: (rows, columns) of the stored position embedding.
        position_resize: how it is resized to another grid: "bicubic" (DINOv2), "bicubic-antialias" (timm, DINOv2
            with registers), "bilinear" (Segmenter), "bicubic-align-corners" (SWAG).
        position_offset: added to the target's sides where the scale is computed: 0.1 in DINOv2's first release.
        layer_scale: whether blocks scale their branches.
        norm_epsilon: of every LayerNorm.
        stem: the convolutional network whose features are embedded in place of pixels (a hybrid), or None.
        predictors: blocks that have a prediction module of DynamicViT.
    """

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_ratio: float = 4.0
    mlp: Literal["gelu", "swiglu"] = "gelu"
    special_tokens: int = 1
    position_grid: Grid = (14, 14)
    position_resize: ResizeMethod = "bicubic"
    position_offset: float = 0.0
    layer_scale: bool = False
    norm_epsilon: float = 1e-6
    stem: ResNetConfig | None = None
    predictors: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self, layers=("depth",), zero=("special_tokens", "predictors"))
        if not 0 < self.mlp_ratio * self.width <= MOST or self.norm_epsilon < 0:
            raise ValueError(
                "mlp_ratio must be positive and norm_epsilon not negative, "
                f"got {self.mlp_ratio} for a width of {self.width}, and {self.norm_epsilon}"
            )
        if self.width % self.heads:
            raise ValueError(f"width must be a multiple of heads, got width {self.width} and {self.heads} heads")
        if self.stem is not None and self.patch_size % self.stem.stride:
            raise ValueError(
                f"patch_size must be a multiple of the stem's stride, {self.stem.stride}, got {self.patch_size}"
            )


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
        return {"features": tokens.reshape(len(tokens), *self.token_grid, -1)}


class PatchEmbedding(nnx.Module):
    """Non-overlapping patches, flattened and projected: a strided convolution written as one matrix product."""

    def __init__(self, patch_size: int, channels: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.patch_size = patch_size
        self.projection = nnx.Linear(patch_size**2 * channels, width, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, rows, columns, channels] -> [B, H*W, C]."""
        batch, rows, columns, channels = images.shape
        side = self.patch_size
        height, width = rows // side, columns // side
        patches = images.reshape(batch, height, side, width, side, channels).swapaxes(2, 3)
        return self.projection(patches.reshape(batch, height * width, -1))


class Attention(nnx.Module):
    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, N, C] -> query, key and value, each [B, heads, D, N]."""
        batch, count, width = x.shape
        kernel, bias = self.qkv.kernel[...].astype(x.dtype), self.qkv.bias[...].astype(x.dtype)
        qkv = jnp.einsum("bnc,cd->bdn", x, kernel) + bias[:, None]
        query, key, value = qkv.reshape(batch, 3, self.heads, width // self.heads, count).swapaxes(0, 1)
        return query, key, value

    def keys(self, x: jax.Array, *, mean: bool = False) -> jax.Array:
        """The keys alone, [B, N, C] -> [B, N, C], those of all heads side by side; or their mean, [B, N, D]."""
        width = x.shape[-1]
        kernel, bias = self.qkv.kernel[:, width : 2 * width], self.qkv.bias[width : 2 * width]
        if mean:
            kernel, bias = (y.reshape(*y.shape[:-1], self.heads, -1).mean(axis=-2) for y in (kernel, bias))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)

    def combine(self, mixed: jax.Array) -> jax.Array:
        """The output of all heads, [B, N, heads, D] -> [B, N, C]."""
        return self.projection(mixed.reshape(*mixed.shape[:2], -1))


class MLP(nnx.Module):
    def __init__(self, width: int, hidden: int, *, gated: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.gated = gated
        self.expand = nnx.Linear(width, 2 * hidden if gated else hidden, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.expand(x)
        if self.gated:
            gate, x = jnp.split(x, 2, axis=-1)
            return self.contract(jax.nn.silu(gate) * x)
        return self.contract(gelu(x))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU with erf, as PyTorch computes it; `jax.nn.gelu` takes erfc, which is slower on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


class Block(nnx.Module):
    """A pre-norm transformer block.

    Attributes:
        predictor: the prediction module before it, or None.
    """

    def __init__(self, config: ViTConfig, *, predictor: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width = config.width
        self.norm1 = nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, config.heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        hidden = round(width * config.mlp_ratio)
        self.mlp = MLP(width, hidden, gated=config.mlp == "swiglu", dtype=dtype, rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(width)) if config.layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(width)) if config.layer_scale else None
        self.predictor = PredictionModule(width, dtype=dtype, rngs=rngs) if predictor else None

    def __call__(self, x: jax.Array, key_bias: jax.Array | None = None) -> jax.Array:
        """[B, N, C] -> [B, N, C]; `key_bias` [B, N] is added to the attention logits of every key."""
        query, key, value = self.project(x)
        return self.feed_forward(self.attend(x, attention(query, key, value, key_bias=key_bias)))

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value of the tokens [B, N, C], each [B, heads, D, N]."""
        return self.attention.project(self.norm1(x))

    def attend(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """The tokens [B, N, C] with what attention mixed for them, [B, N, heads, D]."""
        return x + _scaled(self.attention.combine(mixed), self.scale1)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The second half of the block, [B, N, C] -> [B, N, C]."""
        return x + _scaled(self.mlp(self.norm2(x)), self.scale2)


def _scaled(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)


class ViT(nnx.Module):
    """A vision transformer without a head.

    The class token's own position embedding is part of `special_tokens`: their sum is what the blocks see.

    Attributes:
        plan: how many tokens the blocks work on; set by `expedite`.

    Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py; facebookresearch/dinov2,
        dinov2/models/vision_transformer.py; rstrudel/segmenter, segm/model/vit.py.
    """

    def __init__(self, config: ViTConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.plan: TokenReduction | None = None
        normal = nnx.initializers.truncated_normal(0.02)
        self.stem = None if config.stem is None else ResNet(config.stem, dtype=dtype, rngs=rngs)
        stride, channels = (config.stem.stride, config.stem.widths[-1]) if config.stem else (1, 3)
        self.patch_embedding = PatchEmbedding(
            config.patch_size // stride, channels, config.width, dtype=dtype, rngs=rngs
        )
        self.special_tokens = nnx.Param(normal(rngs.params(), (config.special_tokens, config.width)))
        self.position_embedding = nnx.Param(normal(rngs.params(), (*config.position_grid, config.width)))
        self.blocks = nnx.List(
            [
                Block(config, predictor=index in config.predictors, dtype=dtype, rngs=rngs)
                for index in range(config.depth)
            ]
        )
        self.norm = nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return self.config.depth

    def check_plan(self, plan: TokenReduction, size: tuple[int, int] | None = None) -> None:
        """Raises ValueError if the plan does not fit this backbone, or an image of `size` = (rows, columns)."""
        plan.check(self.depth, None if size is None else self.token_grid(*size))
        plan.check_backbone(self)

    def set_plan(self, plan: TokenReduction | None) -> None:
        """Puts a plan that fits in force, or none; called by `expedite`, which has it checked."""
        self.plan = plan

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Tokens of an image of `rows` x `columns` pixels, and the fewest that the plan leaves of them."""
        counts = self.plan.counts(self.depth, self.token_grid(rows, columns))
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
        if images.ndim != 4 or images.shape[-1] != 3:
            raise ValueError(f"images must have shape [batch, rows, columns, 3], got {images.shape}")
        grid = self.token_grid(*images.shape[1:3])
        depth = self.depth
        if any(index not in range(depth) for index in intermediates):
            raise ValueError(f"intermediates must be blocks 0 to {depth - 1}, got {tuple(intermediates)}")
        plan = NO_REDUCTION if self.plan is None else self.plan
        plan.check(depth, grid)

        with jax.named_scope("embedding"):
            maps = () if self.stem is None else self.stem(images)
            tokens = plan.embed(maps[-1] if maps else images.astype(self.dtype), self)
        special = jnp.broadcast_to(
            self.special_tokens[...].astype(self.dtype), (len(images), *self.special_tokens.shape)
        )
        kept = {}
        for index, block in enumerate(self.blocks):
            tokens = plan.before_block(index, tokens, depth=depth, token_grid=grid)
            special, tokens = plan.run_block(index, block, special, tokens, depth=depth, token_grid=grid)
            if index in intermediates:
                kept[index] = BlockFeatures(special, tokens.restore(tokens.values))
        tokens = plan.before_block(depth, tokens, depth=depth, token_grid=grid)

        tokens = tokens._replace(values=self.norm(tokens.values))
        return ViTFeatures(self.norm(special), tokens, grid, tuple(kept[index] for index in intermediates), maps)

    def embed(self, pixels: jax.Array) -> jax.Array:
        """The tokens that enter the first block, [B, H*W, C], of normalised images or of the stem's last map."""
        side = self.patch_embedding.patch_size
        grid = pixels.shape[1] // side, pixels.shape[2] // side
        return self.patch_embedding(pixels) + self._position_embedding(grid)

    def _position_embedding(self, grid: Grid) -> jax.Array:
        stored = self.position_embedding[...][None]
        offset = self.config.position_offset
        same = grid == self.config.position_grid
        scale = None
        if offset and not same:
            scale = tuple((new + offset) / old for new, old in zip(grid, self.config.position_grid, strict=True))
        resized = resize(stored, grid, self.config.position_resize, scale=scale)
        return resized.reshape(1, -1, self.config.width).astype(self.dtype)
