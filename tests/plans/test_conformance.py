"""What holds for every kind of plan: one of `METHODS` is tested by being there."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.backbones.layers import Block
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.plans.base import Block as BlockProtocol
from hourglass_jax.plans.base import Tokens
from hourglass_jax.plans.registry import METHODS
from hourglass_jax.plans.wrapped import WrappedPlan
from tests.plans.vits import CONFIG, GRID, SIDES, features, random_images, random_vit

pytestmark = pytest.mark.usefixtures("quick_compilation")

DEPTH, TOKENS = CONFIG.depth, GRID[0] * GRID[1]
PLANS = {name: method.scaled(0.5, DEPTH, GRID) for name, method in METHODS.items()}
every_plan = pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)


@pytest.fixture(scope="module")
def vit() -> ViT:
    return random_vit()


@dataclasses.dataclass(frozen=True)
class Recorded(WrappedPlan):
    """Keeps the positions and sizes of the tokens that enter every block, and of those that leave the last one."""

    seen: list[tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=list)

    def before_block(self, index: int, tokens: Tokens, block: BlockProtocol) -> Tokens:
        return self._record(super().before_block(index, tokens, block))

    def after_blocks(self, tokens: Tokens) -> Tokens:
        return self._record(super().after_blocks(tokens))

    def _record(self, tokens: Tokens) -> Tokens:
        assert (tokens.grid, tokens.depth) == (GRID, DEPTH)
        shape = len(tokens.sequence), tokens.count
        sizes = jnp.ones(shape) if tokens.sizes is None else tokens.sizes
        self.seen.append((jnp.broadcast_to(tokens.positions, (*shape, 2)), sizes))
        return tokens


@every_plan
def test_a_plan_is_frozen_hashable_and_replaceable(plan: hj.Plan) -> None:
    assert dataclasses.replace(plan) == plan
    assert hash(dataclasses.replace(plan)) == hash(plan)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(plan, dataclasses.fields(plan)[0].name, 1)


@every_plan
def test_images_do_not_see_each_other_and_equal_tokens_make_no_nan(plan: hj.Plan, vit: ViT) -> None:
    fast, images = hj.expedite(vit, plan), random_images()
    found = features(fast, images)
    swapped = features(fast, images[::-1])
    chex.assert_trees_all_close(jax.tree.map(lambda each: each[::-1], swapped), found, rtol=0, atol=1e-5)
    assert np.abs(found[1] - features(vit, images)[1]).max() > 1e-3
    constant = hj.expedite(random_vit(), plan)
    constant.position_embedding[...] = jnp.ones_like(constant.position_embedding)
    chex.assert_tree_all_finite(features(constant, jnp.ones_like(images)))


@every_plan
def test_counts_are_the_tokens_that_attend(plan: hj.Plan, vit: ViT, monkeypatch: pytest.MonkeyPatch) -> None:
    fast, attended, project = hj.expedite(vit, plan), [], Block.project

    def counted(block: Block, x: jnp.ndarray):
        attended.append(x.shape[1] - 1)
        return project(block, x)

    monkeypatch.setattr(Block, "project", counted)
    special, tokens, intermediates = nnx.eval_shape(
        lambda vit, images: features.__wrapped__(vit, images), fast, random_images()
    )
    assert [*attended, TOKENS] == plan.counts(DEPTH, GRID)
    assert special.shape == (2, 1, 32)
    chex.assert_shape([tokens, *intermediates], (2, TOKENS, 32))


@every_plan
def test_tokens_know_where_their_members_are(plan: hj.Plan, vit: ViT) -> None:
    """All tokens are at their own places; fewer lie among them, and where all are counted, so is the mean."""

    @nnx.jit
    def places(vit: ViT, images: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
        recorded = Recorded(plan)
        hj.expedite(vit, recorded)(images)
        return recorded.seen

    everywhere = np.stack(np.divmod(np.arange(TOKENS), GRID[1]), axis=-1)
    for (positions, sizes), count in zip(places(vit, random_images()), plan.counts(DEPTH, GRID), strict=True):
        assert positions.shape == (2, count, 2)
        assert np.all(positions >= 0) and np.all(positions <= np.array(GRID) - 1)
        assert len(np.unique(np.asarray(positions[0]).round(4), axis=0)) > count / 2
        if count == TOKENS:
            np.testing.assert_allclose(positions[0], everywhere, atol=1e-5)
        if sizes.sum() == sizes.shape[0] * TOKENS:
            np.testing.assert_allclose(
                (sizes[..., None] * positions).sum(axis=1) / TOKENS, [everywhere.mean(axis=0)] * 2, atol=1e-5
            )


@every_plan
def test_bfloat16_stays_bfloat16(plan: hj.Plan) -> None:
    vit = hj.expedite(random_vit(dtype=jnp.bfloat16), plan)
    found = nnx.eval_shape(lambda vit, images: features.__wrapped__(vit, images), vit, random_images())
    assert all(each.dtype == jnp.bfloat16 for each in jax.tree.leaves(found))


@every_plan
def test_models_take_every_plan(plan: hj.Plan, tiny_model: Saliency) -> None:
    saliency = tiny_model.config
    backbone = dataclasses.replace(saliency.backbone, predictors=(0, 1, 2))
    config = SegmenterConfig(dataclasses.replace(CONFIG, width=64, heads=1), classes=3, decoder_depth=1)
    depth = DPTDepthConfig(CONFIG, hooks=(0, 1, 1, 2), widths=(8,) * 4, fusion_width=8)
    models = {
        (70, 70): nnx.eval_shape(
            lambda: Saliency(dataclasses.replace(saliency, backbone=backbone), rngs=nnx.Rngs(0))
        ),
        (22, 20): nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0))),
        (24, 20): nnx.eval_shape(lambda: DPTDepth(depth, rngs=nnx.Rngs(0))),
    }
    for size, model in models.items():
        fast = hj.expedite(model, plan)
        output = nnx.eval_shape(lambda model, x: model(x), fast, jnp.zeros((1, *size, 3)))
        assert output.shape[:3] == (1, *size)
    classifier = nnx.eval_shape(lambda: Swag(SwagConfig(CONFIG, classes=7), rngs=nnx.Rngs(0)))
    output = nnx.eval_shape(lambda model, x: model(x), hj.expedite(classifier, plan), jnp.zeros((1, *SIDES, 3)))
    assert output.shape == (1, 7)


@pytest.mark.parametrize("name", METHODS)
def test_scaled_plans_rise_in_cost(name: str, vit: ViT) -> None:
    plans = [METHODS[name].scaled(share, DEPTH, GRID) for share in (0.05, 0.5, 1.0)]
    costs = [count_encoder_macs(hj.expedite(vit, plan), SIDES) for plan in plans]
    assert costs == sorted(costs)
    assert costs[0] < costs[1]


@every_plan
def test_a_plan_fits_other_grids_at_the_share_that_it_keeps(plan: hj.Plan) -> None:
    for grid in ((2, 13), (1, 9), (30, 31)):
        plan.fitted(grid, GRID).check(DEPTH, grid)
    if not isinstance(plan, hj.ACT):  # which keeps all tokens, and a number of queries
        shares = [
            min(each.counts(DEPTH, grid)) / (grid[0] * grid[1])
            for each, grid in ((plan, GRID), (plan.fitted((30, 31), GRID), (30, 31)))
        ]
        assert abs(shares[0] - shares[1]) < 0.05
