"""The k-th smallest value against sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.kth_smallest import kth_smallest

KINDS = {
    "spread": lambda random: random.exponential(size=(2, 50, 7)),
    "tied": lambda random: random.integers(0, 4, (2, 50, 7)).astype(float),
    "tiny and huge": lambda random: 10.0 ** random.integers(-38, 38, (2, 50, 7)),
    "zero": lambda random: np.zeros((2, 50, 7)),
}


@pytest.mark.parametrize("k", [1, 2, 20, 50])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_kth_of_the_sorted_values(kind: str, k: int) -> None:
    values = KINDS[kind](np.random.default_rng(k)).astype(np.float32)
    low, high = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    found = jax.jit(kth_smallest, static_argnums=1)(jnp.asarray(values), k, low, high)
    np.testing.assert_array_equal(found, np.sort(values, axis=1)[:, k - 1 : k])


def test_values_beyond_the_limit_are_not_searched() -> None:
    values = jnp.arange(10.0).reshape(1, 10, 1)
    low, high = jnp.zeros((1, 1, 1)), jnp.full((1, 1, 1), 4.5)
    assert kth_smallest(values, 3, low, high).item() == 2
    assert kth_smallest(values, 8, low, high).item() == 4.5


def test_no_gradient_goes_through_it() -> None:
    values = jnp.arange(1.0, 11.0).reshape(1, 10, 1)
    low, high = values[:, :1], values[:, -1:]
    assert not jax.grad(lambda values: kth_smallest(values, 3, low, high).sum())(values).any()
