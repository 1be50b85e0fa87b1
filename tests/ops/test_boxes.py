"""Anchors, the coding of boxes and their overlap against the NumPy reference."""

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.ops.boxes import anchor_boxes, decode_boxes, overlaps
from tests.reference import detection as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_boxes(count: int, seed: int = 0, side: float = 100) -> np.ndarray:
    """Boxes in a square, a few of them without a side."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, side, (count, 2, 2))
    corners.sort(axis=1)
    boxes = corners.reshape(count, 4).astype(np.float32)
    boxes[::7, 2] = boxes[::7, 0]
    return boxes


@pytest.mark.parametrize(("grid", "stride"), [((1, 1), 4), ((3, 5), 8), ((4, 2), 64)])
def test_anchors_stand_around_the_corners_of_cells(grid: tuple[int, int], stride: int) -> None:
    np.testing.assert_allclose(anchor_boxes(grid, stride), reference.anchors(*grid, stride), rtol=1e-6)


def test_regressed_boxes_are_those_of_the_reference() -> None:
    boxes, size, stds = random_boxes(50), (80, 90), (0.1, 0.1, 0.2, 0.2)
    deltas = np.random.default_rng(1).normal(0, 5, (50, 4)).astype(np.float32)
    deltas[:4] = [[0, 0, 1e3, 1e3], [0, 0, -1e3, -1e3], [1e3, -1e3, 0, 0], [0, 0, 0, 0]]
    found = jax.jit(decode_boxes, static_argnums=2)(boxes, deltas, stds, np.array(size, np.float32))
    expected = [reference.decoded(box, delta, stds, size) for box, delta in zip(boxes, deltas, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_overlap_of_pairs(seed: int) -> None:
    a, b = random_boxes(20, seed), random_boxes(20, seed + 1)
    found = overlaps(a[:, None], b[None])
    expected = [[reference.overlap(x, y) for y in b.astype(np.float64)] for x in a.astype(np.float64)]
    np.testing.assert_allclose(found, expected, atol=1e-6)
