"""A tiny model of every kind, none of whose parameters is trivial, and a toy of the kind that takes prompts."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.backbones.windowed import Windows
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.keep_ratio import KeepRatio
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.imaging.pictures import spotlight
from hourglass_jax.imaging.shortest_edge import ShortestEdge
from hourglass_jax.imaging.windows import Layout, SlidingWindow
from hourglass_jax.metrics.base import ImageMetric, Metric
from hourglass_jax.models.base import BaseModel, PromptedVisionModel, Size, VisionModel
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig, DPTSegmentation, DPTSegmentationConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.eomt import EoMT, EoMTConfig
from hourglass_jax.models.htc import HTC, HTCConfig
from hourglass_jax.models.mask2former import Mask2Former, Mask2FormerConfig
from hourglass_jax.models.saliency import Saliency, SaliencyConfig
from hourglass_jax.models.sam import Sam, SamConfig
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.base import Rendering, Task, only_view

VIT = ViTConfig(patch_size=8, width=16, heads=2, depth=3, position_grid=(4, 4), predictors=(0, 1, 2))
PREPROCESSING = Preprocessing(size=32, multiple=8)
FUSION = {"widths": (8, 8, 8, 8), "fusion_width": 8, "preprocessing": PREPROCESSING}

MASK2FORMER = Mask2FormerConfig(
    SwinConfig(width=8, depths=(1, 2, 1, 1), head_width=4, window=4),
    classes=5,
    queries=6,
    width=32,
    heads=2,
    points=2,
    encoder_layers=1,
    encoder_hidden=16,
    decoder_layers=2,
    decoder_hidden=16,
    things=(0, 2),
    object_threshold=0.3,
    overlap_threshold=0.2,
    preprocessing=ShortestEdge(size=32, longest=64),
)
RESNET = DetectorResNetConfig((1, 1, 1, 1), 16, 16)

MODELS: dict[str, tuple[type[VisionModel], object]] = {
    "saliency": (Saliency, SaliencyConfig(VIT, decoder_widths=(8, 4), preprocessing=PREPROCESSING)),
    "segmenter": (
        Segmenter,
        SegmenterConfig(
            replace(VIT, width=64),
            classes=5,
            decoder_depth=1,
            window=SlidingWindow(32, 16),
            preprocessing=PREPROCESSING,
        ),
    ),
    "swag": (Swag, SwagConfig(VIT, classes=7, preprocessing=Preprocessing(size=32, multiple=8, resize="crop"))),
    "dpt-depth": (DPTDepth, DPTDepthConfig(VIT, hooks=(0, 1, 1, 2), **FUSION)),
    "dpt-depth, hybrid": (
        DPTDepth,
        DPTDepthConfig(
            replace(VIT, stem=ResNetConfig((1, 1), (128, 128), 32)),
            hooks=(1, 2),
            widths=(128, 128, 8, 8),
            fusion_width=8,
            inversion=(0.1, 0.2),
            preprocessing=PREPROCESSING,
        ),
    ),
    "dpt-segmentation": (DPTSegmentation, DPTSegmentationConfig(VIT, hooks=(0, 1, 1, 2), classes=5, **FUSION)),
    "mask2former, Swin": (Mask2Former, MASK2FORMER),
    "mask2former, ResNet": (Mask2Former, replace(MASK2FORMER, backbone=RESNET, object_threshold=0.1)),
    "htc, Swin": (
        HTC,
        HTCConfig(
            SwinConfig(width=8, depths=(1, 2, 1, 1), head_width=4, window=4),
            classes=5,
            width=8,
            hidden=16,
            class_agnostic=True,
            mask_flow=True,
            semantic=True,
            attention_heads=4,
            candidates=20,
            proposals=12,
            detections=5,
            preprocessing=KeepRatio(size=32, longest=64),
        ),
    ),
    "eomt": (
        EoMT,
        EoMTConfig(
            VIT,
            classes=5,
            queries=6,
            query_blocks=2,
            things=(0, 2),
            object_threshold=0.3,
            overlap_threshold=0.2,
            preprocessing=Preprocessing(size=32, multiple=1),
        ),
    ),
    "eomt, in windows and masked": (
        EoMT,
        EoMTConfig(
            VIT,
            classes=5,
            queries=6,
            query_blocks=2,
            masked_blocks=(2,),
            tasks=("segmentation",),
            window=SlidingWindow(32, None),
            preprocessing=Preprocessing(size=32, multiple=1, resize="shortest"),
        ),
    ),
    "encoder": (Encoder, EncoderConfig(VIT, PREPROCESSING)),
    "encoder, rotary": (
        Encoder,
        EncoderConfig(
            replace(VIT, special_tokens=5, mlp="swiglu", position_grid=None, rotary_base=100.0), PREPROCESSING
        ),
    ),
    "encoder, Swin": (
        Encoder,
        EncoderConfig(SwinConfig(width=8, depths=(1, 2), head_width=4, window=4, patch_size=4), PREPROCESSING),
    ),
}
"""Name -> class and configuration; a name begins with that of `models.registry.MODELS`."""


SAM = SamConfig(
    replace(VIT, special_tokens=0, predictors=(), windows=Windows(side=3, global_blocks=(1,))),
    width=16,
    cross_width=8,
    heads=2,
    hidden=20,
    quality_hidden=12,
    mask_channels=8,
    preprocessing=PaddedSquare(32),
)
"""A model that answers prompts."""


def build(name: str, *, dtype: jnp.dtype = jnp.float32) -> VisionModel:
    """A model of `MODELS`, with the same parameters in every call."""
    cls, config = MODELS[name]
    return randomize(nnx.eval_shape(lambda: cls(config, dtype=dtype, rngs=nnx.Rngs(0))))


def build_sam(*, dtype: jnp.dtype = jnp.float32) -> Sam:
    """The tiny SAM, with the same parameters in every call."""
    return randomize(nnx.eval_shape(lambda: Sam(SAM, dtype=dtype, rngs=nnx.Rngs(0))))


def randomize(model: BaseModel) -> BaseModel:
    """Gives a model random parameters; variances stay positive."""
    random = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        noise = random.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= 1.2 * np.prod(parameter.shape[:-1]) ** -0.5
        elif path[-1] == "var":
            noise = 0.5 + np.abs(noise)
        elif parameter.ndim == 1:
            noise = 0.2 * noise + ("scale" in str(path[-1]))
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return model


class Answers(NamedTuple):
    """What the toy says of prompts: mask logits [B, P, H, W], and a quality of each mask, [B, P]."""

    masks: jax.Array
    qualities: jax.Array


@dataclass(frozen=True)
class ToyConfig:
    backbone: ViTConfig = VIT
    preprocessing: Preprocessing = PREPROCESSING


@dataclass(frozen=True)
class PointMasks:
    """A task whose results are several masks, bool [P, rows, columns]."""

    name = "point masks"

    def postprocess(self, outputs: Answers, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        logits = jnp.moveaxis(jnp.asarray(only_view(outputs.masks)), 0, -1)[None]
        return np.moveaxis(np.asarray(resize(logits, size, "bilinear"))[0] > 0, -1, 0)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.mean(a != b, axis=0)

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        return float(np.mean(a == b))

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        pictures = {"overlay": spotlight(photo, np.mean(result, axis=0))}
        return Rendering(pictures, records={"areas": result.sum(axis=(1, 2)).tolist()})

    def check_dataset(self, name: str, classes: int) -> None:
        pass

    def metric(self, published: Metric) -> Metric:
        return published


@dataclass(frozen=True)
class MeanOverlap(ImageMetric):
    """Mean intersection over union of an image's masks, and the median of the images."""

    task = "point masks"

    def record(self, result: np.ndarray, truth: np.ndarray) -> list[float]:
        return [float((a & b).sum() / max((a | b).sum(), 1)) for a, b in zip(result, truth, strict=True)]

    def scores(self, total: list[list[float]]) -> float:
        return float(np.median([np.mean(record) for record in total]))

    def shown(self, scores: float) -> dict[str, str]:
        return {"median overlap": f"{scores:.3f}"}


class PromptedToy(PromptedVisionModel):
    """Masks of what looks like the token under a point. A `models.base.PromptedModel`."""

    def __init__(self, config: ToyConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))

    @property
    def tasks(self) -> dict[str, Task]:
        return {"point masks": PointMasks()}

    def features(self, images: jax.Array) -> jax.Array:
        """The encoded images: all tokens, [B, H, W, C]."""
        features = self.backbone(images)
        return self.backbone.head_input(features).reshape(len(images), *features.token_grid, -1)

    def head_input(self, features: jax.Array) -> jax.Array:
        return features.reshape(len(features), -1, features.shape[-1])

    def decode(self, features: jax.Array, prompts: jax.Array, size: Size | None) -> Answers:
        """Points [B, P, 2] (row, column), in pixels of the images -> their masks."""
        tokens = self.head_input(features).astype(jnp.float32)
        cells = (prompts // self.config.backbone.patch_size).astype(int)
        rows, columns = features.shape[1:3]
        asked = jnp.take_along_axis(tokens, (cells[..., 0] * columns + cells[..., 1])[..., None], axis=1)
        logits = jnp.einsum("bpc,bnc->bpn", asked, tokens).reshape(*prompts.shape[:2], rows, columns)
        masks = (
            logits if size is None else jnp.moveaxis(resize(jnp.moveaxis(logits, 1, -1), size, "bilinear"), -1, 1)
        )
        return Answers(masks, jnp.mean(logits > 0, axis=(2, 3)))


def build_prompted(*, dtype: jnp.dtype = jnp.float32) -> PromptedToy:
    """The toy, with the same parameters in every call."""
    return randomize(nnx.eval_shape(lambda: PromptedToy(ToyConfig(), dtype=dtype, rngs=nnx.Rngs(0))))
