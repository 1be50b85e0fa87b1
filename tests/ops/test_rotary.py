import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.grids import grid_positions
from hourglass_jax.ops.rotary import rotate, rotation
from tests.reference.rotary import Rotary

GRID, HEADS, WIDTH, SPECIAL = (3, 4), 2, 8, 2


def vectors(count: int, *, batch: int = 2) -> np.ndarray:
    """[B, heads, D, N]."""
    return np.random.default_rng(0).normal(size=(batch, HEADS, WIDTH, count)).astype(np.float32)


@pytest.mark.parametrize("is_traced", [False, True], ids=["static", "traced"])
@pytest.mark.parametrize("base", [100.0, 7.5])
def test_rotation_is_that_of_the_reference(base: float, is_traced: bool) -> None:
    """At places between those of the grid too, other ones for every image."""
    positions = np.stack([grid_positions(GRID, GRID), grid_positions(GRID, GRID)[::-1] * 0.9]).astype(np.float32)
    x = vectors(SPECIAL + 12)

    def turned(positions: np.ndarray | jax.Array, x: jax.Array) -> jax.Array:
        return rotate(x, rotation(positions, GRID, width=WIDTH, base=base, special=SPECIAL))

    found = jax.jit(turned)(positions, x) if is_traced else turned(positions, jnp.asarray(x))
    for image in range(2):
        expected = Rotary(GRID, base).turn(positions[image])(x[image].swapaxes(1, 2)).swapaxes(1, 2)
        np.testing.assert_allclose(found[image], expected, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(found[..., :SPECIAL], x[..., :SPECIAL])


def test_products_depend_on_how_far_tokens_are_apart() -> None:
    same = np.repeat(vectors(1, batch=1), 12, axis=-1)
    turned = rotate(jnp.asarray(same), rotation(grid_positions(GRID, GRID)[None], GRID, width=WIDTH, base=100.0))
    products = np.einsum("bhdn,bhdm->bhnm", turned, turned).reshape(1, HEADS, 3, 4, 3, 4)
    np.testing.assert_allclose(products[:, :, 0, 0, 1, 2], products[:, :, 1, 1, 2, 3], atol=1e-5)
    np.testing.assert_allclose(products[:, :, 0, 2, 1, 0], products[:, :, 1, 3, 2, 1], atol=1e-5)
    assert np.abs(products[:, :, 0, 0, 1, 2] - products[:, :, 0, 0, 2, 1]).max() > 1e-2


def test_static_positions_have_static_angles_and_types_are_kept() -> None:
    by = rotation(grid_positions(GRID, (2, 2))[None], GRID, width=WIDTH, base=100.0)
    assert all(isinstance(each, np.ndarray) and each.dtype == np.float32 for each in by)
    found = rotate(jnp.asarray(vectors(4), jnp.bfloat16), by)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), rotate(jnp.asarray(vectors(4)), by), atol=0.05)
