"""Deformable attention's sampling against the NumPy reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.ops.deformable_attention import sample_values
from tests.reference.deformable_attention import sample_values as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

sides = st.integers(1, 5)


def random_case(
    grids: list[tuple[int, int]], batch: int, queries: int, heads: int, points: int, seed: int
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    values = [random.normal(size=(batch, *grid, heads, 3)).astype(np.float32) for grid in grids]
    shape = (batch, queries, heads, len(grids), points)
    # A third of the places lie outside of the maps, some of them far away.
    locations = random.normal(0.5, 0.6, size=(*shape, 2)).astype(np.float32)
    return values, locations, random.uniform(-1, 1, size=shape).astype(np.float32)


@settings(max_examples=10, deadline=None)
@given(
    grids=st.lists(st.tuples(sides, sides), min_size=1, max_size=3),
    batch=st.integers(1, 2),
    queries=st.integers(1, 6),
    heads=st.integers(1, 3),
    points=st.integers(1, 3),
    seed=st.integers(0, 1000),
)
def test_values_are_those_of_the_reference(
    grids: list[tuple[int, int]], batch: int, queries: int, heads: int, points: int, seed: int
) -> None:
    case = random_case(grids, batch, queries, heads, points, seed)
    np.testing.assert_allclose(jax.jit(sample_values)(*case), reference(*case), rtol=0, atol=1e-5)


def test_positions_are_read_as_they_are_and_nothing_beyond_them() -> None:
    image = jnp.arange(12.0).reshape(1, 3, 4, 1, 1) + 1
    columns, rows = jnp.meshgrid((jnp.arange(-1, 5) + 0.5) / 4, (jnp.arange(-1, 4) + 0.5) / 3)
    locations = jnp.stack([columns, rows], axis=-1).reshape(1, 30, 1, 1, 1, 2)
    found = sample_values([image], locations, jnp.ones((1, 30, 1, 1, 1)))
    np.testing.assert_allclose(found.reshape(5, 6), np.pad(np.asarray(image[0, :, :, 0, 0]), 1), atol=1e-5)


def test_the_type_of_the_values_is_kept() -> None:
    values, locations, weights = random_case([(3, 4)], 1, 5, 2, 2, seed=0)
    found = sample_values([jnp.asarray(values[0], jnp.bfloat16)], locations, weights)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(np.float32), reference(values, locations, weights), atol=0.05)
