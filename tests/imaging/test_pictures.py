"""Pictures of results: exact colours where they follow from the numbers, and shapes of what is drawn by a font."""

from collections.abc import Callable

import numpy as np
import pytest

from hourglass_jax.imaging.pictures import (
    cluster_borders,
    colorize,
    comparison_picture,
    group_mosaic,
    principal_components,
    sheet,
    spotlight,
    stretch,
    text_line,
)

ENDS = {"inferno": [(0, 0, 4), (252, 255, 164)], "viridis": [(68, 1, 84), (253, 231, 37)]}


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("name", ENDS)
def test_colors_at_the_ends_and_beyond(name: str) -> None:
    low, high = ENDS[name]
    picture = colorize(np.array([[0, -3], [1, 7]]), name)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, [[low, low], [high, high]])


def test_colors_between_anchors_are_interpolated() -> None:
    """1 / 15 is the second of 16 anchors, #0c0826; half of it lies midway to the first, #000004."""
    np.testing.assert_array_equal(colorize(np.array([[1 / 15, 0.5 / 15]])), [[[12, 8, 38], [6, 4, 21]]])


@pytest.mark.parametrize("name", ENDS)
def test_colors_are_close_to_matplotlib(name: str) -> None:
    matplotlib = pytest.importorskip("matplotlib")
    values = np.linspace(0, 1, 256)[None]
    expected = matplotlib.colormaps[name](values)[..., :3] * 255
    np.testing.assert_allclose(colorize(values, name), expected, atol=7.5)


def test_a_spotlight_leaves_the_photograph_where_values_are_high_and_dark_grey_where_they_are_low() -> None:
    photo = noise(5, 6, 3)
    np.testing.assert_array_equal(spotlight(photo, np.ones((5, 6))), photo)
    grey = np.repeat(photo.mean(axis=-1, keepdims=True), 3, axis=-1)
    np.testing.assert_array_equal(spotlight(photo, np.full((5, 6), -1.0)), np.rint(0.35 * grey))


def test_a_spotlight_blends_in_proportion() -> None:
    photo = np.array([[[100, 200, 0]]], np.uint8)
    np.testing.assert_array_equal(spotlight(photo, np.array([[0.4]])), [[[61, 101, 21]]])


def test_a_spotlight_outlines_what_is_at_least_one_half() -> None:
    photo = np.zeros((1, 4, 3), np.uint8)
    values = np.array([[0.4, 0.49, 0.5, 0.6]])
    assert (spotlight(photo, values)[0, :, 0] > 0).tolist() == [False, True, False, False]


def test_groups_of_several_take_their_mean_colour_and_single_tokens_stay() -> None:
    photo = noise(4, 4, 3)
    mosaic = group_mosaic(photo, np.array([[0, 1], [2, 3]]))
    np.testing.assert_array_equal(mosaic, photo)
    whole = group_mosaic(photo, np.zeros((2, 2), int))
    np.testing.assert_array_equal(whole, np.broadcast_to(np.rint(photo.mean(axis=(0, 1))), photo.shape))


def test_principal_components_order_colours_by_variance_whatever_the_basis() -> None:
    """Two directions that vary alone: a gradient down is red, a weaker one across is green, noise is the blue."""
    down, across = np.mgrid[0:20, 0:30] / (20, 30)[0]
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    values = np.stack([20 * down**3, 2 * across**3, rng.normal(0, 0.01, (20, 30))], axis=-1)
    picture = principal_components(values @ basis[:3] + 5)
    assert picture.shape == (20, 30, 3)
    red, green = picture[..., 0].astype(int), picture[..., 1].astype(int)
    assert (np.diff(red, axis=0) >= 0).all() and np.ptp(red, axis=1).max() <= 4 and np.ptp(red) == 255
    assert (np.diff(green, axis=1) >= 0).mean() > 0.9 and np.ptp(green) == 255
    assert (principal_components(np.ones((2, 2, 5))) == 0).all()


def test_stretched_maps_keep_their_kind() -> None:
    numbers = stretch(np.array([[0, 1]], np.float32), (2, 4))
    np.testing.assert_allclose(numbers, [[0, 0.25, 0.75, 1]] * 2)
    labels = np.array([[3, 7], [1, 2]], np.uint8)
    np.testing.assert_array_equal(stretch(labels, (2, 4)), [[3, 3, 7, 7], [1, 1, 2, 2]])
    features = np.arange(12.0).reshape(2, 2, 3)
    np.testing.assert_array_equal(stretch(features, (4, 2))[::2], features)


def test_one_cluster_has_no_border() -> None:
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[:2] = 200
    picture = cluster_borders(photo, np.full((2, 2), -7), fill=0.5)
    np.testing.assert_array_equal(picture[:2], np.full((2, 4, 3), 150))
    np.testing.assert_array_equal(picture[2:], np.full((2, 4, 3), 50))


def test_clusters_get_a_light_and_a_dark_line_between_them() -> None:
    photo = np.zeros((4, 6, 3), np.uint8)
    photo[:, 3:] = 100
    picture = cluster_borders(photo, np.array([[5, 9]]))
    np.testing.assert_array_equal(picture[0, :, 0], [0, 0, 128, 70, 100, 100])
    np.testing.assert_array_equal(picture, np.broadcast_to(picture[:1, :, :1], picture.shape))
    np.testing.assert_array_equal(
        cluster_borders(photo.swapaxes(0, 1), np.array([[5], [9]])), picture.swapaxes(0, 1)
    )


def test_the_assignment_is_upsampled_to_the_nearest_token() -> None:
    """7 columns over 3 tokens: floor(x * 3 / 7) = 0 0 0 1 1 2 2."""
    photo = noise(2, 7, 3)
    picture = cluster_borders(photo, np.array([[0, 1, 2]]), fill=1)
    means = [photo[:, columns].mean((0, 1)) for columns in (slice(0, 3), slice(3, 5), slice(5, 7))]
    np.testing.assert_array_equal(picture[:, 0], np.rint([means[0]] * 2))
    np.testing.assert_array_equal(picture[:, 6], np.rint([means[2]] * 2))
    np.testing.assert_array_equal(picture[:, 3], np.rint([0.7 * means[1]] * 2))
    np.testing.assert_array_equal(picture[:, 4], np.rint([0.5 * means[1] + 127.5] * 2))


def test_borders_grow_with_the_photograph() -> None:
    picture = cluster_borders(np.zeros((1000, 1000, 3), np.uint8), np.array([[0, 1]]))
    assert np.count_nonzero(picture[0, :, 0]) == 2


@pytest.mark.parametrize("shape", [(1, 1, 3), (2, 3, 3)], ids=str)
def test_more_tokens_than_pixels(shape: tuple[int, ...]) -> None:
    assert cluster_borders(noise(*shape), np.arange(64).reshape(8, 8)).shape == shape


def test_a_sheet_is_a_grid_with_equal_heights_on_white() -> None:
    red, blue = np.zeros((2, 50, 100, 3), np.uint8)
    red[..., 0], blue[..., 2] = 255, 255
    picture = sheet([[("", red), ("", blue)], [("", red[:, :50])]], height=120)
    is_red, is_blue = ((picture == color).all(-1) for color in ((255, 0, 0), (0, 0, 255)))
    margin, gap = 8, 6
    assert picture.shape == (3 * margin + 240, 2 * margin + gap + 480, 3)
    assert picture.dtype == np.uint8
    assert is_red[8:128, 8:248].all()
    assert is_blue[8:128, 254:494].all()
    assert is_red[136:256, 8:128].all()
    assert is_red.sum() == 120 * 240 + 120 * 120
    assert (picture[~is_red & ~is_blue] == 255).all()


def test_titles_are_drawn_above_and_never_run_into_the_next_panel() -> None:
    black = np.zeros((40, 40, 3), np.uint8)
    short = sheet([[("", black), ("", black)]], height=240)
    titled = sheet(
        [[("A title that is very much wider than the picture under it\nand a caption", black), ("b", black)]],
        height=240,
    )
    assert titled.shape[0] > short.shape[0]
    assert titled.shape[1] > short.shape[1]
    left = np.flatnonzero((titled[-20] == 0).all(-1))
    panels = np.split(left, np.flatnonzero(np.diff(left) > 1) + 1)
    assert [len(panel) for panel in panels] == [240, 240]
    header = (titled[: -240 - 16] < 200).any((0, 2))
    assert header[panels[0][0] : panels[1][0] - 10].any()
    assert not header[panels[1][0] - 8 : panels[1][0]].any()
    assert header[panels[1][0] :].any()


def test_titles_that_the_font_lacks_are_spelt_in_ascii() -> None:
    black = np.zeros((40, 40, 3), np.uint8)
    np.testing.assert_array_equal(
        sheet([[("28 \N{MULTIPLICATION SIGN} 28 \N{EN DASH} caf\N{LATIN SMALL LETTER E WITH ACUTE}", black)]]),
        sheet([[("28 x 28 - cafe", black)]]),
    )


def test_a_line_of_text_has_only_letters_that_can_be_drawn() -> None:
    line = text_line("na\N{LATIN SMALL LETTER I WITH DIAERESIS}ve\t\N{CJK UNIFIED IDEOGRAPH-4E00}", 20, (0, 0, 0))
    assert line.text == "naive??"
    assert line.height == 28
    assert line.width > text_line("naive", 20, (0, 0, 0)).width


def test_a_comparison_puts_five_panels_side_by_side() -> None:
    photo = noise(90, 120, 3)
    difference = np.random.default_rng(0).random((28, 42))
    picture = comparison_picture(photo, photo, photo, difference, np.arange(6).reshape(2, 3), 1.5)
    assert picture.dtype == np.uint8
    assert picture.shape[1] == 5 * 480 + 4 * 15 + 2 * 24
    same = comparison_picture(photo, photo, photo, 0 * difference, np.arange(6).reshape(2, 3), 1.5)
    column = 24 + 3 * (480 + 15)
    assert (same[-24 - 360 : -24, column : column + 480] == (0, 0, 4)).all()


def test_a_difference_that_is_no_map_is_left_out() -> None:
    photo = noise(90, 120, 3)
    picture = comparison_picture(photo, photo, photo, np.float32(0.5), np.arange(6).reshape(2, 3), 1.5)
    assert picture.shape[1] == 4 * 480 + 3 * 15 + 2 * 24


def test_what_is_no_map_is_not_stretched() -> None:
    probabilities = np.array([0.25, 0.75])
    assert stretch(probabilities, (10, 20)) is probabilities


PHOTO = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: colorize(np.zeros((2, 2)), "jet"), "color map must be one of inferno, viridis, got 'jet'"),
        (lambda: colorize(np.zeros((2, 2, 3))), r"values must have shape \[H, W\], got \[2, 2, 3\]"),
        (lambda: colorize(np.array([[np.nan]])), "values must be finite, got NaN or infinity"),
        (lambda: spotlight(PHOTO, np.zeros((5, 4))), r"values must have shape \[4, 5\], got \[5, 4\]"),
        (lambda: spotlight(PHOTO / 255, np.zeros((4, 5))), r"photo must be uint8 \[H, W, 3\], got float64"),
        (lambda: principal_components(np.zeros((4, 5, 2))), r"of shape \[H, W, 3 or more\], got \[4, 5, 2\]"),
        (lambda: principal_components(np.full((4, 5, 3), np.nan)), "features must be finite"),
        (lambda: cluster_borders(PHOTO, np.zeros((2, 2))), r"assignment must be integers .*, got float64 \[2, 2\]"),
        (lambda: cluster_borders(PHOTO, np.zeros(4, int)), r"assignment must be integers .*, got int64 \[4\]"),
        (lambda: cluster_borders(PHOTO[..., 0], np.zeros((2, 2), int)), r"photo must be uint8 \[H, W, 3\]"),
        (lambda: sheet([]), r"panels must be rows of at least one \(title, picture\), got \[\]"),
        (lambda: sheet([[("a", PHOTO)], []]), r"panels must be rows of at least one .*, got \[1, 0\]"),
        (
            lambda: sheet([[("grey", PHOTO[..., 0])]]),
            r"picture 'grey' must be uint8 \[H, W, 3\], got uint8 \[4, 5\]",
        ),
    ],
)
def test_bad_input_is_one_clear_error(draw: Callable[[], np.ndarray], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()
