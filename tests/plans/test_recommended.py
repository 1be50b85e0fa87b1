"""The plan to begin with."""

import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.swin import Swin, SwinConfig
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.plans.presets import PRESETS
from hourglass_jax.plans.recommended import recommended


def abstract(model_class, config):
    return nnx.eval_shape(lambda: model_class(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("size", ["small", "large"])
def test_vits_merge_at_a_few_places(size: str) -> None:
    vit = abstract(ViT, ViTConfig.sized(size, position_grid=(8, 8)))
    plan = recommended(vit)
    vit.check_plan(plan)
    assert isinstance(plan, hj.StagedMerging)


@pytest.mark.parametrize(("size", "alpha"), [("tiny", 6), ("large", 10)])
def test_swins_cluster_the_windows_of_their_longest_stage(size: str, alpha: int) -> None:
    swin = abstract(Swin, SwinConfig.sized(size, window=12))
    plan = recommended(swin)
    swin.check_plan(plan)
    assert plan == hj.Hourglass(alpha, (8, 8))
    published = PRESETS["mask2former-swin-l-coco-panoptic"].plan
    assert size != "large" or (plan.alpha, plan.clusters) == (published.alpha, published.clusters)


def test_expedite_takes_names(tiny_model) -> None:
    assert hj.expedite(tiny_model, "recommended").backbone.plan == recommended(tiny_model.backbone)
    with pytest.raises(ValueError, match=r"unknown preset 'segmenter'; nearest: segmenter-vit"):
        hj.expedite(tiny_model, "segmenter")
    with pytest.raises(ValueError, match=r"for a backbone of 12 blocks, 384 channels and stride 14, got one of 3"):
        hj.expedite(tiny_model, hj.preset("dinov2-vits14-saliency"))


def test_a_preset_is_taken_by_the_backbone_that_it_is_for() -> None:
    vit = abstract(ViT, ViTConfig.sized("small", patch_size=14, position_grid=(37, 37)))
    for chosen in ("dinov2-vits14-saliency", hj.preset("dinov2-vits14-saliency")):
        assert hj.expedite(vit, chosen).plan == hj.preset("dinov2-vits14-saliency").plan
