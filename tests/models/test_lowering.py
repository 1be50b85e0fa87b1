"""Every model and plan is lowered for GPUs and TPUs, in bfloat16 and with fused attention, on a machine without.

Lowering finds what JAX and its kernels refuse; nothing is compiled, and no parameter is there.
"""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.base import VisionModel
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.mask2former import Mask2Former, Mask2FormerConfig
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from tests.models.test_conformance import PLANS
from tests.models.tiny import MODELS

KERNELS = {"cuda": ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"), "tpu": ("tpu_custom_call",)}
CHECKS = [jax.export.DisabledSafetyCheck.custom_call(name) for names in KERNELS.values() for name in names]
SIZE = (272, 272)
"""With patches of 8 pixels 1,156 tokens, 289 of half the size: enough for the kernel of a TPU."""
IN_WINDOWS = ("hourglass", "hourglass in windows")
"""The plans that a Swin takes."""
REAL: dict[str, tuple[type[VisionModel], object, tuple[int, int]]] = {
    "DPT, DINOv2-S": (
        DPTDepth,
        DPTDepthConfig(ViTConfig.sized("small", patch_size=14, layer_scale=True), hooks=(2, 5, 8, 11)),
        (518, 518),
    ),
    "Segmenter-L": (Segmenter, SegmenterConfig(ViTConfig.sized("large"), decoder_depth=2), (640, 640)),
    "ViT-H": (Encoder, EncoderConfig(ViTConfig.sized("huge", patch_size=14)), (518, 518)),
    "Mask2Former, Swin-L": (
        Mask2Former,
        Mask2FormerConfig(SwinConfig.sized("large", window=12, head_width=32)),
        (1152, 1152),
    ),
}
"""Name -> class, configuration and (rows, columns)."""
every_platform = pytest.mark.parametrize("platform", KERNELS)


def cases() -> list[object]:
    """Every model without a plan and under one, every plan with the encoder; the other pairs are slow."""
    found = []
    for name in MODELS:
        plans = [] if name.endswith("ResNet") else IN_WINDOWS if name.endswith("Swin") else PLANS
        for plan in ["original", *plans]:
            quick = name == "encoder" or plan == "original"
            found.append(pytest.param(name, plan, marks=[] if quick else [pytest.mark.slow]))
    return found


@functools.cache
def abstract(cls: type[VisionModel], config: object) -> VisionModel:
    return nnx.eval_shape(lambda: cls(config, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)))


@functools.cache
def fast(cls: type[VisionModel], config: object, plan: str) -> VisionModel:
    """A model under a plan; one object for both platforms, so that it is traced once."""
    model = abstract(cls, config)
    return model if plan == "original" else hj.expedite(model, PLANS[plan])


@jax.jit
def run(model: VisionModel, images: jax.Array) -> object:
    return model(images)


def kernels(model: VisionModel, platform: str, size: tuple[int, int]) -> int:
    """How many fused kernels there are in a model that is lowered for a platform."""
    images = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    exported = jax.export.export(run, platforms=[platform], disabled_checks=CHECKS)(model, images)
    text = exported.mlir_module()
    return sum(text.count(f"custom_call @{name}(") for name in KERNELS[platform])


@every_platform
@pytest.mark.parametrize(("name", "plan"), cases())
def test_every_model_is_lowered_under_every_plan(name: str, plan: str, platform: str) -> None:
    found = kernels(fast(*MODELS[name], plan), platform, SIZE)
    assert found or (platform == "tpu" and name.endswith(("Swin", "ResNet")))


@pytest.mark.slow
@every_platform
@pytest.mark.parametrize("plan", ["original", "hourglass", "staged merging", "token merging"])
@pytest.mark.parametrize("name", REAL)
def test_models_of_real_sizes_are_lowered(name: str, plan: str, platform: str) -> None:
    cls, config, size = REAL[name]
    if name.endswith("Swin-L") and plan not in ("original", "hourglass"):
        return
    found = kernels(fast(cls, config, plan), platform, size)
    assert found or (platform == "tpu" and name.endswith("Swin-L"))
