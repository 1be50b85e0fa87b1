"""Sliding windows, against windows that are upsampled one by one, added up and divided."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.imaging.windows import Layout, SlidingWindow, merge, whole_view
from hourglass_jax.ops.resize import resize_matrix

PATCH = 4


def first_channel(values):
    return values[..., 0]


def both_channels(values):
    return values


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    rows, columns = (resize_matrix(old, new, "bilinear") for old, new in zip(image.shape[:2], size, strict=True))
    return np.einsum("yh,hwc,xw->yxc", rows, image, columns)


def merged_one_by_one(maps: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
    """The definition: every map upsampled to its padded view and cropped, added in its place, averaged, resized."""
    total, count = np.zeros((*layout.image, maps.shape[-1])), np.zeros((*layout.image, 1))
    height, width = layout.view
    views = [(top, left) for top in layout.tops for left in layout.lefts]
    for each, (top, left) in zip(maps, views, strict=True):
        upsampled = resized(each, (each.shape[0] * PATCH, each.shape[1] * PATCH))
        total[top : top + height, left : left + width] += upsampled[:height, :width]
        count[top : top + height, left : left + width] += 1
    return resized(total / count, size)


def random_maps(layout: Layout, channels: int = 2) -> np.ndarray:
    h, w = (-(-side // PATCH) for side in layout.view)
    count = len(layout.tops) * len(layout.lefts)
    return np.random.default_rng(0).normal(size=(count, h, w, channels)).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(
    rows=st.integers(10, 60),
    columns=st.integers(10, 60),
    window=st.integers(8, 24),
    overlap=st.integers(0, 12),
    size=st.tuples(st.integers(1, 70), st.integers(1, 70)),
)
def test_merging_is_averaging(rows: int, columns: int, window: int, overlap: int, size: tuple[int, int]) -> None:
    sliding = SlidingWindow(window, max(1, window - overlap))
    _, layout = sliding.cut(np.zeros((rows, columns, 3), np.float32))
    maps = random_maps(layout)
    expected = merged_one_by_one(maps, layout, size)
    found = merge(maps, layout, size, cell=PATCH, decide=first_channel)
    np.testing.assert_allclose(found, expected[..., 0], atol=2e-5)


def test_tiles_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hourglass_jax.imaging.windows.TILE", 7)
    _, layout = whole_view(np.zeros((22, 17, 3), np.float32))
    maps = random_maps(layout)
    found = merge(maps, layout, (29, 14), cell=PATCH, decide=both_channels)
    np.testing.assert_allclose(found, merged_one_by_one(maps, layout, (29, 14)), atol=2e-5)


@pytest.mark.parametrize(
    ("rows", "columns", "tops", "lefts"),
    [
        (10, 10, (0,), (0,)),
        (10, 25, (0,), (0, 6, 12, 15)),
        (22, 23, (0, 6, 12), (0, 6, 12, 13)),
        (11, 16, (0, 1), (0, 6)),
    ],
)
def test_anchors_are_a_stride_apart_and_the_last_ends_with_the_image(
    rows: int, columns: int, tops: tuple[int, ...], lefts: tuple[int, ...]
) -> None:
    image = np.random.default_rng(0).random((rows, columns, 3))
    views, layout = SlidingWindow(10, 6).cut(image)
    assert layout == Layout((rows, columns), (10, 10), tops, lefts)
    places = [(y, x) for y in tops for x in lefts]
    for view, (y, x) in zip(views, places, strict=True):
        np.testing.assert_array_equal(view, image[y : y + 10, x : x + 10])


@pytest.mark.parametrize(
    ("size", "enlarged"), [((4, 6), (10, 15)), ((7, 5), (14, 10)), ((9, 31), (10, 34)), ((1, 1), (10, 10))]
)
def test_small_images_are_enlarged_to_the_window(size: tuple[int, int], enlarged: tuple[int, int]) -> None:
    image = np.random.default_rng(0).random((*size, 3)).astype(np.float32)
    views, layout = SlidingWindow(10, 10).cut(image)
    assert layout.image == enlarged
    np.testing.assert_allclose(views[0], resized(image, enlarged)[:10, :10], atol=1e-6)


def test_a_whole_view_is_the_image() -> None:
    image = np.random.default_rng(0).random((5, 9, 3))
    views, layout = whole_view(image)
    np.testing.assert_array_equal(views, image[None])
    assert layout == Layout((5, 9), (5, 9), (0,), (0,))


def test_a_whole_view_is_filled_up_on_the_right_and_below() -> None:
    image = np.random.default_rng(0).random((5, 8, 3))
    [view], layout = whole_view(image, 4)
    np.testing.assert_array_equal(view[:5, :8], image)
    assert not view[5:].any()
    assert layout == Layout((5, 8), (8, 8), (0,), (0,))


@pytest.mark.parametrize(("size", "stride"), [(10, 11), (10, 0), (0, 0)])
def test_windows_leave_no_gaps(size: int, stride: int) -> None:
    with pytest.raises(ValueError, match=rf"stride must lie in 1\.\.size, got stride {stride} and size {size}"):
        SlidingWindow(size, stride)


@settings(max_examples=50, deadline=None)
@given(length=st.integers(1, 400), window=st.integers(1, 60))
def test_windows_without_a_stride_are_as_few_as_cover_the_image_and_evenly_spread(length: int, window: int) -> None:
    image = np.zeros((window, max(length, window), 1), np.float32)
    views, layout = SlidingWindow(window, None).cut(image)
    starts = np.array(layout.lefts)
    assert len(views) == len(starts) == -(-image.shape[1] // window)
    assert (layout.tops, starts[0], starts[-1] + window) == ((0,), 0, image.shape[1])
    apart = np.diff(starts)
    assert np.ptp(apart) <= 1 if len(apart) else True
    assert (apart <= window).all()
