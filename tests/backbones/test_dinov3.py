"""DINOv3's sizes, and its computation for other machines than this one."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.backbones.vit import DINOV3, ViT, ViTConfig
from hourglass_jax.models.registry import flat_parameters

PARAMETERS = {"small": 21.6, "small-plus": 28.7, "base": 85.7, "large": 303.1, "huge-plus": 840.5, "7b": 6716.0}
"""Millions, without biases of keys and the token that stands for hidden patches: timm/models/eva.py."""


@pytest.mark.parametrize("size", DINOV3)
def test_the_sizes_have_their_numbers_of_parameters(size: str) -> None:
    vit = nnx.eval_shape(lambda: ViT(ViTConfig.dinov3(size), rngs=nnx.Rngs(0)))
    count = sum(each.size for each in flat_parameters(vit).values())
    assert round(count / 1e6, 1) == pytest.approx(PARAMETERS[size], rel=2e-3)


TINY = ViTConfig.dinov3("small-plus", width=64, depth=3, heads=1, patch_size=8)


@pytest.mark.parametrize(
    "plan", [None, hj.Hourglass(1, (3, 4)), hj.StagedMerging(0.8), hj.TokenMerging(keep=0.9)], ids=str
)
@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_bfloat16_is_lowered_for_gpu_and_tpu(plan: hj.Plan | None, platform: str) -> None:
    vit = hj.expedite(nnx.eval_shape(lambda: ViT(TINY, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))), plan)
    images = jax.ShapeDtypeStruct((2, 48, 64, 3), jnp.bfloat16)
    run = jax.jit(lambda vit, images: vit(images).maps())
    checks = [jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax")]
    exported = jax.export.export(run, platforms=(platform,), disabled_checks=checks)(vit, images)
    assert exported.platforms == (platform,)
    assert [(each.shape, each.dtype) for each in exported.out_avals] == [((2, 6, 8, 64), jnp.bfloat16)]


def test_turning_costs_no_multiply_accumulates() -> None:
    """Neither whole nor expedited: what counts are products."""
    plain = ViTConfig.dinov3("small", position_grid=(16, 16), rotary_base=None)
    for plan in (None, hj.StagedMerging(0.87)):
        costs = [
            count_encoder_macs(hj.expedite(nnx.eval_shape(lambda c=c: ViT(c, rngs=nnx.Rngs(0))), plan), (256, 256))
            for c in (ViTConfig.dinov3("small"), plain)
        ]
        assert costs[0] == costs[1]
