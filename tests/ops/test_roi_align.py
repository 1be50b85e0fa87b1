"""RoIAlign against the NumPy reference, sample by sample."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.roi_align import roi_align, roi_levels
from tests.reference import detection as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

STRIDES = (2, 4)
BOXES = np.array(
    [
        [3.2, 4.1, 20.7, 15.3],
        [0, 0, 70, 61],
        [-9.3, -7.2, 4, 5],  # partly far outside
        [60, 50, 90, 80],
        [0, 30, 70, 31.5],  # long and thin: several tiles, one sample down
        [10, 2, 11, 60],
        [5, 5, 5, 20],  # without a side
        [12, 12, 12.3, 12.2],
        [-300, -300, -200, -200],
        [68.9, 59, 69.9, 60],
        [0, 0, 0, 0],
    ],
    np.float32,
)
run = jax.jit(roi_align, static_argnums=(3, 4))


@pytest.mark.parametrize("bins", [7, 2])
@pytest.mark.parametrize("grids", [((30, 35), (15, 18)), ((3, 40), (2, 1))])
def test_bins_are_means_of_samples(bins: int, grids: tuple[tuple[int, int], tuple[int, int]]) -> None:
    """Maps larger and smaller than what is read at once, boxes inside, across and outside of them."""
    random = np.random.default_rng(0)
    maps = [random.normal(size=(*grid, 3)).astype(np.float32) for grid in grids]
    levels = random.integers(0, 2, len(BOXES)).astype(np.int32)
    found = run(tuple(map(jnp.asarray, maps)), jnp.asarray(BOXES), jnp.asarray(levels), STRIDES, bins)
    for box, level, got in zip(BOXES, levels, found, strict=True):
        expected = reference.roi_align(maps[level].astype(np.float64), box, STRIDES[level], bins)
        np.testing.assert_allclose(got, expected, atol=2e-5)


@pytest.mark.parametrize("seed", range(3))
def test_random_boxes_on_a_map_of_many_tiles(seed: int) -> None:
    random = np.random.default_rng(seed)
    image = random.normal(size=(41, 53, 2)).astype(np.float32)
    corners = random.uniform(-3, 56, (30, 2, 2))
    corners.sort(axis=1)
    boxes = corners.reshape(30, 4).astype(np.float32)
    found = run((jnp.asarray(image),), jnp.asarray(boxes), jnp.zeros(30, jnp.int32), (1,), 7)
    for box, got in zip(boxes, found, strict=True):
        np.testing.assert_allclose(got, reference.roi_align(image.astype(np.float64), box, 1, 7), atol=5e-5)


def test_the_type_of_the_maps_is_kept() -> None:
    image = jnp.asarray(np.random.default_rng(0).normal(size=(20, 20, 4)), jnp.bfloat16)
    levels = jnp.zeros(len(BOXES), jnp.int32)
    found = run((image,), jnp.asarray(BOXES), levels, (4,), 7)
    assert found.dtype == jnp.bfloat16
    exact = run((image.astype(jnp.float32),), jnp.asarray(BOXES), levels, (4,), 7)
    np.testing.assert_allclose(found.astype(np.float32), exact, atol=0.05)


def test_the_level_follows_the_area() -> None:
    sides = np.array([1, 111.9, 112, 223, 224, 447, 448, 3000], np.float32)
    boxes = np.stack([sides * 0, sides * 0, sides * 2, sides / 2], axis=-1)
    np.testing.assert_array_equal(roi_levels(jnp.asarray(boxes), 4), [0, 0, 1, 1, 2, 2, 3, 3])
