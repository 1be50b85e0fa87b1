"""Token-to-cluster assignments of plans."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hourglass_jax as hj
from hourglass_jax.analysis.groups import find_groups
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.ops.clustering import cluster_tokens

pytestmark = pytest.mark.usefixtures("quick_compilation")

IMAGES = np.random.default_rng(0).normal(size=(1, 70, 70, 3)).astype(np.float32)
PLANS = [
    hj.TokenMerging(keep=0.8),
    hj.StagedMerging(0.7),
    hj.EViT(0.6, restore="reuse"),
    hj.Pooling(1, (3, 2)),
    hj.Downsampling(0.5),
]


@pytest.mark.parametrize("beta", [1, None])
def test_a_token_of_an_hourglass_is_in_its_nearest_cluster(beta: int | None, tiny_model: Saliency) -> None:
    plan = hj.Hourglass(1, (3, 3), beta=beta)
    found = find_groups(tiny_model.backbone, plan, IMAGES)
    [(_, z)] = jax.jit(lambda backbone: backbone(IMAGES, intermediates=(0,)).intermediates)(tiny_model.backbone)
    clusters = cluster_tokens(z, token_grid=(5, 5), cluster_grid=(3, 3), temperature="auto")
    distances = jnp.sum((z[0, :, None] - clusters[0]) ** 2, axis=-1)
    np.testing.assert_array_equal(found.ravel(), jnp.argmin(distances, axis=1))


@pytest.mark.parametrize("plan", PLANS, ids=lambda plan: type(plan).__name__)
def test_there_are_as_many_groups_as_tokens_are_left(plan: hj.Plan, tiny_model: Saliency) -> None:
    found = find_groups(tiny_model.backbone, plan, IMAGES)
    left = min(plan.counts(3, (5, 5)))
    assert found.shape == (5, 5)
    assert 1 < len(np.unique(found)) <= left < 25
    if isinstance(plan, hj.StagedMerging):
        assert len(np.unique(found)) == left


def test_what_reduces_no_tokens_leaves_each_alone(tiny_model: Saliency) -> None:
    found = find_groups(tiny_model.backbone, hj.ACT(6), IMAGES)
    np.testing.assert_array_equal(found, np.arange(25).reshape(5, 5))
