"""Plans at equal cost: nearest to the budget and not above it, counted as they are executed."""

import pytest

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_encoder_macs, count_macs
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.plans.registry import METHODS
from hourglass_jax.search import budget
from hourglass_jax.search.budget import Costs, at_budget
from tests.models.tiny import build_sam

SIZE = (70, 84)


@pytest.fixture(scope="module")
def costs(tiny_model: Saliency) -> Costs:
    return Costs(tiny_model, SIZE)


def test_the_encoder_is_the_model_without_its_head(tiny_model: Saliency, costs: Costs, tiny_plan) -> None:
    for plan in (None, tiny_plan):
        counted = count_macs(hj.expedite(tiny_model, plan), SIZE)
        encoder = count_encoder_macs(hj.expedite(tiny_model, plan), SIZE)
        assert encoder == counted["total"] - counted["head"]
    assert costs(tiny_plan) == encoder / costs.original < 1


@pytest.mark.parametrize("method", ["Hourglass", "StagedMerging", "Downsampling"])
def test_a_plan_is_the_dearest_within_its_budget(method: str, tiny_model: Saliency, costs: Costs) -> None:
    plan = costs.solve(method, 0.8)
    assert type(plan) is METHODS[method]
    every = {METHODS[method].scaled(step / 8, costs.depth, costs.token_grid) for step in range(1, 9)}
    within = [costs(each) for each in every if costs(each) <= 0.8]
    assert max(within) - budget.TOLERANCE <= costs(plan) <= 0.8


def test_fields_are_kept(costs: Costs) -> None:
    plan = costs.solve("Hourglass", 0.9, {"alpha": 2, "window": 3})
    assert (plan.alpha, plan.window) == (2, 3)
    wider = (plan.clusters[0] + 1, plan.clusters[1] + 1)
    assert costs(plan) <= 0.9 < costs(hj.Hourglass(2, wider, window=3))


def test_all_of_the_cost_is_the_methods_dearest(tiny_model: Saliency, costs: Costs) -> None:
    assert at_budget(tiny_model, "Downsampling", 1.0, SIZE) == hj.Downsampling(1.0)


@pytest.mark.parametrize(
    ("method", "share", "fields", "message"),
    [
        ("Sandglass", 0.5, {}, "unknown method 'Sandglass'; known: Hourglass, "),
        ("Hourglass", 0, {}, r"a budget must be a share in \(0, 1\], got 0"),
        ("Hourglass", 1.1, {}, r"a budget must be a share in \(0, 1\], got 1.1"),
        ("Hourglass", 0.1, {}, "Hourglass cannot do with 0.1 of the encoder's cost: at least 0."),
        ("Hourglass", 0.8, {"window": 4}, "window must be a positive odd integer, got 4"),
        ("Hourglass", 0.8, {"alpha": 3}, "alpha must be less than the backbone's 3 blocks"),
        ("DynamicViT", 0.8, {}, "DynamicViT needs prediction modules"),
    ],
)
def test_what_cannot_be_done_is_said(method: str, share: float, fields: dict, message: str, costs: Costs) -> None:
    with pytest.raises(ValueError, match=message):
        costs.solve(method, share, fields)


@pytest.mark.parametrize("last", [1, 2, 499, 500, 999, 1000])
def test_the_last_step_is_found_whatever_the_curve(last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "TOLERANCE", 0)
    for curve in (lambda x: x, lambda x: x**3, lambda x: x // 7 * 7, lambda x: float(x > 500)):
        asked = []

        def excess(step: int, curve=curve, asked=asked) -> float:
            asked.append(step)
            return curve(step) - curve(last)

        found = budget._last_step(1000, excess, 600)
        assert curve(found) == curve(last)
        assert len(asked) < 60
    assert budget._last_step(1000, lambda step: 1.0, 600) is None


def test_the_clusters_of_windows_are_counted_by_window() -> None:
    sam = build_sam()
    plan = at_budget(sam, "Hourglass", 0.8, (32, 32))
    assert plan.clusters[0] == plan.clusters[1] <= sam.config.backbone.windows.side
    assert Costs(sam, (32, 32))(plan) <= 0.8
    with pytest.raises(ValueError, match="a backbone with windows takes an Hourglass"):
        at_budget(sam, "StagedMerging", 0.8, (32, 32))
