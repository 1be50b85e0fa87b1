"""The figures, against a case by hand, sets of pixels, and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from hourglass_jax.evaluation.metrics import IGNORED, confusion, scores

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
    counts = confusion(PREDICTION, LABEL, 4)
    assert counts.dtype == np.int64
    assert counts.tolist() == COUNTS
    found = scores(counts)
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
        np.testing.assert_array_equal(confusion(prediction, label, classes), expected)


def test_figures_of_many_images_are_those_of_the_sets_of_all_their_pixels() -> None:
    classes, maps = 6, [random_maps(seed, 6, (7, 5 + seed)) for seed in range(4)]
    found = scores(sum(confusion(*each, classes) for each in maps))
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
    perfect = scores(confusion(label, label, 3))
    assert perfect[:3] == (1, 1, 1)
    nothing = scores(confusion(PREDICTION, np.full_like(LABEL, IGNORED), 3))
    assert np.isnan([*nothing[:3], *nothing.iou]).all()


def test_another_label_can_be_ignored() -> None:
    assert confusion(PREDICTION, LABEL.clip(max=1), 3, ignore=1).sum() == 3


@pytest.mark.parametrize(
    ("prediction", "label", "message"),
    [
        (PREDICTION, LABEL[:1], r"the label's shape \[1, 4\], got \[2, 4\]"),
        (PREDICTION, LABEL.clip(max=7) + 1, "label must lie in 0..3, got 1 to 8"),
        (PREDICTION, LABEL - 1, "label must lie in 0..3, got -1 to 254"),
        (PREDICTION + 4, LABEL, "prediction must lie in 0..3, got 4 to 6"),
        (PREDICTION / 2, LABEL, r"prediction must be integers \[H, W\], got float"),
        (PREDICTION, LABEL[0], r"label must be integers \[H, W\], got int16 \[4\]"),
    ],
)
def test_wrong_maps_are_refused(prediction: np.ndarray, label: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        confusion(prediction, label, 4)
