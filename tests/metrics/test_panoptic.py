"""Panoptic quality against a case computed by hand and a plain reference, and invalid panoptic maps."""

import json

import numpy as np
import pytest

from hourglass_jax.metrics.panoptic import PanopticMap, PanopticMetric, Segment
from tests.reference import panoptic_quality as reference

THING, STUFF, OTHER = 0, 1, 2
METRIC = PanopticMetric(3, (THING,))


def panoptic(rows: list[list[int]], labels: dict[int, int], crowds: tuple[int, ...] = ()) -> PanopticMap:
    segments = np.array(rows, np.int32)
    table = tuple(
        Segment(number, label, label == THING, 1.0, int((segments == number).sum()), number in crowds)
        for number, label in labels.items()
    )
    return PanopticMap(segments, table)


def test_a_case_computed_by_hand() -> None:
    truth = panoptic([[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 0, 0]], {1: THING, 2: THING, 3: STUFF})
    found = panoptic([[7, 7, 7, 8, 8, 8], [9, 9, 9, 9, 9, 9], [9, 9, 9, 0, 9, 9]], {7: THING, 8: THING, 9: STUFF})
    # 7 and 1: 3 / 4; 8 and 2: 2 / 3. 9 and 3: 9 / 10: where the truth says nothing does not count.
    scores = METRIC.scores(METRIC.count(found, truth))
    assert scores.pq_things == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert scores.pq_stuff == pytest.approx(9 / 10)
    assert scores.pq == pytest.approx(((3 / 4 + 2 / 3) / 2 + 9 / 10) / 2)
    assert (scores.rq, scores.rq_things, scores.rq_stuff) == (1, 1, 1)
    assert scores.sq == scores.pq
    assert np.isnan(scores.by_class[OTHER])
    assert METRIC.shown(scores)["PQ, %"] == "80.42"


def test_what_is_missed_and_what_is_made_up_counts_half() -> None:
    truth = panoptic([[1, 1, 2, 2]], {1: THING, 2: STUFF})
    found = panoptic([[1, 1, 2, 2]], {1: THING, 2: OTHER})
    scores = METRIC.scores(METRIC.count(found, truth))
    np.testing.assert_array_equal(METRIC.count(found, truth), [[1, 0, 0, 1], [0, 0, 1, 0], [0, 1, 0, 0]])
    assert scores.pq == pytest.approx(1 / 3)
    assert scores.by_class.tolist() == [1, 0, 0]


def test_an_overlap_of_one_half_is_no_match() -> None:
    truth = panoptic([[1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 2]], {1: THING, 2: STUFF})
    found = panoptic([[5, 5, 5, 6, 6, 6], [5, 5, 5, 6, 6, 6]], {5: THING, 6: THING})
    # 5 and 1: 3 / 6; half of 6 lies where nothing is said, which is not most of it.
    assert METRIC.count(found, truth)[THING].tolist() == [0, 2, 1, 0]
    rest = panoptic([[5, 5, 5, 6, 6, 6], [5, 5, 5, 6, 6, 0]], {5: THING, 6: THING})
    assert METRIC.count(rest, truth)[THING].tolist() == [0, 1, 1, 0]
    more = panoptic([[5, 5, 5, 6, 6, 6], [5, 5, 0, 6, 6, 6]], {5: THING, 6: THING})
    assert METRIC.count(more, truth)[THING].tolist() == [1, 1, 0, 3 / 5]


def test_crowds_are_neither_missed_nor_made_up() -> None:
    truth = panoptic([[1, 1, 1, 1], [2, 2, 2, 2]], {1: THING, 2: STUFF}, crowds=(1,))
    found = panoptic([[5, 5, 6, 6], [2, 2, 2, 2]], {5: THING, 6: THING, 2: STUFF})
    assert METRIC.count(found, truth)[THING].tolist() == [0, 0, 0, 0]
    other = panoptic([[5, 5, 5, 5], [2, 2, 2, 2]], {5: OTHER, 2: STUFF})
    assert METRIC.count(other, truth)[OTHER].tolist() == [0, 1, 0, 0]


def labelled(panoptic: PanopticMap) -> reference.Labelled:
    return reference.Labelled(
        panoptic.segments.tolist(),
        {each.id: each.label for each in panoptic.table},
        frozenset(each.id for each in panoptic.table if each.is_crowd),
    )


def random_map(random: np.random.Generator, base: np.ndarray, share: float, crowds: tuple[int, ...]) -> PanopticMap:
    """`base` with a share of its pixels at random; segment n is of class n modulo 3, and 0 is none."""
    segments = np.where(random.random(base.shape) < share, random.integers(0, 8, base.shape), base)
    present = [number for number in range(1, 8) if (segments == number).any()]
    return panoptic(segments.tolist(), {number: number % 3 for number in present}, crowds)


@pytest.mark.parametrize("share", [0.05, 0.25, 0.5])
def test_random_maps_have_the_quality_of_the_reference(share: float) -> None:
    random = np.random.default_rng(0)
    pairs, counts, total = [], METRIC.zeros(), METRIC.empty()
    for _ in range(5):
        base = np.kron(random.integers(0, 8, (4, 5)), np.ones((4, 4), int))
        pairs.append((random_map(random, base, share, ()), random_map(random, base, 0.0, crowds=(6, 7))))
        counts += METRIC.count(*pairs[-1])
        METRIC.add(total, json.loads(json.dumps(METRIC.record(*pairs[-1]))))
    np.testing.assert_array_equal(total, counts)
    scores, images = METRIC.scores(counts), [(labelled(found), labelled(truth)) for found, truth in pairs]
    for label in (THING, STUFF, OTHER):
        matched, false_positives, false_negatives, overlap = reference.count_class(label, images)
        np.testing.assert_allclose(counts[label], [matched, false_positives, false_negatives, overlap], atol=1e-12)
    expected = [reference.quality(images, labels) for labels in ((THING, STUFF, OTHER), (THING,), (STUFF, OTHER))]
    np.testing.assert_allclose(scores[:9], np.concatenate(expected), atol=1e-12)
    assert 0 < scores.pq < 1 and counts[:, 1:3].sum() > 0


def test_the_reference_has_the_quality_of_the_case_by_hand() -> None:
    truth = panoptic([[1, 1, 1, 1, 2, 2], [3, 3, 3, 3, 3, 3], [3, 3, 3, 3, 0, 0]], {1: THING, 2: THING, 3: STUFF})
    found = panoptic([[7, 7, 7, 8, 8, 8], [9, 9, 9, 9, 9, 9], [9, 9, 9, 0, 9, 9]], {7: THING, 8: THING, 9: STUFF})
    images = [(labelled(found), labelled(truth))]
    assert reference.quality(images, (THING,))[0] == pytest.approx((3 / 4 + 2 / 3) / 2)
    assert reference.quality(images, (STUFF,)) == pytest.approx((9 / 10, 9 / 10, 1))


def test_what_is_no_panoptic_map_is_named() -> None:
    truth = panoptic([[1, 1]], {1: THING})
    with pytest.raises(ValueError, match="every number of result must be a segment of its table, got 4"):
        METRIC.count(panoptic([[4, 1]], {1: THING}), truth)
    with pytest.raises(ValueError, match=r"result must have the truth's shape \[1, 2\], got \[2, 1\]"):
        METRIC.count(panoptic([[1], [1]], {1: THING}), truth)
    with pytest.raises(ValueError, match=r"classes of result must lie in 0\.\.2, got 9"):
        METRIC.count(panoptic([[1, 1]], {1: 9}), truth)
