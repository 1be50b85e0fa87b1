"""Windows of feature maps against loops over their tokens."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.ops.windows import merge, partition, relative_positions, shifted_regions, window_grid

SIDES = st.integers(1, 9)


def numbered(height: int, width: int) -> np.ndarray:
    """Two images whose tokens are all different, and none zero."""
    return np.arange(1, 2 * height * width * 3 + 1, dtype=np.float32).reshape(2, height, width, 3)


@settings(max_examples=8, deadline=None)
@given(SIDES, SIDES, st.integers(1, 5), st.data())
def test_windows_hold_the_rolled_map_and_give_it_back(
    height: int, width: int, window: int, data: st.DataObject
) -> None:
    shift = data.draw(st.integers(0, window - 1))
    image = numbered(height, width)
    down, across = window_grid((height, width), window)
    windows = np.asarray(partition(jnp.asarray(image), window, shift))
    assert windows.shape == (2 * down * across, window**2, 3)
    for b, row, column, i, j in np.ndindex(2, down, across, window, window):
        y = (row * window + i + shift) % (down * window)
        x = (column * window + j + shift) % (across * window)
        expected = image[b, y, x] if y < height and x < width else np.zeros(3)
        np.testing.assert_array_equal(windows[(b * down + row) * across + column, i * window + j], expected)
    np.testing.assert_array_equal(merge(jnp.asarray(windows), (height, width), window, shift), image)


@pytest.mark.parametrize(("grid", "window", "shift"), [((8, 8), 4, 2), ((7, 10), 3, 1), ((2, 3), 4, 2)])
def test_tokens_mix_only_with_those_that_were_their_neighbours(
    grid: tuple[int, int], window: int, shift: int
) -> None:
    """Two tokens of a window are of one region where the roll has not brought one of them there alone."""
    regions = shifted_regions(grid, window, shift)
    down, across = window_grid(grid, window)
    rolled_down, rolled_right = ([place >= count * window - shift for place in range(count * window)]
                                 for count in (down, across))  # fmt: skip
    for row, column in np.ndindex(down, across):
        places = [(row * window + i, column * window + j) for i in range(window) for j in range(window)]
        sides = [(rolled_down[y], rolled_right[x]) for y, x in places]
        found = regions[row * across + column]
        for p, q in np.ndindex(len(places), len(places)):
            assert (found[p] == found[q]) == (sides[p] == sides[q])


@pytest.mark.parametrize("window", [1, 2, 5])
def test_relative_positions_number_the_offsets(window: int) -> None:
    found = relative_positions(window)
    places = list(np.ndindex(window, window))
    for p, (y, x) in enumerate(places):
        for q, (other_y, other_x) in enumerate(places):
            row, column = divmod(int(found[p, q]), 2 * window - 1)
            assert (row - window + 1, column - window + 1) == (y - other_y, x - other_x)
