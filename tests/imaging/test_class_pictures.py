"""The picture of a classifier's guesses."""

import numpy as np
import pytest

from hourglass_jax.imaging.class_pictures import BAR, class_overlay

GUESSES = [("golden retriever", 0.75), ("a", 0.25), ("b", 0.0)]


def photo(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_bars_are_as_long_as_classes_are_probable() -> None:
    image = photo(200, 480)
    picture = class_overlay(image, GUESSES)
    assert (picture.dtype, picture.shape[1:]) == (np.uint8, (480, 3))
    np.testing.assert_array_equal(picture[:200], image)
    below = (picture[200:] == BAR).all(axis=-1).sum(axis=1)
    longest = [int(each.max()) for each in np.array_split(below[10:], 3)]
    margins = 2 * 10
    for length, (_, probability) in zip(longest, GUESSES, strict=True):
        assert length == pytest.approx((480 - margins) * probability, abs=2)
    assert len(np.unique(picture[200:].reshape(-1, 3), axis=0)) > 5


def test_small_photographs_are_enlarged() -> None:
    assert class_overlay(photo(30, 60), GUESSES).shape[1] == 240


def test_long_names_leave_room_for_the_probability() -> None:
    """The end of the row is the same as with a short name."""
    short, long = (class_overlay(photo(200, 240), [(name, 0.5)]) for name in ("a", 20 * "very long "))
    np.testing.assert_array_equal(short[:, 215:], long[:, 215:])
    assert (short != long).any()


def test_no_guesses_are_the_photograph() -> None:
    image = photo(200, 300)
    np.testing.assert_array_equal(class_overlay(image, [])[:200], image)


@pytest.mark.parametrize(
    ("image", "guesses", "message"),
    [
        (photo(9, 9)[..., 0], GUESSES, r"photo must be uint8 \[H, W, 3\]"),
        (photo(9, 9), [("cat", 1.5)], r"the probability of 'cat' must lie in 0\.\.1, got 1\.5"),
        (photo(9, 9), [("cat", float("nan"))], r"the probability of 'cat' must lie in 0\.\.1, got nan"),
    ],
)
def test_bad_input_is_one_clear_error(image: np.ndarray, guesses: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        class_overlay(image, guesses)
