"""The presets against the rows of the paper's Tables 8 and 9 and of the READMEs of Expedit-Segmenter and -SWAG."""

from dataclasses import asdict
from functools import cache

import pytest
from flax import nnx

from hourglass_jax.backbones.swin import Swin, SwinConfig
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.presets import PRESETS, preset

OWN = {"dinov2-vits14-saliency", *(f"cascade-swin-{size}-coco" for size in "tsb")}

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


def test_a_preset_of_mask2former_tells_the_readmes_label() -> None:
    assert preset("mask2former-swin-l-ade20k-semantic").source.endswith("README.md: alpha 8, mIoU 55.5")


def test_every_preset_is_in_the_table_or_our_own() -> None:
    assert PRESETS.keys() == PUBLISHED.keys() | SWIN.keys() | OWN


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


def test_the_default_models_preset_fits_it() -> None:
    found = preset("dinov2-vits14-saliency")
    found.plan.check(12, tuple(side // 14 for side in found.size))
    assert (found.plan.temperature, found.plan.beta) == ("auto", None)


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"unknown preset 'segmenter-ade20k'; nearest: segmenter-vit-l16-ade20k,"):
        preset("segmenter-ade20k")
    with pytest.raises(ValueError, match="unknown preset '7'; `hourglass models` prints them all"):
        preset("7")
