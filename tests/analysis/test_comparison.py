"""The comparison of a model with and without a plan."""

from dataclasses import asdict

import jax
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass
from hourglass_jax.analysis.comparison import Comparison, compare
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.saliency import Saliency, SaliencyConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = SaliencyConfig(
    ViTConfig(patch_size=4, width=16, heads=2, depth=2, position_grid=(4, 3)), decoder_widths=(4,)
)
SIZE, GRID = (16, 12), (4, 3)
LOSSLESS = Hourglass(1, GRID, iterations=0, temperature=1e-6, neighbors=1)
"""Every token is its own cluster, and comes back from that one alone."""


@pytest.fixture(scope="module")
def model() -> Saliency:
    random = nnx.eval_shape(lambda: Saliency(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda each: rng.normal(0, 0.5, each.shape).astype(np.float32), nnx.state(random))
    nnx.update(random, values)
    for stage in random.stages:
        stage.norm.var[...] = abs(stage.norm.var[...])
    return random


def random_image(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(*size, 3)).astype(np.float32)


def figures_agree_with_each_other(found: Comparison) -> None:
    figures = found.figures
    assert all(np.isfinite(value) for value in asdict(figures).values())
    assert figures.speedup == pytest.approx(figures.latency_ms / figures.latency_ms_expedited)
    assert found.result.shape == found.result_expedited.shape == SIZE
    assert found.groups.shape == GRID
    np.testing.assert_array_equal(found.difference, np.abs(found.result - found.result_expedited))
    assert figures.mae == pytest.approx(found.difference.mean())
    decisions = [result >= 0.5 for result in (found.result, found.result_expedited)]
    assert figures.agreement == pytest.approx(np.mean(np.equal(*decisions)))


@pytest.mark.slow
def test_a_lossless_plan_changes_nothing(model: Saliency) -> None:
    [[found]] = compare(model, [LOSSLESS], [random_image()], repeats=1)
    figures_agree_with_each_other(found)
    figures = found.figures
    assert (figures.tokens, figures.clusters) == (12, 12)
    assert figures.cosine == pytest.approx(1, abs=1e-6)
    assert figures.mae < 1e-6 and figures.agreement == 1
    np.testing.assert_array_equal(found.groups.ravel(), np.arange(12))


def test_every_image_is_compared_under_the_plan(model: Saliency) -> None:
    calls = []
    plan = Hourglass(1, (2, 2), iterations=0, temperature=1.0, neighbors=2)
    images = [random_image(seed) for seed in (0, 1)]
    [first], [second] = compare(model, [plan], images, repeats=3, on_call=lambda: calls.append(None))
    for found in (first, second):
        figures_agree_with_each_other(found)
        figures = found.figures
        assert (figures.tokens, figures.clusters) == (12, 4)
        assert figures.gflops == count_macs(model, SIZE)["total"] / 1e9
        assert figures.gflops_expedited != figures.gflops
        assert figures.cosine < 0.9999 and figures.mae > 0
        assert set(found.groups.ravel()) <= set(range(4))
    assert not np.array_equal(first.result, second.result)
    assert len(calls) == 2 * 2 * (3 + 1)
    assert model.backbone.plan is None


@pytest.mark.parametrize(
    ("plan", "size", "message"),
    [
        (Hourglass(2, (2, 2)), SIZE, "alpha must be less than the backbone's 2 blocks, got 2"),
        (Hourglass(1, (4, 4)), SIZE, "got 4 x 4 clusters for 4 x 3 tokens"),
        (Hourglass(1, (2, 2)), (16, 10), "multiples of 4 pixels, got 16 x 10"),
    ],
)
def test_what_does_not_fit_is_an_error(
    model: Saliency, plan: Hourglass, size: tuple[int, int], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        next(compare(model, [plan], [random_image(size=size)]))
