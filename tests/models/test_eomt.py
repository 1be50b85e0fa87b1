"""EoMT beyond what every model has: its config, its padding, queries in the last blocks, other targets."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.eomt import EoMT
from hourglass_jax.tasks.queries import QueryOutputs
from tests.models.tiny import MODELS, VIT, build

pytestmark = pytest.mark.usefixtures("quick_compilation")

_, CONFIG = MODELS["eomt"]
KERNELS = [
    jax.export.DisabledSafetyCheck.custom_call(name)
    for name in ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax", "tpu_custom_call")
]
"""Fused attention, which is lowered without a promise that it stays as it is."""
MASKED = "eomt, in windows and masked"


@jax.jit
def run(model: EoMT, images: jax.Array) -> QueryOutputs:
    return model(images)


def random_images(rows: int, columns: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(2, rows, columns, 3)), jnp.float32)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"backbone": replace(VIT, patch_size=14)}, "patch_size must be 4 times a power of two, from 8 on, got 14"),
        ({"backbone": replace(VIT, patch_size=4)}, "patch_size must be 4 times a power of two, from 8 on, got 4"),
        (
            {"backbone": replace(VIT, patch_size=16, stem=ResNetConfig((1, 1), (128, 128), 32))},
            "backbone must be a plain ViT",
        ),
        ({"query_blocks": 4}, "query_blocks must be at most the backbone's 3 blocks, got 4"),
        ({"masked_blocks": (0,)}, r"masked_blocks must be among those with queries, 1 to 2, got \(0,\)"),
        ({"tasks": ("depth",)}, "tasks must be some of panoptic, instances, segmentation, got depth"),
        (
            {"window": SlidingWindow(32, None)},
            "window is for segmentation alone: panoptic,",
        ),
        ({"overlap_threshold": 1.5}, r"overlap_threshold must lie in 0\.\.1, got 1.5"),
        ({"things": (5,)}, "things must be classes, 0 to 4, got 5"),
    ],
)
def test_a_config_that_does_not_fit_itself_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)


def test_masks_have_a_position_for_every_four_pixels() -> None:
    sides = (8, 16, 32)
    assert [replace(CONFIG, backbone=replace(VIT, patch_size=side)).scale_blocks for side in sides] == [1, 2, 3]
    assert run(build("eomt"), random_images(24, 32)).mask_logits.shape == (2, 6, 8, 8)


def test_images_are_padded_with_black_to_squares_or_patches() -> None:
    model, images = build("eomt"), random_images(20, 32)
    prepared = CONFIG.preprocessing
    black = jnp.asarray(-np.array(prepared.mean) / np.array(prepared.std), jnp.float32)
    square = jnp.broadcast_to(black, (2, 32, 32, 3)).at[:, :20].set(images)
    jax.tree.map(np.testing.assert_array_equal, run(model, images), run(model, square))
    patches = nnx.clone(model, variables=False)
    patches.config = replace(CONFIG, padding="patches")
    filled = jnp.broadcast_to(black, (2, 24, 32, 3)).at[:, :20].set(images)
    found = run(patches, images)
    assert found.mask_logits.shape == (2, 6, 6, 8)
    jax.tree.map(np.testing.assert_array_equal, found, run(patches, filled))


def test_queries_cost_what_tokens_cost_in_the_last_blocks_alone() -> None:
    """12 C^2 for every token and 2 C for every pair; one special token, 16 of the image, 6 queries in 2 of 3."""
    model, width = build("eomt"), VIT.width
    counts = [17, 23, 23]
    expected = sum(12 * width**2 * count + 2 * width * count**2 for count in counts)
    macs = count_macs(model, (32, 32))
    assert macs["blocks"] == expected
    merged = count_macs(hj.expedite(model, hj.StagedMerging(0.5, (1,))), (32, 32))
    counts = [17, 15, 15]
    assert merged["blocks"] == sum(12 * width**2 * count + 2 * width * count**2 for count in counts)
    assert merged["head"] == macs["head"]


@pytest.mark.parametrize("stage", [0, 2])
def test_a_plan_that_keeps_all_tokens_changes_nothing(stage: int) -> None:
    """Before and after the queries join, and with masked attention; the backbone's plan stays the user's."""
    model, images = build(MASKED), random_images(32, 32)
    fast = hj.expedite(model, hj.Hourglass(stage, (4, 4), window=1, iterations=0, neighbors=1))
    expected, found = run(model, images), run(fast, images)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-4), found, expected)
    assert (model.backbone.plan, type(fast.backbone.plan)) == (None, hj.Hourglass)


def test_queries_read_what_is_inside_their_masks() -> None:
    """Masks that are everywhere change nothing; those that are nowhere leave the special tokens."""
    masked, plain = build(MASKED), nnx.clone(build(MASKED), variables=False)
    plain.config = replace(masked.config, masked_blocks=())
    images = random_images(32, 32)
    found = []
    for sign in (1.0, -1.0):
        for model in (masked, plain):
            for layer in model.mask_layers:
                layer.kernel[...] = jnp.zeros_like(layer.kernel[...])
            model.mask_layers[2].bias[...] = jnp.zeros(VIT.width).at[0].set(sign)
            for leaf, value in (("scale", 0.0), ("bias", 1.0)):
                getattr(model.scale_blocks[0].norm, leaf)[...] = jnp.full(VIT.width, value)
        found.append([run(model, images).class_logits for model in (masked, plain)])
    everywhere, nowhere = found
    np.testing.assert_allclose(*everywhere, rtol=0, atol=1e-5)
    assert np.abs(nowhere[0] - nowhere[1]).max() > 0.01


@pytest.mark.parametrize("plan", [None, hj.StagedMerging(0.8), hj.Hourglass(1, (3, 3))], ids=str)
@pytest.mark.parametrize("name", ["eomt", MASKED])
def test_it_is_lowered_for_gpu_and_tpu_in_bfloat16(name: str, plan: hj.Plan | None) -> None:
    model = hj.expedite(build(name, dtype=jnp.bfloat16), plan)
    function, images = jax.jit(lambda images: model(images)), jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    for platform in ("cuda", "tpu"):
        exported = jax.export.export(function, platforms=[platform], disabled_checks=KERNELS)(images)
        assert exported.platforms == (platform,)
        assert [each.shape for each in exported.out_avals] == [(2, 6, 6), (2, 6, 8, 8)]
