"""The ResNet of detectors: an image to the maps of four stages, by bottlenecks with batch norms.

In inference a batch norm multiplies and adds constants. They are folded into the convolution before it: its kernel
and bias are all that is left of both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.base import Backbone, check_call
from hourglass_jax.checks import check_config
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan

EXPANSION = 4
"""Channels of a stage, in units of those of its bottlenecks."""
STAGES = 4
NO_TOKENS = "a ResNet has no tokens that a plan could make fewer"


@dataclass(frozen=True)
class DetectorResNetConfig:
    """The shape of a ResNet of bottlenecks.

    Attributes:
        depths: bottlenecks of each of the four stages: (3, 4, 6, 3) are ResNet-50, (3, 4, 23, 3) ResNet-101.
        width: channels of the first stage's map; every further one has twice as many.
        stem_width: channels of the first convolution.
        stride_first: whether the stride of a stage lies in the first convolution of its first bottleneck, of 1 x 1
            (as in the networks of the first paper: detectron2's STRIDE_IN_1X1, mmdetection's style "caffe"), or in
            the second, of 3 x 3 (torchvision's, which Mask2Former and mmdetection's style "pytorch" have).
    """

    depths: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 256
    stem_width: int = 64
    stride_first: bool = False

    def __post_init__(self) -> None:
        check_config(self, layers=("depths",))
        if len(self.depths) != STAGES:
            raise ValueError(f"depths must be those of {STAGES} stages, got {len(self.depths)}")
        if self.width % EXPANSION:
            raise ValueError(f"width must be a multiple of {EXPANSION}, got {self.width}")


class DetectorResNetFeatures(NamedTuple):
    """What a ResNet returns.

    Attributes:
        stages: of every stage, [B, H, W, C].
        intermediates: after each requested bottleneck, [B, H, W, C].
    """

    stages: tuple[jax.Array, ...]
    intermediates: tuple[jax.Array, ...] = ()

    def maps(self) -> dict[str, jax.Array]:
        """The stages by the names that detectors call them: res2, res3, ..."""
        return dict(zip(map(_map_name, range(len(self.stages))), self.stages, strict=True))


def _map_name(stage: int) -> str:
    return f"res{stage + 2}"


class Convolution(nnx.Module):
    """A convolution with a bias, as many rows and columns of zeros on all four sides as its kernel reaches over."""

    def __init__(
        self, side: int, inputs: int, outputs: int, *, stride: int = 1, dtype: jnp.dtype, rngs: nnx.Rngs
    ) -> None:
        self.stride = stride
        self.dtype = dtype
        initial = nnx.initializers.he_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (side, side, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs], rounded up."""
        kernel, bias = (each[...].astype(self.dtype) for each in (self.kernel, self.bias))
        if len(kernel) == 1:
            return x[:, :: self.stride, :: self.stride] @ kernel[0, 0] + bias
        reach = len(kernel) // 2
        padding = [(reach, reach), (reach, reach)]
        strides = (self.stride, self.stride)
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=dimensions) + bias


class Bottleneck(nnx.Module):
    """Convolutions of 1, 3 and 1 on a side, around which a shortcut leads."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        stride: int,
        stride_first: bool,
        is_first: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        width = outputs // EXPANSION
        kinds = {"dtype": dtype, "rngs": rngs}
        first, second = (stride, 1) if stride_first else (1, stride)
        self.convolution1 = Convolution(1, inputs, width, stride=first, **kinds)
        self.convolution2 = Convolution(3, width, width, stride=second, **kinds)
        self.convolution3 = Convolution(1, width, outputs, **kinds)
        self.shortcut = Convolution(1, inputs, outputs, stride=stride, **kinds) if is_first else None

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, H / stride, W / stride, outputs], rounded up."""
        shortcut = x if self.shortcut is None else self.shortcut(x)
        x = jax.nn.relu(self.convolution1(x))
        x = jax.nn.relu(self.convolution2(x))
        return jax.nn.relu(self.convolution3(x) + shortcut)


class DetectorResNet(Backbone):
    """A ResNet without a head. It has maps and no tokens: no plan fits it.

    Source: facebookresearch/detectron2, detectron2/modeling/backbone/resnet.py (`BasicStem`, `BottleneckBlock`);
        pytorch/vision, torchvision/models/resnet.py; open-mmlab/mmdetection, mmdet/models/backbones/resnet.py.
    """

    def __init__(self, config: DetectorResNetConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config
        self.dtype = dtype
        self.plan: Plan | None = None
        kinds = {"dtype": dtype, "rngs": rngs}
        self.stem = Convolution(7, 3, config.stem_width, stride=2, **kinds)
        widths = [*self.channels.values()]
        inputs = (config.stem_width, *widths)
        self.stages = nnx.List(
            [
                nnx.List(
                    [
                        Bottleneck(
                            width if number else inputs[stage],
                            width,
                            stride=2 if stage and not number else 1,
                            stride_first=config.stride_first,
                            is_first=number == 0,
                            **kinds,
                        )
                        for number in range(depth)
                    ]
                )
                for stage, (depth, width) in enumerate(zip(config.depths, widths, strict=True))
            ]
        )

    @property
    def depth(self) -> int:
        """Number of bottlenecks, over all stages."""
        return sum(self.config.depths)

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every stage; see `Backbone.channels`."""
        return {_map_name(stage): self.config.width * 2**stage for stage in range(STAGES)}

    @property
    def strides(self) -> dict[str, int]:
        """Pixels on a side of one position of every stage; see `Backbone.strides`."""
        return {_map_name(stage): 4 * 2**stage for stage in range(STAGES)}

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None:
        """See `Backbone.check_plan`: none fits."""
        raise ValueError(f"{NO_TOKENS}: expected no plan, got {type(plan).__name__}")

    def plan_grid(self, rows: int, columns: int) -> Grid:
        """See `Backbone.plan_grid`."""
        raise ValueError(NO_TOKENS)

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Positions of the last map of an image of `rows` x `columns` pixels, of which none is spared."""
        stride = [*self.strides.values()][-1]
        count = -(-rows // stride) * -(-columns // stride)
        return count, count

    def __call__(self, images: jax.Array, *, intermediates: Sequence[int] = ()) -> DetectorResNetFeatures:
        """Runs the backbone.

        Args:
            images: [B, rows, columns, 3], normalised, of any size.
            intermediates: 0-based bottlenecks, counted over all stages, whose features are wanted too.

        Returns:
            `DetectorResNetFeatures`.

        Raises:
            ValueError: the images' shape or an intermediate does not fit.
        """
        check_call(images, intermediates, self.depth)
        with jax.named_scope("embedding"):
            x = jax.nn.relu(self.stem(images.astype(self.dtype)))
            # The padding never wins: after the ReLU there is nothing below its zeros.
            padding = ((0, 0), (1, 1), (1, 1), (0, 0))
            x = jax.lax.reduce_window(x, jnp.zeros((), x.dtype), jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), padding)
        outputs, kept, number = [], {}, 0
        with jax.named_scope("blocks"):
            for stage in self.stages:
                for bottleneck in stage:
                    x = bottleneck(x)
                    if number in intermediates:
                        kept[number] = x
                    number += 1
                outputs.append(x)
        return DetectorResNetFeatures(tuple(outputs), tuple(kept[index] for index in intermediates))
