"""Depth in 16 bits and in colours."""

import numpy as np
import pytest

from hourglass_jax.imaging.depth_pictures import depth_in_16_bits, depth_picture, sixteen_bit_unit
from hourglass_jax.imaging.pictures import colorize

RAMP = np.linspace(1, 9, 60 * 80, dtype=np.float32).reshape(60, 80)


@pytest.mark.parametrize(
    ("farthest", "steps"), [(7.3, 1000), (20.0, 1000), (65.0, 1000), (80.0, 256), (172.7, 256)]
)
def test_metres_in_steps_of_the_data_sets(farthest: float, steps: int) -> None:
    """Millimetres as long as they fit, as NYUv2's files; then KITTI's 256 steps to a metre."""
    found = depth_in_16_bits(RAMP, farthest)
    np.testing.assert_array_equal(found, np.rint(RAMP * steps))
    assert found.dtype == np.uint16
    assert sixteen_bit_unit(farthest) == ("millimetres" if steps == 1000 else "metres times 256")


def test_out_of_range_depth_is_clipped() -> None:
    np.testing.assert_array_equal(depth_in_16_bits(np.array([[-1.0, 500.0]]), 80.0), [[0, 65535]])


def test_relative_inverse_depth_fills_the_range() -> None:
    found = depth_in_16_bits(RAMP, None)
    np.testing.assert_array_equal(found, np.rint((RAMP - 1) * (65535 / 8)))
    np.testing.assert_array_equal(depth_in_16_bits(np.full((2, 2), 3.0), None), np.zeros((2, 2)))
    assert "0" in sixteen_bit_unit(None) and "65535" in sixteen_bit_unit(None)


@pytest.mark.parametrize("is_metric", [True, False])
def test_the_nearest_is_light_and_a_bar_tells_the_colours(is_metric: bool) -> None:
    picture = depth_picture(RAMP, is_metric)
    share = (RAMP - 1) / 8
    np.testing.assert_array_equal(picture[:60, :80], colorize(1 - share if is_metric else share))
    right = picture[:, 80:]
    light, dark = (
        np.abs(right.astype(int) - color).sum(axis=2) < 30 for color in colorize(np.array([[1.0, 0.0]]))[0]
    )
    assert np.nonzero(light)[0].mean() < np.nonzero(dark)[0].mean()
    assert (right == 255).all(axis=2).mean() > 0.3


def test_a_constant_map_and_a_tiny_one() -> None:
    for depth in (np.full((30, 40), 2.5, np.float32), np.ones((1, 1), np.float32)):
        picture = depth_picture(depth, True)
        assert picture.shape[0] >= depth.shape[0] and picture.shape[1] > depth.shape[1]


def test_what_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="finite"):
        depth_picture(np.full((4, 4), np.inf, np.float32), True)
