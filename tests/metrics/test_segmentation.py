"""The figures, against a case by hand, sets of pixels, and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from hourglass_jax.metrics.segmentation import IGNORED, SegmentationMetric

FOUR = SegmentationMetric(4)
PREDICTION = np.array([[0, 0, 1, 1], [0, 2, 1, 1]], np.uint8)
LABEL = np.array([[0, 0, 0, 1], [1, 1, 1, IGNORED]], np.int16)
COUNTS = [[2, 1, 0, 0], [1, 2, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
"""Class 2 is predicted once and never labelled; class 3 does not occur."""


def random_maps(seed: int, classes: int, size: tuple[int, int] = (31, 43)) -> tuple[np.ndarray, np.ndarray]:
    """Half of the labels are right, a tenth do not count, and the last class is never labelled."""
    random = np.random.default_rng(seed)
    label = random.integers(0, classes - 1, size)
    prediction = np.where(random.random(size) < 0.5, label, random.integers(0, classes, size)).astype(np.uint8)
    return prediction, np.where(random.random(size) < 0.1, IGNORED, label)


def test_by_hand() -> None:
    counts = FOUR.count(PREDICTION, LABEL)
    assert counts.dtype == np.int64
    assert counts.tolist() == COUNTS
    found = FOUR.scores(counts)
    np.testing.assert_allclose(found.iou, [2 / 4, 2 / 5, 0, np.nan])
    assert found.miou == pytest.approx((2 / 4 + 2 / 5 + 0) / 3)
    assert found.mean_accuracy == pytest.approx((2 / 3 + 2 / 4) / 2)
    assert found.pixel_accuracy == pytest.approx(4 / 7)


@pytest.mark.parametrize("classes", [2, 19, 150])
def test_counts_are_those_of_scikit_learn(classes: int) -> None:
    for seed in range(5):
        prediction, label = random_maps(seed, classes)
        counted = label != IGNORED
        expected = confusion_matrix(label[counted], prediction[counted], labels=range(classes))
        np.testing.assert_array_equal(SegmentationMetric(classes).count(prediction, label), expected)


def test_figures_of_many_images_are_those_of_the_sets_of_all_their_pixels() -> None:
    classes, maps = 6, [random_maps(seed, 6, (7, 5 + seed)) for seed in range(4)]
    metric = SegmentationMetric(classes)
    found = metric.scores(sum((metric.count(*each) for each in maps), metric.zeros()))
    truth: list[set] = [set() for _ in range(classes)]
    guess: list[set] = [set() for _ in range(classes)]
    for number, (prediction, label) in enumerate(maps):
        for place in np.ndindex(label.shape):
            if label[place] != IGNORED:
                truth[label[place]].add((number, *place))
                guess[prediction[place]].add((number, *place))
    assert not truth[-1] and guess[-1]
    iou = [len(a & b) / len(a | b) for a, b in zip(truth, guess, strict=True)]
    accuracy = [len(a & b) / len(a) for a, b in zip(truth, guess, strict=True) if a]
    right = sum(len(a & b) for a, b in zip(truth, guess, strict=True))
    np.testing.assert_allclose(found.iou, iou)
    assert found.miou == pytest.approx(np.mean(iou))
    assert found.mean_accuracy == pytest.approx(np.mean(accuracy))
    assert found.pixel_accuracy == pytest.approx(right / sum(map(len, truth)))


def test_perfect_and_nothing() -> None:
    label = LABEL.clip(max=1)
    metric = SegmentationMetric(3)
    perfect = metric.scores(metric.count(label, label))
    assert perfect[:3] == (1, 1, 1)
    nothing = metric.scores(metric.count(PREDICTION, np.full_like(LABEL, IGNORED)))
    assert np.isnan([*nothing[:3], *nothing.iou]).all()


def test_what_is_shown_is_in_percent() -> None:
    shown = FOUR.shown(FOUR.scores(FOUR.count(PREDICTION, LABEL)))
    assert shown == {"mIoU, %": "30.00", "mean accuracy, %": "58.33", "pixel accuracy, %": "57.14"}


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (PREDICTION, LABEL[:1], r"the truth's shape \[1, 4\], got \[2, 4\]"),
        (PREDICTION, LABEL.clip(max=7) + 1, "truth must lie in 0..3, got 1 to 8"),
        (PREDICTION, LABEL - 1, "truth must lie in 0..3, got -1 to 254"),
        (PREDICTION + 4, LABEL, "result must lie in 0..3, got 4 to 6"),
        (PREDICTION / 2, LABEL, r"result must be integers \[H, W\], got float"),
        (PREDICTION, LABEL[0], r"truth must be integers \[H, W\], got int16 \[4\]"),
    ],
)
def test_wrong_maps_are_refused(prediction: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FOUR.count(prediction, label)
