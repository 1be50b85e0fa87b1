"""Pictures of label maps: exact colours where they follow from the labels, and the rows of the legend."""

from collections.abc import Callable

import numpy as np
import pytest

from hourglass_jax.imaging import label_pictures
from hourglass_jax.imaging.label_pictures import colorize_labels, label_overlay
from hourglass_jax.imaging.labels import labels_of
from hourglass_jax.imaging.pictures import text_line

NAMES, COLORS = ("road", "sky", "car"), ((128, 64, 128), (70, 130, 180), (0, 0, 142))


@pytest.fixture
def legend_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What has been written since: all names of a legend, then all shares."""
    texts = []
    monkeypatch.setattr(
        label_pictures, "text_line", lambda text, *args: texts.append(text) or text_line(text, *args)
    )
    return texts


def swatches(picture: np.ndarray, width: int) -> list[tuple[int, ...]]:
    """The colours in the middle of the legend's swatches, from above, beside a photograph of `width` pixels."""
    column = picture[:, width + 18]
    is_white = (column == 255).all(-1)
    starts = np.flatnonzero(is_white[:-1] & ~is_white[1:])
    return [tuple(column[start + 6].tolist()) for start in starts]


def stripes(counts: list[int], height: int) -> np.ndarray:
    return np.tile(np.repeat(np.arange(len(counts)), counts), (height, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint64])
def test_labels_are_places_in_the_table(dtype: type) -> None:
    picture = colorize_labels(np.array([[2, 0], [1, 1]], dtype), COLORS)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[COLORS[2], COLORS[0]], [COLORS[1], COLORS[1]]])


def test_colors_are_blended_in_proportion() -> None:
    photo = np.random.default_rng(0).integers(0, 256, (200, 30, 3), dtype=np.uint8)
    for opacity in (0, 0.3, 0.5, 1):
        picture = label_overlay(photo, np.ones((200, 30), int), NAMES, COLORS, opacity)
        assert picture.dtype == np.uint8
        expected = np.rint(photo * (1 - opacity) + np.array(COLORS[1]) * opacity)
        np.testing.assert_array_equal(picture[:, :30], expected)


def test_classes_are_outlined() -> None:
    picture = label_overlay(np.full((200, 6, 3), 100, np.uint8), stripes([3, 3], 200), NAMES, COLORS, 0.5)
    left, right = 50 + 0.5 * np.array(COLORS[:2])
    expected = [left, left, 0.5 * left + 127.5, 0.7 * right, right, right]
    np.testing.assert_array_equal(picture[:, :6], np.broadcast_to(np.rint(expected), (200, 6, 3)))


def test_the_legend_has_the_classes_that_occur_in_order_of_their_shares(legend_texts: list[str]) -> None:
    names, colors = ("road", "absent", "sky", "car"), (COLORS[0], (1, 1, 1), *COLORS[1:])
    photo = np.zeros((200, 100, 3), np.uint8)
    picture = label_overlay(photo, stripes([20, 0, 55, 25], 200), names, colors)
    assert legend_texts == ["sky", "car", "road", "55.0%", "25.0%", "20.0%"]
    assert swatches(picture, 100) == [COLORS[1], COLORS[2], COLORS[0]]
    assert picture.shape[0] == 200
    assert picture.shape[1] > 100 + 3 * 12


def test_equal_shares_are_in_order_of_the_labels(legend_texts: list[str]) -> None:
    label_overlay(np.zeros((200, 9, 3), np.uint8), stripes([3, 3, 3], 200)[:, ::-1], NAMES, COLORS)
    assert legend_texts[:3] == list(NAMES)


def test_what_does_not_fit_is_summed_in_the_last_row(legend_texts: list[str]) -> None:
    """12 pixels of letters in rows of 19 with margins of 12: 8 rows in a height of 180."""
    labels = labels_of(None, 10)
    counts = [10, 20, 5, 25, 8, 7, 9, 6, 4, 6]
    photo = np.zeros((180, 100, 3), np.uint8)
    picture = label_overlay(photo, stripes(counts, 180), labels.names, labels.colors)
    shown = [3, 1, 0, 6, 4, 5, 7]
    assert legend_texts[:8] == [*(f"class {label}" for label in shown), "3 others"]
    assert legend_texts[8:] == ["25.0%", "20.0%", "10.0%", "9.0%", "8.0%", "7.0%", "6.0%", "15.0%"]
    assert swatches(picture, 100) == [labels.colors[label] for label in shown]
    assert picture.shape[0] == 180


def test_as_many_classes_as_rows_need_no_others(legend_texts: list[str]) -> None:
    labels = labels_of(None, 8)
    label_overlay(np.zeros((180, 16, 3), np.uint8), stripes([2] * 8, 180), labels.names, labels.colors)
    assert legend_texts[:8] == list(labels.names)


def test_a_small_photograph_gets_six_rows_and_white_below(legend_texts: list[str]) -> None:
    labels = labels_of(None, 7)
    picture = label_overlay(np.zeros((4, 7, 3), np.uint8), stripes([1] * 7, 4), labels.names, labels.colors)
    assert legend_texts[:6] == [*labels.names[:5], "2 others"]
    assert picture.shape[0] == 2 * 12 + 6 * 19
    assert (picture[4:, :7] == 255).all()


def test_one_pixel() -> None:
    picture = label_overlay(np.zeros((1, 1, 3), np.uint8), np.zeros((1, 1), int), NAMES, COLORS, 1)
    assert picture[0, 0].tolist() == list(COLORS[0])
    assert swatches(picture, 1) == [COLORS[0]]


def test_a_share_that_rounds_to_nothing_is_not_called_nothing(legend_texts: list[str]) -> None:
    labels = np.zeros((200, 200), int)
    labels[0, 0] = 1
    label_overlay(np.zeros((200, 200, 3), np.uint8), labels, NAMES, COLORS)
    assert legend_texts == ["road", "sky", "100.0%", "<0.1%"]


def test_the_legend_grows_with_the_photograph() -> None:
    small, large = (
        label_overlay(np.zeros((side, side, 3), np.uint8), np.zeros((side, side), int), NAMES, COLORS)
        for side in (384, 1536)
    )
    assert large.shape[1] - 1536 == pytest.approx(4 * (small.shape[1] - 384), rel=0.05)


PHOTO, LABELS = np.zeros((4, 5, 3), np.uint8), np.zeros((4, 5), int)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: colorize_labels(LABELS + 3, COLORS), r"labels must lie in 0\.\.2, got 3 to 3"),
        (lambda: colorize_labels(LABELS - 1, COLORS), r"labels must lie in 0\.\.2, got -1 to -1"),
        (lambda: colorize_labels(LABELS * 1.0, COLORS), r"labels must be integers \[H, W\], got float64 \[4, 5\]"),
        (lambda: colorize_labels(LABELS[0], COLORS), r"labels must be integers \[H, W\], got int64 \[5\]"),
        (lambda: colorize_labels(LABELS, [(0, 0, 256)]), r"colors must lie in 0\.\.255, got 0 to 256"),
        (lambda: colorize_labels(LABELS, [(0, 0)]), r"colors must be integers \[classes, 3\], got int64 \[1, 2\]"),
        (lambda: colorize_labels(LABELS, []), r"colors must be integers \[classes, 3\], got float64 \[0\]"),
        (
            lambda: label_overlay(PHOTO, LABELS.T, NAMES, COLORS),
            r"labels must have shape \[4, 5\], got \[5, 4\]",
        ),
        (
            lambda: label_overlay(PHOTO / 255, LABELS, NAMES, COLORS),
            r"photo must be uint8 \[H, W, 3\], got float64",
        ),
        (lambda: label_overlay(PHOTO, LABELS, NAMES[1:], COLORS), "names must be as many as colors, 3, got 2"),
        (lambda: label_overlay(PHOTO, LABELS, NAMES, COLORS, -1), r"opacity must lie in 0\.\.1, got -1"),
    ],
)
def test_bad_input_is_one_clear_error(draw: Callable[[], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
