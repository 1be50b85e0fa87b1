import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.adaptive_clustering import clustered_attention, group_queries
from hourglass_jax.ops.attention import attention
from tests.reference.plans import hash_groups


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("hashes", "bucket", "scale", "prototypes"),
    [(32, 8.0, 1.0, 40), (5, 1.0, 1.0, 40), (32, 0.5, 3.0, 40), (32, 0.05, 10.0, 8), (12, 2.0, 2.0, 3)],
)
def test_groups_are_the_reference(hashes: int, bucket: float, scale: float, prototypes: int) -> None:
    """Among them hashes of far more than two bits, which carry into the next, and more codes than rows."""
    query = scale * normal(2, 3, 16, 40)
    groups = jax.jit(functools.partial(group_queries, prototypes=prototypes, hashes=hashes, bucket=bucket, seed=5))
    random = np.random.default_rng(5)
    directions = random.standard_normal((hashes, 16), np.float32)
    bias = random.random((hashes, 1), np.float32)
    found = np.asarray(groups(query))
    for image in range(2):
        for head in range(3):
            expected = hash_groups(np.float64(query[image, head].T), directions, bias, bucket, prototypes)
            np.testing.assert_array_equal(found[image, head], expected)
    assert 1 < len(np.unique(found)) <= prototypes


def test_a_row_for_every_query_is_attention() -> None:
    query, key, value = (jnp.asarray(normal(2, 2, 16, 20, seed=seed)) for seed in range(3))
    shared = jax.jit(functools.partial(clustered_attention, prototypes=20, bucket=1e-3))(query, key, value)
    np.testing.assert_allclose(shared, attention(query, key, value), rtol=0, atol=1e-5)
