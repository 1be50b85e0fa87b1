"""Non-maximum suppression against lists, in their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.nms import Suppression, select, suppress
from tests.ops.test_boxes import random_boxes
from tests.reference import detection as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

run_suppress = jax.jit(suppress, static_argnums=2)
run_select = jax.jit(select, static_argnums=(2, 3))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.7, 1.0])
@pytest.mark.parametrize("side", [20.0, 200.0])
def test_what_is_kept_is_what_the_list_keeps(threshold: float, side: float) -> None:
    boxes = np.concatenate([random_boxes(40, 1, side), random_boxes(40, 1, side) + 1])
    valid = np.random.default_rng(2).random(80) < 0.8
    kept = np.flatnonzero(run_suppress(jnp.asarray(boxes), jnp.asarray(valid), threshold))
    places = np.flatnonzero(valid)
    expected = reference.suppressed(boxes[places].astype(np.float64), np.zeros(len(places)), threshold)
    np.testing.assert_array_equal(kept, places[sorted(expected)])


def test_a_chain_of_boxes_that_each_suppress_the_next() -> None:
    """Every second one is kept: what is suppressed suppresses nothing."""
    starts = np.arange(64) * 0.4
    boxes = np.stack([starts, np.zeros(64), starts + 1, np.ones(64)], axis=-1).astype(np.float32)
    kept = run_suppress(jnp.asarray(boxes), jnp.ones(64, bool), 0.3)
    np.testing.assert_array_equal(kept, np.arange(64) % 2 == 0)


def test_no_box_at_all() -> None:
    assert not run_suppress(jnp.asarray(random_boxes(5)), jnp.zeros(5, bool), 0.5).any()


def expected_selection(boxes: np.ndarray, scores: np.ndarray, rule: Suppression) -> list[tuple[float, int, int]]:
    """Score, box and class of all that is left, the best first; equal ones in the order of box and class."""
    found = []
    for label in range(scores.shape[1]):
        own = boxes[:, min(label, boxes.shape[1] - 1)].astype(np.float64)
        places = np.flatnonzero(np.isfinite(scores[:, label]))
        given = scores[places, label].astype(np.float64)
        if rule.method == "hard":
            kept = [(i, given[i]) for i in reference.suppressed(own[places], given, rule.threshold)]
        else:
            kept = reference.soft(own[places], given, rule.method, rule.threshold, rule.least, rule.sigma)
        found += [(score, int(places[i]), label) for i, score in kept]
    return sorted(found, key=lambda each: (-each[0], *each[1:]))


@pytest.mark.parametrize("kind", ["hard", "linear", "gaussian"])
@pytest.mark.parametrize("own", [True, False])
def test_what_is_selected_is_what_the_lists_hold(kind: str, own: bool) -> None:
    random, rule = np.random.default_rng(3), Suppression(kind)
    boxes = np.stack([random_boxes(60, seed, 30) for seed in range(4 if own else 1)], axis=1)
    scores = random.random((60, 4)).astype(np.float32)
    scores[random.random((60, 4)) < 0.3] = -np.inf
    if kind == "hard":
        scores = np.round(scores, 1)  # many are equal; lowered ones never are
    expected = expected_selection(boxes, scores, rule)[:50]
    found = run_select(jnp.asarray(boxes), jnp.asarray(scores), 50, rule)
    count = int(np.isfinite(found.scores).sum())
    assert count == len(expected)
    np.testing.assert_allclose(found.scores[:count], [score for score, _, _ in expected], atol=1e-5)
    np.testing.assert_array_equal(found.places[:count], [place for _, place, _ in expected])
    np.testing.assert_array_equal(found.labels[:count], [label for _, _, label in expected])


def test_more_than_ten_thousand_candidates() -> None:
    """Where mmcv goes from one suppression of all classes to one for each."""
    random = np.random.default_rng(4)
    boxes, scores = random_boxes(130, 5, 60)[:, None], random.random((130, 80)).astype(np.float32)
    found = run_select(jnp.asarray(boxes), jnp.asarray(scores), 100, Suppression())
    expected = expected_selection(boxes, scores, Suppression())[:100]
    np.testing.assert_array_equal(found.places, [place for _, place, _ in expected])
    np.testing.assert_array_equal(found.labels, [label for _, _, label in expected])


def test_more_are_asked_for_than_there_are() -> None:
    boxes = jnp.array([[[0.0, 0, 1, 1]], [[5, 5, 6, 6]]])
    found = run_select(boxes, jnp.array([[0.5, -jnp.inf], [0.7, 0.2]]), 6, Suppression())
    np.testing.assert_array_equal(found.scores, np.float32([0.7, 0.5, 0.2, *[-np.inf] * 3]))
    np.testing.assert_array_equal(found.places[:3], [1, 0, 1])


def test_the_first_box_stays_however_low_its_score() -> None:
    boxes = jnp.array([[[0.0, 0, 1, 1]], [[5, 5, 6, 6]]])
    found = run_select(boxes, jnp.array([[4e-4], [5e-4]]), 2, Suppression("linear"))
    np.testing.assert_array_equal(found.scores, np.float32([5e-4, -np.inf]))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "firm"}, "method must be 'hard', 'linear' or 'gaussian', got 'firm'"),
        ({"sigma": 0}, "sigma be posi"),
    ],
)
@pytest.mark.usefixtures("no_type_checks")
def test_an_unknown_rule_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Suppression(**fields)
