import pytest

from hourglass_jax import ACT, StagedMerging, TokenMerging, expedite
from hourglass_jax.analysis.budget import encoder_macs, plan_within
from tests.reductions.vits import SIDES, random_vit


def test_the_plan_is_the_dearest_within_the_budget() -> None:
    """Of the unexpedited encoder, whatever plan the backbone has."""
    vit = random_vit()
    plan = plan_within(0.7, StagedMerging, expedite(vit, TokenMerging(merged=9)), SIDES)
    cost = encoder_macs(expedite(vit, plan), SIDES) / encoder_macs(vit, SIDES)
    assert isinstance(plan, StagedMerging)
    assert 0.66 < cost <= 0.7


def test_a_budget_out_of_reach_is_named() -> None:
    with pytest.raises(ValueError, match=r"ACT costs at least 0\.9\d\d of the encoder, more than 0.5"):
        plan_within(0.5, ACT, random_vit(), SIDES)
