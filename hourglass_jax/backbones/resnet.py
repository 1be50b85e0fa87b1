"""The convolutional network in front of a hybrid vision transformer: BiT's ResNet-50 without its last stage."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.checks import check_config

GROUPS = 32
"""Number of groups of every group norm."""
NORM_EPSILON = 1e-5
EXPANSION = 4
"""Ratio of the channels of a stage to those of its bottlenecks."""


@dataclass(frozen=True)
class ResNetConfig:
    """The shape of a residual network with bottlenecks.

    Attributes:
        depths: number of bottlenecks of each stage.
        widths: channels of each stage's feature map.
        stem_width: channels of the first convolution.
    """

    depths: tuple[int, ...] = (3, 4, 9)
    widths: tuple[int, ...] = (256, 512, 1024)
    stem_width: int = 64

    def __post_init__(self) -> None:
        check_config(self, layers=("depths",))
        if not self.depths or len(self.depths) != len(self.widths):
            raise ValueError(f"depths and widths must be as many as stages, got {self.depths} and {self.widths}")
        for width in (self.stem_width, *(width // EXPANSION for width in self.widths)):
            if width % GROUPS:
                raise ValueError(f"convolutions must have multiples of {GROUPS} channels, got {width}")

    @property
    def stride(self) -> int:
        """Stride of the last feature map in pixels."""
        return 4 * 2 ** (len(self.depths) - 1)


class Convolution(nnx.Module):
    """A convolution without a bias, padded so that a stride of one keeps the size ("same", as in TensorFlow).

    Its weights are standardised per output channel in training; the kernel stores the standardised weights.
    """

    def __init__(
        self, side: int, inputs: int, outputs: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.stride = stride
        self.dtype = dtype
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (side, side, inputs, outputs)))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs], rounded up."""
        kernel = self.kernel[...].astype(self.dtype)
        if len(kernel) == 1:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0]
        return jax.lax.conv_general_dilated(
            x, kernel, (self.stride, self.stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )


class GroupNorm(nnx.Module):
    """Group norm over 32 groups of channels, as one multiplication and addition for every channel of an image."""

    def __init__(self, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(channels))
        self.bias = nnx.Param(jnp.zeros(channels))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, channels] -> the same shape; moments are computed in float32."""
        channels = x.shape[-1]
        values = x.astype(jnp.float32)

        def over_groups(by_channel: jax.Array) -> jax.Array:
            grouped = by_channel.reshape(x.shape[0], GROUPS, -1).mean(axis=-1)
            return jnp.repeat(grouped, channels // GROUPS, axis=-1)[:, None, None]

        mean = over_groups(values.mean(axis=(1, 2)))
        variance = over_groups(jnp.square(values - mean).mean(axis=(1, 2)))
        factor = self.scale[...] * jax.lax.rsqrt(variance + NORM_EPSILON)
        return (values * factor + (self.bias[...] - mean * factor)).astype(self.dtype)


class Bottleneck(nnx.Module):
    """A residual bottleneck: convolutions of 1 x 1, 3 x 3 (possibly strided) and 1 x 1, each with a norm."""

    def __init__(
        self, inputs: int, outputs: int, *, stride: int, is_first: bool, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        width = outputs // EXPANSION
        kinds = {"dtype": dtype, "rngs": rngs}
        self.convolution1 = Convolution(1, inputs, width, **kinds)
        self.norm1 = GroupNorm(width, **kinds)
        self.convolution2 = Convolution(3, width, width, stride=stride, **kinds)
        self.norm2 = GroupNorm(width, **kinds)
        self.convolution3 = Convolution(1, width, outputs, **kinds)
        self.norm3 = GroupNorm(outputs, **kinds)
        self.shortcut = Convolution(1, inputs, outputs, stride=stride, **kinds) if is_first else None
        self.shortcut_norm = GroupNorm(outputs, **kinds) if is_first else None

    def __call__(self, x: jax.Array) -> jax.Array:
        shortcut = x
        if self.shortcut is not None and self.shortcut_norm is not None:
            shortcut = self.shortcut_norm(self.shortcut(x))
        x = jax.nn.relu(self.norm1(self.convolution1(x)))
        x = jax.nn.relu(self.norm2(self.convolution2(x)))
        return jax.nn.relu(self.norm3(self.convolution3(x)) + shortcut)


class ResNet(nnx.Module):
    """Image to the feature maps of its stages.

    Source: huggingface/pytorch-image-models, timm/models/resnetv2.py (`ResNetV2` with preact=False and
        stem_type="same") and timm/models/vision_transformer_hybrid.py.
    """

    def __init__(self, config: ResNetConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        kinds = {"dtype": dtype, "rngs": rngs}
        self.convolution = Convolution(7, 3, config.stem_width, stride=2, **kinds)
        self.norm = GroupNorm(config.stem_width, **kinds)
        inputs = (config.stem_width, *config.widths)
        self.stages = nnx.List(
            [
                nnx.List(
                    [
                        Bottleneck(
                            width if number else inputs[stage],
                            width,
                            stride=2 if stage and not number else 1,
                            is_first=number == 0,
                            **kinds,
                        )
                        for number in range(depth)
                    ]
                )
                for stage, (depth, width) in enumerate(zip(config.depths, config.widths, strict=True))
            ]
        )

    def __call__(self, images: jax.Array) -> tuple[jax.Array, ...]:
        """Normalised images [B, rows, columns, 3] -> a map of each stage, the first of a quarter of the sides."""
        x = jax.nn.relu(self.norm(self.convolution(images.astype(self.dtype))))
        # Zero padding does not change the maximum: values are not negative after the ReLU.
        x = jax.lax.reduce_window(x, jnp.zeros((), x.dtype), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")
        maps = []
        for stage in self.stages:
            for bottleneck in stage:
                x = bottleneck(x)
            maps.append(x)
        return tuple(maps)
