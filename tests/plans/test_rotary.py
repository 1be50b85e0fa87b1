"""Plans on a transformer with rotary positions, against the references in NumPy: tokens turn with their members."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.models.registry import flat_parameters
from tests.plans.vits import CONFIG, GRID, SIDES, by_reference, features, random_images, random_vit
from tests.reference import plans
from tests.reference.rotary import Rotary

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROTARY = Rotary(GRID, 100.0)
CLUSTERING = {"window": 3, "iterations": 2, "temperature": 20.0}
EQ4 = {"neighbors": 4, "temperature": 20.0}

PLANS = {
    "none": (None, functools.partial(plans.pooling, grid=GRID, alpha=None, clusters=GRID)),
    "hourglass": (
        hj.Hourglass(1, (3, 2), neighbors=3, **CLUSTERING),
        functools.partial(plans.clustering, grid=GRID, alpha=1, clusters=(3, 2), neighbors=3, **CLUSTERING),
    ),
    "pooling": (
        hj.Pooling(1, (3, 4)),
        functools.partial(plans.pooling, grid=GRID, alpha=1, clusters=(3, 4)),
    ),
    "staged merging": (
        hj.StagedMerging(0.6, stages=(0, 1)),
        functools.partial(plans.staged_merging, keep=0.6, stages=(0, 1), value="mean", columns=GRID[1]),
    ),
    "staged merging, medoid": (
        hj.StagedMerging(0.7, stages=(0, 1), value="medoid"),
        functools.partial(plans.staged_merging, keep=0.7, stages=(0, 1), value="medoid", columns=GRID[1]),
    ),
    "token merging": (
        hj.TokenMerging(merged=5),
        functools.partial(plans.token_merging, left=[25, 20, 15]),
    ),
    "evit": (
        hj.EViT(0.6, stages=(0,), fuse=True, restore="reuse"),
        functools.partial(plans.evit, keep=0.6, stages=(0,), fuse=True, restore="reuse", **EQ4),
    ),
}


@pytest.fixture(scope="module")
def vit() -> ViT:
    return random_vit(5, rotary=True)


@pytest.mark.parametrize(("plan", "run"), PLANS.values(), ids=PLANS)
def test_features_are_those_of_the_reference(plan: hj.Plan | None, run, vit: ViT) -> None:
    images = random_images()
    special, tokens, _ = features(hj.expedite(vit, plan), images)
    expected_special, expected = by_reference(vit, images, functools.partial(run, rotary=ROTARY))
    np.testing.assert_allclose(special, expected_special, rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-4)


def test_positions_are_all_that_tells_tokens_apart(vit: ViT) -> None:
    """Two patches of one colour on another see each other according to their distance."""
    assert not any("position" in name for name in flat_parameters(vit))
    near, far = np.ones((2, 1, *SIDES, 3), np.float32)
    side = CONFIG.patch_size
    near[:, :side, : 2 * side], far[:, :side, :side], far[:, -side:, -side:] = 3, 3, 3
    found = [features(vit, jnp.asarray(each))[1][0, 0] for each in (near, far)]
    assert np.abs(found[0] - found[1]).max() > 1e-3


def test_a_smaller_image_has_the_positions_of_the_larger(vit: ViT) -> None:
    """Downsampling embeds it as it is: features of its tokens are those of the smaller image alone."""
    images = random_images()
    special, _, _ = features(hj.expedite(vit, hj.Downsampling(0.5)), images)
    plan = hj.Downsampling(0.5)
    small = plan.before_embedding(images, CONFIG.patch_size)
    np.testing.assert_allclose(special, features(vit, small)[0], rtol=0, atol=1e-5)


def test_angles_are_computed_once_where_no_token_moves(vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    from hourglass_jax.backbones import vit as module

    calls, compute = [], module.rotation
    monkeypatch.setattr(module, "rotation", lambda *args, **fields: calls.append(1) or compute(*args, **fields))
    for plan, count in ((None, 1), (hj.Hourglass(1, (3, 2)), 2), (hj.StagedMerging(0.8, stages=(1,)), 2)):
        calls.clear()
        nnx.eval_shape(lambda vit, images: vit(images).special, hj.expedite(vit, plan), random_images())
        assert len(calls) == count
