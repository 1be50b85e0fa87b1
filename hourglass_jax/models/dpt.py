"""DPT and Depth Anything V1 and V2: features of several blocks, reassembled to maps, fused from coarse to fine.

Source: isl-org/DPT, dpt/{models,blocks,vit}.py (arXiv 2103.13413); DepthAnything/Depth-Anything-V2,
depth_anything_v2/dpt.py and metric_depth/depth_anything_v2/dpt.py (arXiv 2406.09414).
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.layers import gelu, kernel_and_bias
from hourglass_jax.backbones.vit import BlockFeatures, ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import Labels, labels_of
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.depth import Depth
from hourglass_jax.tasks.segmentation import Segmentation

FACTORS = (4, 2, 1, 0.5)
"""Sides of the four maps as multiples of the token grid's."""
HEAD_WIDTH = 32
"""Channels of the depth head's last map."""
SMALLEST = 1e-8
"""The least inverse depth, 1 / metre, that is inverted."""


@dataclass(frozen=True)
class DPTConfig:
    """A ViT, the fusion of its features, and the preparation of images.

    Attributes:
        backbone: the ViT; DPT resizes its position embedding bilinearly.
        hooks: 0-based blocks whose features become the four maps. A hybrid has two hooks: its two finer maps are
            those of the first two stages of its stem.
        widths: channels of the four maps, from fine to coarse.
        fusion_width: channels of all maps during the fusion.
        readout: use of the class token: "project" joins it to every token (DPT), "ignore" drops it.
        norm_features: whether the backbone's final norm is applied to the features (Depth Anything).
        preprocessing: how images are prepared.
    """

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig(
            width=1024, depth=24, heads=16, position_grid=(24, 24), position_resize="bilinear"
        )
    )
    hooks: tuple[int, ...] = (5, 11, 17, 23)
    widths: tuple[int, int, int, int] = (256, 512, 1024, 1024)
    fusion_width: int = 256
    readout: Literal["project", "ignore"] = "project"
    norm_features: bool = False
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(
            size=384,
            multiple=32,
            resize="minimal",
            interpolation="cubic",
            mean=(0.5, 0.5, 0.5),
            std=(0.5, 0.5, 0.5),
        )
    )

    def __post_init__(self) -> None:
        check_config(self, zero=("hooks",))
        expected = len(FACTORS) if self.backbone.stem is None else 2
        if len(self.hooks) != expected or len(self.widths) != len(FACTORS):
            raise ValueError(
                f"expected {expected} hooks and {len(FACTORS)} widths, got {len(self.hooks)} and {len(self.widths)}"
            )
        if max(self.hooks) >= self.backbone.depth:
            raise ValueError(f"hooks must be blocks 0 to {self.backbone.depth - 1}, got {self.hooks}")
        if self.readout == "project" and self.backbone.special_tokens < 1:
            raise ValueError("readout must be 'ignore' for a backbone without a class token, got 'project'")


@dataclass(frozen=True)
class DPTDepthConfig(DPTConfig):
    """A DPT for depth: relative inverse depth, unless `inversion` or `max_depth` converts it to metres.

    Attributes:
        inversion: (scale, shift): the depth is 1 / (scale * output + shift) metres (DPT for KITTI and NYUv2).
        max_depth: the depth is sigmoid(output) times so many metres (Depth Anything V2, metric).
        resampling: how a depth map is resized to its photograph.
    """

    inversion: tuple[float, float] | None = None
    max_depth: float | None = None
    resampling: Literal["bicubic", "bilinear-align-corners"] = "bicubic"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.inversion is not None and (self.max_depth is not None or min(self.inversion) <= 0):
            raise ValueError(
                "inversion must be a positive scale and shift, without max_depth, "
                f"got {self.inversion} and max_depth {self.max_depth}"
            )
        if self.max_depth is not None and self.max_depth <= 0:
            raise ValueError(f"max_depth must be a positive number of metres, got {self.max_depth}")

    @property
    def farthest(self) -> float | None:
        """Largest depth in metres that the model can predict; None if its depth is relative."""
        return 1 / self.inversion[1] if self.inversion else self.max_depth


@dataclass(frozen=True)
class DPTSegmentationConfig(DPTConfig):
    """A DPT for semantic segmentation.

    Attributes:
        classes: number of classes.
        dataset: data set of the classes (`imaging.labels.DATASETS`), or None.
        labels: names and colours of the classes if they differ from those of the data set, or None.
    """

    classes: int = 150
    dataset: str | None = None
    labels: Labels | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.labels is not None and len(self.labels.names) != self.classes:
            raise ValueError(f"labels must name {self.classes} classes, got {len(self.labels.names)}")


def _convolution(
    inputs: int, outputs: int, *, stride: int = 1, bias: bool = True, dtype: jnp.dtype, rngs: nnx.Rngs
) -> nnx.Conv:
    """3 x 3, with one row or column of zeros on every side."""
    return nnx.Conv(inputs, outputs, (3, 3), stride, padding=1, use_bias=bias, dtype=dtype, rngs=rngs)


class Reassemble(nnx.Module):
    """The tokens after a block as a map of `factor` times the token grid's sides."""

    def __init__(self, config: DPTConfig, index: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, outputs = config.backbone.width, config.widths[index]
        kinds = {"dtype": dtype, "rngs": rngs}
        self.factor = FACTORS[index]
        self.readout = nnx.Linear(2 * width, width, **kinds) if config.readout == "project" else None
        self.projection = nnx.Linear(width, outputs, **kinds)
        if self.factor > 1:
            self.upsampling = nnx.Linear(outputs, int(self.factor) ** 2 * outputs, use_bias=False, **kinds)
            self.upsampling_bias = nnx.Param(jnp.zeros(outputs))
        elif self.factor < 1:
            self.downsampling = _convolution(outputs, outputs, stride=round(1 / self.factor), **kinds)

    def __call__(self, features: BlockFeatures, grid: Grid) -> jax.Array:
        """Features on a grid of H x W tokens -> [B, factor * H, factor * W, outputs]."""
        tokens = features.tokens
        if self.readout is not None:
            tokens = gelu(_join_readout(self.readout, tokens, features.special[:, :1]))
        x = self.projection(tokens).reshape(tokens.shape[0], *grid, -1)
        if self.factor > 1:
            return self._upsample(x)
        return self.downsampling(x) if self.factor < 1 else x

    def _upsample(self, x: jax.Array) -> jax.Array:
        """A transposed convolution whose stride is the side of its kernel: every position becomes one tile."""
        side = int(self.factor)
        batch, rows, columns, width = x.shape
        tiles = self.upsampling(x).reshape(batch, rows, columns, side, side, width).swapaxes(2, 3)
        return tiles.reshape(batch, side * rows, side * columns, width) + self.upsampling_bias[...].astype(x.dtype)


def _join_readout(readout: nnx.Linear, tokens: jax.Array, class_token: jax.Array) -> jax.Array:
    """The readout of every token joined to the class token, whose product is computed once for all tokens."""
    kernel, bias = kernel_and_bias(readout, tokens.dtype)
    of_tokens, of_class = jnp.split(kernel, 2)
    return tokens @ of_tokens + (class_token @ of_class + bias)


class ResidualUnit(nnx.Module):
    """Two convolutions, each after a ReLU, with a residual connection."""

    def __init__(self, width: int, *, batch_norm: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        self.convolution1 = _convolution(width, width, bias=not batch_norm, **kinds)
        self.norm1 = _batch_norm(width, **kinds) if batch_norm else None
        self.convolution2 = _convolution(width, width, bias=not batch_norm, **kinds)
        self.norm2 = _batch_norm(width, **kinds) if batch_norm else None

    def __call__(self, x: jax.Array) -> jax.Array:
        branch = self.convolution1(jax.nn.relu(x))
        if self.norm1 is not None:
            branch = self.norm1(branch)
        branch = self.convolution2(jax.nn.relu(branch))
        if self.norm2 is not None:
            branch = self.norm2(branch)
        return x + branch


def _batch_norm(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.BatchNorm:
    return nnx.BatchNorm(width, use_running_average=True, epsilon=1e-5, dtype=dtype, rngs=rngs)


class Fusion(nnx.Module):
    """Adds a map to the fused map, and upsamples the sum."""

    def __init__(self, width: int, *, is_first: bool, batch_norm: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        self.unit1 = None if is_first else ResidualUnit(width, batch_norm=batch_norm, **kinds)
        self.unit2 = ResidualUnit(width, batch_norm=batch_norm, **kinds)
        self.projection = nnx.Linear(width, width, **kinds)

    def __call__(self, x: jax.Array, fused: jax.Array | None, size: tuple[int, int]) -> jax.Array:
        """A map x [B, H, W, C] and what coarser maps were fused to, of the same shape -> [B, *size, C].

        The projection comes before the upsampling, not after it as in the official code: it works on every position
        alone and the weights of the upsampling sum to one, so that the order changes nothing but the cost.
        """
        if fused is not None and self.unit1 is not None:
            x = fused + self.unit1(x)
        return resize(self.projection(self.unit2(x)), size, "bilinear-align-corners")


class DPT(VisionModel):
    """Image to the fused map; subclasses add the `head`."""

    config: DPTConfig
    backbone: ViT

    def __init__(self, config: DPTConfig, *, batch_norm: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        super().__init__(config, ViT(config.backbone, **kinds))
        count, width = len(FACTORS), config.fusion_width
        self.reassemble = nnx.List(
            [Reassemble(config, i, **kinds) for i in range(count - len(config.hooks), count)]
        )
        self.convolutions = nnx.List(
            [_convolution(channels, width, bias=False, **kinds) for channels in config.widths]
        )
        self.fusions = nnx.List(
            [Fusion(width, is_first=i == count - 1, batch_norm=batch_norm, **kinds) for i in range(count)]
        )

    def features(self, images: jax.Array) -> ViTFeatures:
        """The backbone's features, including those of the hooks."""
        return self.backbone(images, intermediates=self.config.hooks)

    def fused(self, features: ViTFeatures) -> jax.Array:
        """Features on a grid of H x W tokens -> the fused map, [B, 8 H, 8 W, fusion width]."""
        hooked = features.intermediates
        if self.config.norm_features:
            hooked = tuple(BlockFeatures(*map(self.backbone.norm, block)) for block in hooked)
        maps = list(features.stem[: len(FACTORS) - len(hooked)])
        maps += [module(block, features.token_grid) for module, block in zip(self.reassemble, hooked, strict=True)]
        finest = maps[0].shape[1:3]
        sizes = [(2 * finest[0], 2 * finest[1]), *((finer.shape[1], finer.shape[2]) for finer in maps)]
        last = len(maps) - 1
        fused = self.fusions[last](self.convolutions[last](maps[last]), None, sizes[last])
        for index in reversed(range(last)):
            fused = self.fusions[index](self.convolutions[index](maps[index]), fused, sizes[index])
        return fused


class DPTDepth(DPT):
    """Image to depth in metres, or to relative inverse depth."""

    config_class = DPTDepthConfig
    config: DPTDepthConfig

    def __init__(
        self, config: DPTDepthConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or DPTDepthConfig()
        super().__init__(config, batch_norm=False, dtype=dtype, rngs=rngs)
        width = config.fusion_width
        self.convolution1 = _convolution(width, width // 2, dtype=dtype, rngs=rngs)
        self.convolution2 = _convolution(width // 2, HEAD_WIDTH, dtype=dtype, rngs=rngs)
        self.regression = nnx.Linear(HEAD_WIDTH, 1, dtype=dtype, rngs=rngs)

    @property
    def tasks(self) -> dict[str, Task]:
        """Depth alone."""
        return {"depth": Depth(self.config.farthest, self.config.resampling)}

    def decode(self, features: ViTFeatures, size: Size | None) -> jax.Array:
        """The head: features -> depth at `size` (by default the images'), [B, rows, columns], float32."""
        config = self.config
        size = size or self.backbone.image_size(features.token_grid)
        with jax.named_scope("head"):
            x = resize(self.convolution1(self.fused(features)), size, "bilinear-align-corners")
            output = self.regression(jax.nn.relu(self.convolution2(x)))[..., 0].astype(jnp.float32)
            if config.max_depth is not None:
                return config.max_depth * jax.nn.sigmoid(output)
            inverse = jax.nn.relu(output)
            if config.inversion is None:
                return inverse
            scale, shift = config.inversion
            return 1 / jnp.maximum(scale * inverse + shift, SMALLEST)


class DPTSegmentation(DPT):
    """Image to class logits of every pixel."""

    config_class = DPTSegmentationConfig
    config: DPTSegmentationConfig

    def __init__(
        self, config: DPTSegmentationConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or DPTSegmentationConfig()
        super().__init__(config, batch_norm=True, dtype=dtype, rngs=rngs)
        width = config.fusion_width
        self.convolution = _convolution(width, width, bias=False, dtype=dtype, rngs=rngs)
        self.norm = _batch_norm(width, dtype=dtype, rngs=rngs)
        self.classifier = nnx.Linear(width, config.classes, dtype=dtype, rngs=rngs)

    @property
    def tasks(self) -> dict[str, Task]:
        """Segmentation alone."""
        config = self.config
        labels = config.labels or labels_of(config.dataset, config.classes)
        task = Segmentation(labels, config.dataset, resampling="bicubic", average="probabilities")
        return {"segmentation": task}

    def decode(self, features: ViTFeatures, size: Size | None) -> jax.Array:
        """The head: features -> logits at `size` (by default the images'), [B, rows, columns, classes], float32."""
        size = size or self.backbone.image_size(features.token_grid)
        with jax.named_scope("head"):
            x = jax.nn.relu(self.norm(self.convolution(self.fused(features))))
            return resize(self.classifier(x).astype(jnp.float32), size, "bilinear-align-corners")
