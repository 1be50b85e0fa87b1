"""Every kind of plan: what it makes of a vision transformer, against its reference in NumPy."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.plans.base import Tokens
from hourglass_jax.plans.selection import select
from tests.plans.vits import CONFIG, GRID, SIDES, by_reference, features, random_images, random_vit
from tests.reference import hourglass, plans
from tests.reference import vit as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

EQ4 = {"neighbors": 4, "temperature": 20.0}


def assert_is_reference(vit: ViT, plan: hj.Plan, run, sides: tuple[int, int] = SIDES) -> None:
    """Features are the reference's."""
    fast, images = hj.expedite(vit, plan), random_images(sides=sides)
    special, tokens, intermediates = features(fast, images)
    expected_special, expected = by_reference(vit, images, run)
    np.testing.assert_allclose(special, expected_special, rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-4)
    np.testing.assert_allclose(vit.norm(intermediates[-1]), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("special_tokens", "plan", "left"),
    [
        (0, hj.TokenMerging(merged=3, schedule="decreasing"), [24, 21, 21]),
        (2, hj.TokenMerging(merged=[0, 9, 20], proportional=False), [30, 21, 11]),
        (5, hj.TokenMerging(keep=0.8), [24, 19, 15]),
    ],
)
def test_token_merging(special_tokens: int, plan: hj.TokenMerging, left: list[int]) -> None:
    run = functools.partial(plans.token_merging, left=left, proportional=plan.proportional)
    assert_is_reference(random_vit(special_tokens), plan, run)


@pytest.mark.parametrize(
    ("special_tokens", "grid", "plan", "stages"),
    [
        (5, GRID, hj.StagedMerging(0.6, stages=[1, 2]), (1, 2)),
        (0, GRID, hj.StagedMerging(0.7, value="medoid"), (0, 1)),
        (1, (5, 6), hj.StagedMerging(0.7, stages=[0, 1]), (0, 1)),
    ],
)
def test_staged_merging(special_tokens: int, grid: Grid, plan: hj.StagedMerging, stages: tuple[int, ...]) -> None:
    """Only the first matching knows of the grid."""
    run = functools.partial(plans.staged_merging, keep=plan.keep, stages=stages, value=plan.value, columns=grid[1])
    assert_is_reference(random_vit(special_tokens, grid=grid), plan, run, (4 * grid[0], 4 * grid[1]))


@pytest.mark.parametrize(
    ("special_tokens", "plan", "stages"),
    [
        (1, hj.EViT(0.7, **EQ4), (0, 1, 2)),
        (5, hj.EViT(0.5, stages=[1], fuse=True, restore="reuse"), (1,)),
    ],
)
def test_evit(special_tokens: int, plan: hj.EViT, stages: tuple[int, ...]) -> None:
    options = {**EQ4, "keep": plan.keep, "stages": stages, "fuse": plan.fuse, "restore": plan.restore}
    assert_is_reference(random_vit(special_tokens), plan, functools.partial(plans.evit, **options))


def test_dynamic_vit() -> None:
    run = functools.partial(plans.dynamic_vit, keep=0.7, stages=(0, 1, 2), **EQ4)
    assert_is_reference(random_vit(), hj.DynamicViT(0.7, **EQ4), run)


@pytest.mark.parametrize("plan", [hj.ACT(31, hashes=5, bucket=1.0), hj.ACT(7, bucket=0.5, seed=3)])
def test_act(plan: hj.ACT) -> None:
    """Once with room for every group, once with many groups in each row."""
    random = np.random.default_rng(plan.seed)
    directions = random.standard_normal((plan.hashes, 16), np.float32)
    bias = random.random((plan.hashes, 1), np.float32)
    groups = functools.partial(
        plans.hash_groups, directions=directions, bias=bias, bucket=plan.bucket, prototypes=plan.prototypes
    )
    assert_is_reference(random_vit(), plan, functools.partial(plans.act, groups=groups))


def test_pooling() -> None:
    run = functools.partial(plans.pooling, grid=GRID, alpha=2, clusters=(3, 4))
    assert_is_reference(random_vit(2), hj.Pooling(2, (3, 4)), run)


def test_downsampling() -> None:
    """The smaller image, through blocks without a plan; its features upsampled before the final norm."""
    vit, images = random_vit(), random_images()
    special, tokens, _ = features(hj.expedite(vit, hj.Downsampling(0.5)), images)
    rows, columns = (resize_matrix(*sides, "bicubic-antialias") for sides in ((24, 16), (20, 16)))
    small = jnp.asarray(np.einsum("yh,bhwc,xw->byxc", rows, images, columns), jnp.float32)
    expected_special, _, (_, last) = features(vit, small)
    upsampled = hourglass.upsample_tokens(last, cluster_grid=(4, 4), token_grid=GRID)
    norm = {"scale": np.asarray(vit.norm.scale), "bias": np.asarray(vit.norm.bias)}
    np.testing.assert_allclose(tokens, reference.layer_norm(norm, upsampled), rtol=0, atol=1e-4)
    np.testing.assert_allclose(special, expected_special, rtol=0, atol=1e-4)

    rows, columns = (resize_matrix(side, 4, "bicubic") for side in GRID)
    vit.position_embedding.set_value(np.einsum("yh,hwc,xw->yxc", rows, vit.position_embedding[...], columns))
    run = functools.partial(plans.pooling, grid=GRID, alpha=None, clusters=(4, 4))
    plain_special, plain = by_reference(vit, small, run)
    np.testing.assert_allclose(tokens, plain, rtol=0, atol=1e-4)
    np.testing.assert_allclose(special, plain_special, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        (lambda: hj.TokenMerging(), "expected either keep or merged, got keep=None and merged=None"),
        (lambda: hj.TokenMerging(keep=0.5, merged=3), "expected either keep or merged, got keep=0.5 and merged=3"),
        (lambda: hj.TokenMerging(keep=1.5), "keep must be a number above 0 and up to 1, got 1.5"),
        (lambda: hj.TokenMerging(merged=(1, -2)), r"merged must be integers of at least 0, got \(1, -2\)"),
        (lambda: hj.TokenMerging(merged=2, schedule="rising"), "'constant' or 'decreasing', got 'rising'"),
        (lambda: hj.TokenMerging(keep=0.5, schedule="decreasing"), "needs merged as one number"),
        (lambda: hj.TokenMerging(merged=(1,) * 4), "at most the backbone's 3 blocks, got 4 numbers"),
        (lambda: hj.StagedMerging(0.4), "keep must be at least 0.5: .* got 0.4"),
        (lambda: hj.StagedMerging(0.8, value="mode"), "value must be 'mean' or 'medoid', got 'mode'"),
        (lambda: hj.StagedMerging(0.8, stages=(2, 1)), r"stages must be blocks, increasing .*, got \(2, 1\)"),
        (lambda: hj.StagedMerging(0.8, stages=(0, 6)), r"stages must be among .* blocks 0 to 2, got \(0, 6\)"),
        (lambda: hj.EViT(0.8, restore="copy"), "restore must be 'reconstruction' or 'reuse', got 'copy'"),
        (lambda: hj.EViT(0.8, neighbors=0), "neighbors must be an integer of at least 1, got 0"),
        (lambda: hj.EViT(0.8, stages=(9,)), r"stages must be among .* blocks 0 to 2, got \(9,\)"),
        (lambda: hj.DynamicViT(0), "keep must be a number above 0 and up to 1, got 0"),
        (lambda: hj.DynamicViT(0.5, temperature=0), "temperature must be a positive number or 'auto', got 0"),
        (lambda: hj.DynamicViT(0.5, stages=(6,)), r"stages must be among .* blocks 0 to 2, got \(6,\)"),
        (lambda: hj.ACT(0), "prototypes must be an integer of at least 1, got 0"),
        (lambda: hj.ACT(4, hashes=33), "hashes must be an integer of at least 1 and at most 32, got 33"),
        (lambda: hj.ACT(4, bucket=0), "bucket must be a positive number, got 0"),
        (lambda: hj.Pooling(-1, (2, 2)), "alpha must be an integer of at least 0, got -1"),
        (lambda: hj.Pooling(3, (2, 2)), "alpha must be less than the backbone's 3 blocks, got 3"),
        (lambda: hj.Pooling(1, (2, 6)), r"clusters must fit into the image's tokens \(6, 5\), got \(2, 6\)"),
        (lambda: hj.Downsampling(True), "keep must be a number above 0 and up to 1, got True"),
    ],
)
def test_what_does_not_fit_is_named(fails, message: str) -> None:
    vit = random_vit()
    with pytest.raises(ValueError, match=message):
        nnx.eval_shape(lambda vit: vit(random_images()).special, hj.expedite(vit, fails()))


def test_dynamic_vit_needs_prediction_modules() -> None:
    vit = ViT(dataclasses.replace(CONFIG, width=4, depth=2, predictors=(1,)), rngs=nnx.Rngs(0))
    assert hj.expedite(vit, hj.DynamicViT(0.5, stages=(1,))).plan is not None
    with pytest.raises(ValueError, match=r"none before \[0\]: convert a checkpoint of DynamicViT"):
        hj.expedite(vit, hj.DynamicViT(0.5))


def test_ranking_needs_a_class_token() -> None:
    with pytest.raises(ValueError, match="this backbone has no class token"):
        hj.expedite(random_vit(0), hj.EViT(0.5))


def test_reuse_restores_nothing_but_features() -> None:
    whole = Tokens.whole(jnp.ones((1, 30, 32)), GRID, depth=3)
    tokens, _ = select(whole, jnp.ones((1, 30)), 20, restore="reuse")
    assert tokens.restore(tokens.values).shape == (1, 30, 32)
    with pytest.raises(ValueError, match="restores features of 32 channels, got 3"):
        tokens.restore(tokens.values[..., :3])
