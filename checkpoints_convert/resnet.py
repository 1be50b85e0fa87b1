"""The ResNets of detectors in the namings of their checkpoints: batch norms are folded into the convolutions.

Source: facebookresearch/detectron2, detectron2/modeling/backbone/resnet.py and detectron2/layers/batch_norm.py;
    pytorch/vision, torchvision/models/resnet.py, whose names mmdetection shares; huggingface/transformers,
    src/transformers/models/resnet/modeling_resnet.py.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from checkpoints_convert.rules import Fields, Row, Tensors, row, shape_of

EPSILON = 1e-5
"""Of every batch norm."""
STAGES = 4
CONVOLUTIONS = (1, 2, 3)
"""Of a bottleneck, from the first to the last."""
COUNTS = {r".*\.num_batches_tracked": "counts batches in training"}


@dataclass(frozen=True)
class Names:
    """What a naming calls the convolutions, and the batch norm of each: a pair of names.

    Attributes:
        stem: the first convolution.
        bottleneck: what stands before the names in a bottleneck of a stage, 0 to 3; a "*" is its number there.
        convolution: of a bottleneck, 1 to 3.
        shortcut: of the first bottleneck of a stage.
    """

    stem: tuple[str, str]
    bottleneck: Callable[[int], str]
    convolution: Callable[[int], tuple[str, str]]
    shortcut: tuple[str, str]

    def rows(self, prefix: str = "") -> tuple[Row, ...]:
        """The rows of a `DetectorResNet`, all of whose names begin with `prefix`."""
        found = [*_folded("backbone.stem", *self._named(prefix, self.stem))]
        for stage in range(STAGES):
            ours, theirs = f"backbone.stages.{stage}.*.", prefix + self.bottleneck(stage)
            for number in CONVOLUTIONS:
                found += _folded(f"{ours}convolution{number}", *self._named(theirs, self.convolution(number)))
            found += _folded(f"{ours}shortcut", *self._named(theirs, self.shortcut))
        return tuple(found)

    def is_in(self, tensors: Tensors, prefix: str = "") -> bool:
        """Whether a checkpoint has a ResNet of these names."""
        last, _ = self._named(prefix + self.bottleneck(0).replace("*", "0"), self.convolution(CONVOLUTIONS[-1]))
        return {f"{prefix}{self.stem[0]}.weight", f"{last}.weight"} <= tensors.keys()

    def config(self, tensors: Tensors, prefix: str = "", *, stride_first: bool) -> Fields:
        """The fields of a `DetectorResNetConfig`: what shows in the tensors' shapes, and where the strides are.

        Raises:
            ValueError: a tensor is not there, or the bottlenecks are of another kind.
        """
        last = [self._weight(prefix, stage, CONVOLUTIONS[-1]) for stage in range(STAGES)]
        widths = [shape_of(tensors, name.replace("*", "0"), axes=4)[0] for name in last]
        if widths != [widths[0] * 2**stage for stage in range(STAGES)]:
            raise ValueError(f"every stage of a ResNet must have twice the channels of the last, got {widths}")
        outputs, inputs = shape_of(tensors, self._weight(prefix, 0, 2).replace("*", "0"), axes=4)[:2]
        if inputs != outputs or 4 * outputs != widths[0]:
            raise ValueError(
                f"expected bottlenecks with a quarter of {widths[0]} channels in one group, got {outputs} channels "
                f"that read {inputs} each"
            )
        return {
            "depths": [_count(tensors, name) for name in last],
            "width": widths[0],
            "stem_width": shape_of(tensors, f"{prefix}{self.stem[0]}.weight", axes=4)[0],
            "stride_first": stride_first,
        }

    def _weight(self, prefix: str, stage: int, number: int) -> str:
        return f"{prefix}{self.bottleneck(stage)}{self.convolution(number)[0]}.weight"

    def _named(self, prefix: str, pair: tuple[str, str]) -> tuple[str, str]:
        return prefix + pair[0], prefix + pair[1]


def _count(tensors: Tensors, name: str) -> int:
    """How many tensors there are of this name with a number for its "*"."""
    pattern = re.escape(name).replace(r"\*", r"\d+")
    return sum(re.fullmatch(pattern, each) is not None for each in tensors)


def _folded(target: str, convolution: str, norm: str) -> tuple[Row, Row]:
    """The rows of a convolution and the batch norm after it, as one convolution with a bias."""
    return (
        row(f"{target}.kernel", (f"{convolution}.weight", f"{norm}.weight", f"{norm}.running_var"), folded_kernel),
        row(
            f"{target}.bias",
            (f"{norm}.weight", f"{norm}.bias", f"{norm}.running_mean", f"{norm}.running_var"),
            folded_bias,
        ),
    )


def folded_kernel(weight: np.ndarray, scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The kernel [rows, columns, in, out] of a convolution [out, in, rows, columns] and the batch norm after it."""
    return (weight.transpose(2, 3, 1, 0) * _factor(scale, variance)).astype(np.float32)


def folded_bias(scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The bias [out] of a convolution without one and the batch norm after it."""
    return (bias - mean * _factor(scale, variance)).astype(np.float32)


def _factor(scale: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """What a batch norm multiplies with, float64 [out]."""
    smallest = variance.min(initial=0)
    if smallest < 0:
        raise ValueError(f"variances must not be negative, got {smallest}")
    return scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + EPSILON)


DETECTRON2 = Names(
    stem=("stem.conv1", "stem.conv1.norm"),
    bottleneck=lambda stage: f"res{stage + 2}.*.",
    convolution=lambda number: (f"conv{number}", f"conv{number}.norm"),
    shortcut=("shortcut", "shortcut.norm"),
)
TORCHVISION = Names(
    stem=("conv1", "bn1"),
    bottleneck=lambda stage: f"layer{stage + 1}.*.",
    convolution=lambda number: (f"conv{number}", f"bn{number}"),
    shortcut=("downsample.0", "downsample.1"),
)
"""torchvision's and mmdetection's."""
TRANSFORMERS = Names(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    bottleneck=lambda stage: f"encoder.stages.{stage}.layers.*.",
    convolution=lambda number: (f"layer.{number - 1}.convolution", f"layer.{number - 1}.normalization"),
    shortcut=("shortcut.convolution", "shortcut.normalization"),
)
