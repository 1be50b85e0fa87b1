"""The presets against the rows of the paper's Tables 8 and 9 and of the READMEs of Expedit-Segmenter and -SWAG."""

from dataclasses import asdict
from functools import cache

import pytest
from flax import nnx

from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.backbones.swin import Swin, SwinConfig
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.models.eomt import EoMT, EoMTConfig
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.presets import PRESETS, preset
from hourglass_jax.search.budget import Costs

OWN = {"dinov2-vits14-saliency", *(f"cascade-swin-{size}-coco" for size in "tsb")}
DINOV3 = {
    "dinov3-s-512": "small",
    "dinov3-s-plus-512": "small-plus",
    "dinov3-b-512": "base",
    "dinov3-l-512": "large",
    "dinov3-h-plus-512": "huge-plus",
}
"""Preset -> size."""
EOMT = {
    # name: depth of the ViT, token grid
    "eomt-s-640": (12, 40),
    "eomt-b-640": (12, 40),
    "eomt-l-640": (24, 40),
    "eomt-g-640": (40, 40),
    "eomt-l-1280": (24, 80),
    "eomt-g-1280": (40, 80),
    "eomt-l-512": (24, 32),
    "eomt-l-1024": (24, 64),
}

PUBLISHED = {
    # name: image, alpha, end of beta, token grid, clusters, window, tau, k; rows before columns
    "segmenter-vit-l16-ade20k": ((640, 640), 10, 24, (40, 40), (28, 28), 5, 50, 20),
    "segmenter-vit-l16-cityscapes": ((768, 768), 12, 24, (48, 48), (32, 32), 5, 50, 20),
    "segmenter-vit-l16-pascal-context": ((480, 480), 14, 24, (30, 30), (15, 15), 5, 50, 20),
    "segmenter-vit-l16-ade20k-a16-28": ((640, 640), 16, 24, (40, 40), (28, 28), 5, 50, 20),
    "segmenter-vit-l16-ade20k-a8-20": ((640, 640), 8, 24, (40, 40), (20, 20), 5, 50, 20),
    "segmenter-vit-l16-cityscapes-a18-32": ((768, 768), 18, 24, (48, 48), (32, 32), 5, 50, 20),
    "segmenter-vit-l16-cityscapes-a10-24": ((768, 768), 10, 24, (48, 48), (24, 24), 5, 50, 20),
    "segmenter-vit-l16-pascal-context-a14-20": ((480, 480), 14, 24, (30, 30), (20, 20), 5, 50, 20),
    "segmenter-vit-l16-pascal-context-a12-15": ((480, 480), 12, 24, (30, 30), (15, 15), 5, 50, 20),
    "segmenter-vit-l16-pascal-context-a8-15": ((480, 480), 8, 24, (30, 30), (15, 15), 5, 50, 20),
    "dpt-hybrid-kitti": ((352, 1216), 2, 12, (22, 76), (28, 28), 5, 5, 20),
    "dpt-hybrid-nyu": ((480, 640), 3, 12, (30, 40), (16, 16), 7, 5, 50),
    "dpt-hybrid-kitti-a7-28": ((352, 1216), 7, 12, (22, 76), (28, 28), 5, 1, 20),
    "dpt-hybrid-kitti-a5-20": ((352, 1216), 5, 12, (22, 76), (20, 20), 5, 1, 20),
    "dpt-hybrid-kitti-a5-16": ((352, 1216), 5, 12, (22, 76), (16, 16), 5, 1, 20),
    "dpt-hybrid-nyu-a7-24": ((480, 640), 7, 12, (30, 40), (24, 24), 5, 1, 20),
    "dpt-hybrid-nyu-a5-16": ((480, 640), 5, 12, (30, 40), (16, 16), 5, 1, 20),
    "dpt-hybrid-nyu-a3-14": ((480, 640), 3, 12, (30, 40), (14, 14), 5, 1, 20),
    "swag-vit-h14-in1k": ((518, 518), 8, 32, (37, 37), (25, 25), 7, 1, 20),
    "swag-vit-l16-in1k": ((512, 512), 8, 24, (32, 32), (22, 22), 9, 1, 20),
    "swag-vit-h14-in1k-a10-26": ((518, 518), 10, 32, (37, 37), (26, 26), 7, 1, 20),
    "swag-vit-h14-in1k-a4-25": ((518, 518), 4, 32, (37, 37), (25, 25), 7, 1, 20),
    "swag-vit-h14-in1k-a8-18": ((518, 518), 8, 32, (37, 37), (18, 18), 7, 1, 20),
    "swag-vit-l16-in1k-a12-23": ((512, 512), 12, 24, (32, 32), (23, 23), 9, 1, 20),
    "swag-vit-l16-in1k-a6-23": ((512, 512), 6, 24, (32, 32), (23, 23), 9, 1, 20),
    "swag-vit-l16-in1k-a8-16": ((512, 512), 8, 24, (32, 32), (16, 16), 9, 1, 20),
}

SWIN = {
    # name: side of the image, alpha, window's side, clusters, window, kappa, tau, k; beta ends at block 22
    "mask2former-swin-l-coco-panoptic": (1152, 10, 12, 8, 7, 5, 20, 10),
    "mask2former-swin-l-ade20k-semantic": (1152, 7, 12, 8, 5, 5, 100, 10),
    "mask2former-swin-l-coco-instance": (1152, 12, 12, 8, 11, 5, 100, 60),
    "mask2former-swin-l-ade20k-panoptic": (1152, 14, 12, 8, 7, 4, 100, 49),
    "swinv2-l-htc-coco": (1024, 12, 32, 23, 5, 5, 33, 20),
    "dino-swin-l-coco-a16-9": (1152, 16, 12, 9, 5, 3, 100, 25),
    "dino-swin-l-coco-a14-8": (1152, 14, 12, 8, 5, 3, 100, 25),
    "dino-swin-l-coco-a10-8": (1152, 10, 12, 8, 5, 3, 100, 25),
    "maskdino-swin-l-coco-instance-a16-9": (1152, 16, 12, 9, 5, 3, 100, 25),
    "maskdino-swin-l-coco-instance-a10-9": (1152, 10, 12, 9, 5, 3, 100, 25),
    "maskdino-swin-l-coco-instance-a8-8": (1152, 8, 12, 8, 5, 3, 100, 25),
    "maskdino-swin-l-coco-panoptic-a16-9": (1152, 16, 12, 9, 5, 3, 100, 25),
    "maskdino-swin-l-coco-panoptic-a12-9": (1152, 12, 12, 9, 5, 3, 100, 25),
    "maskdino-swin-l-coco-panoptic-a10-8": (1152, 10, 12, 8, 5, 3, 100, 25),
    "oneformer-swin-l-ade20k-a8-10": (1280, 8, 12, 10, 7, 4, 100, 49),
    "oneformer-swin-l-ade20k-a10-8": (1280, 10, 12, 8, 7, 4, 100, 49),
    "oneformer-swin-l-ade20k-a8-8": (1280, 8, 12, 8, 7, 4, 100, 49),
}


SAM = {
    # name: alpha, clusters on a side of a window of 14, tau; ViT-H at 1024 pixels
    "sam-vit-h-a18-11": (18, 11, 200),
    "sam-vit-h-a14-10": (14, 10, 200),
    "sam-vit-h-a8-10": (8, 10, 200),
    "sam-vit-h-a8-9": (8, 9, 200),
    "sam-vit-h-a6-9": (6, 9, 200),
    "sam-vit-h-demo-a16-9": (16, 9, 100),
    "sam-vit-h-demo-a6-9": (6, 9, 100),
}


def test_a_preset_of_mask2former_tells_the_readmes_label() -> None:
    assert preset("mask2former-swin-l-ade20k-semantic").source.endswith("README.md: alpha 8, mIoU 55.5")


def test_every_preset_is_in_the_table_or_our_own() -> None:
    assert PRESETS.keys() == PUBLISHED.keys() | SWIN.keys() | DINOV3.keys() | EOMT.keys() | SAM.keys() | OWN


@pytest.mark.parametrize("name", SAM)
def test_a_published_preset_of_sam_equals_its_row(name: str) -> None:
    """That it fits the encoder is tested with the model."""
    alpha, clusters, tau = SAM[name]
    found = preset(name)
    assert found.size == (1024, 1024)
    assert asdict(found.plan) == asdict(Hourglass(alpha, (clusters, clusters), temperature=tau))


@cache
def swin_l(window: int, version: int) -> Swin:
    config = SwinConfig.sized("large", window=window, version=version)
    return nnx.eval_shape(lambda: Swin(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("name", SWIN)
def test_a_published_preset_of_a_swin_equals_its_row_and_fits(name: str) -> None:
    side, alpha, tokens, clusters, window, kappa, tau, k = SWIN[name]
    found = preset(name)
    assert found.size == (side, side)
    expected = Hourglass(alpha, (clusters, clusters), window=window, iterations=kappa, temperature=tau, neighbors=k)
    assert asdict(found.plan) == asdict(expected)

    swin = swin_l(tokens, version=2 if "swinv2" in name else 1)
    swin.check_plan(found.plan, found.size)
    fast = expedite(swin, found.plan)
    grid = -(-side // 16)
    assert fast.token_counts(*found.size) == (grid**2, (-(-grid // tokens) * clusters) ** 2)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_equals_its_row(name: str) -> None:
    size, alpha, _, _, clusters, window, tau, k = PUBLISHED[name]
    found = preset(name)
    assert found.size == size
    expected = Hourglass(
        alpha,
        clusters,
        beta=None,
        window=window,
        iterations=5,
        temperature=tau,
        neighbors=k,
        representative="mean",
        reconstruct="logits" if name.startswith("segmenter") else "tokens",
    )
    assert asdict(found.plan) == asdict(expected)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_preset_fits_its_backbone(name: str) -> None:
    size, alpha, depth, grid, clusters, *_ = PUBLISHED[name]
    patch = 14 if "h14" in name else 16
    assert tuple(side // patch for side in size) == grid
    plan = preset(name).plan
    plan.check(depth, grid)
    counts = plan.counts(depth, grid)
    assert counts[:alpha] == [grid[0] * grid[1]] * alpha
    assert counts[alpha:depth] == [clusters[0] * clusters[1]] * (depth - alpha)


@pytest.mark.parametrize("name", ["dinov3-s-512", pytest.param("dinov3-l-512", marks=pytest.mark.slow)])
def test_the_presets_of_dinov3_take_six_tenths_of_its_encoder(name: str) -> None:
    vit = nnx.eval_shape(lambda: ViT(ViTConfig.dinov3(DINOV3[name]), rngs=nnx.Rngs(0)))
    found = preset(name)
    costs = [count_encoder_macs(expedite(vit, plan), found.size) for plan in (None, found.plan)]
    assert 0.595 < costs[1] / costs[0] < 0.6


def test_the_default_models_preset_fits_it() -> None:
    found = preset("dinov2-vits14-saliency")
    found.plan.check(12, tuple(side // 14 for side in found.size))
    assert (found.plan.temperature, found.plan.beta) == ("auto", None)


@pytest.mark.parametrize("name", EOMT)
def test_a_preset_of_eomt_fits_its_checkpoints(name: str) -> None:
    depth, side = EOMT[name]
    found = preset(name)
    assert found.size == (16 * side, 16 * side)
    found.plan.check(depth, (side, side))
    counts = found.plan.counts(depth, (side, side))
    assert 0.5 < counts[depth - 1] / counts[-1] < 0.62


def test_a_preset_of_eomt_takes_three_fifths_of_the_encoder() -> None:
    side = 640
    grid = (side // 16, side // 16)
    vit = ViTConfig.sized("small", special_tokens=5, position_grid=grid, layer_scale=True)
    model = nnx.eval_shape(lambda: EoMT(EoMTConfig(vit, query_blocks=3), rngs=nnx.Rngs(0)))
    assert Costs(model, (side, side))(preset("eomt-s-640").plan) == pytest.approx(0.6, abs=0.002)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'segmenter-ade20k'; nearest: segmenter-vit-l16-ade20k,"):
        preset("segmenter-ade20k")
    with pytest.raises(ValueError, match="unknown preset '7'; `hourglass models` prints them all"):
        preset("7")
