import math
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax import pool_tokens, unpool_tokens, upsample_tokens
from tests.reference import hourglass as reference

GRIDS = [
    ((6, 6), (3, 3)),
    ((7, 5), (3, 4)),
    ((4, 6), (5, 7)),
    ((4, 5), (4, 5)),
    ((5, 4), (1, 1)),
    ((1, 8), (1, 3)),
]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32).astype(np.float64)


def assert_agrees(operator: Callable, oracle: Callable, *arrays: np.ndarray, **grids: tuple[int, int]) -> None:
    """Float32 to 1e-5 and float64 to 1e-10, under jit."""
    expected = oracle(*arrays, **grids)
    jitted = jax.jit(lambda *arrays: operator(*arrays, **grids))
    single = jitted(*[jnp.asarray(array, jnp.float32) for array in arrays])
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, expected, rtol=1e-5, atol=1e-5)
    with jax.enable_x64(True):
        double = jitted(*[jnp.asarray(array) for array in arrays])
        assert double.dtype == jnp.float64
        np.testing.assert_allclose(double, expected, rtol=1e-10, atol=1e-10)


pool_and_upsample_examples = given(
    grids=st.sampled_from(GRIDS),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 16]),
    seed=st.integers(0, 1000),
)


@settings(max_examples=6, deadline=None, derandomize=True)
@pool_and_upsample_examples
def test_pooling_is_adaptive_averaging(
    grids: tuple[tuple[int, int], tuple[int, int]], batch: int, channels: int, seed: int
) -> None:
    tokens = normal(batch, math.prod(grids[0]), channels, seed=seed)
    assert_agrees(pool_tokens, reference.pool_tokens, tokens, token_grid=grids[0], cluster_grid=grids[1])


@settings(max_examples=6, deadline=None, derandomize=True)
@pool_and_upsample_examples
def test_upsampling_is_bilinear(
    grids: tuple[tuple[int, int], tuple[int, int]], batch: int, channels: int, seed: int
) -> None:
    clusters = normal(batch, math.prod(grids[1]), channels, seed=seed)
    assert_agrees(upsample_tokens, reference.upsample_tokens, clusters, token_grid=grids[0], cluster_grid=grids[1])


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 3),
    count=st.sampled_from([1, 6, 35]),
    channels=st.sampled_from([1, 3, 16]),
    seed=st.integers(0, 1000),
)
def test_unpooling_takes_the_nearest_cluster(batch: int, count: int, channels: int, seed: int) -> None:
    refined = normal(batch, count, 4, seed=seed)
    tokens = normal(batch, 30, channels, seed=seed + 1)
    clusters = normal(batch, count, channels, seed=seed + 2)
    assert_agrees(
        lambda refined, tokens, clusters: unpool_tokens(refined, tokens=tokens, clusters=clusters),
        lambda refined, tokens, clusters: reference.unpool_tokens(refined, tokens=tokens, clusters=clusters),
        refined,
        tokens,
        clusters,
    )


def test_pooled_cells_overlap_where_the_grid_does_not_divide() -> None:
    tokens = jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1)
    pooled = pool_tokens(tokens, token_grid=(1, 3), cluster_grid=(1, 2))
    np.testing.assert_allclose(pooled.ravel(), [1.5, 2.5], rtol=1e-6)


def test_upsampling_clamps_at_the_border() -> None:
    clusters = jnp.array([0.0, 1.0]).reshape(1, 2, 1)
    upsampled = upsample_tokens(clusters, cluster_grid=(1, 2), token_grid=(1, 4))
    np.testing.assert_allclose(upsampled.ravel(), [0.0, 0.25, 0.75, 1.0], rtol=1e-6)


def test_unpooling_prefers_the_first_of_equally_near_clusters() -> None:
    unpooled = unpool_tokens(
        jnp.array([10.0, 20.0, 30.0]).reshape(1, 3, 1),
        tokens=jnp.array([0.0, 2.0]).reshape(1, 2, 1),
        clusters=jnp.array([-1.0, 1.0, 1.0]).reshape(1, 3, 1),
    )
    np.testing.assert_array_equal(unpooled.ravel(), [10.0, 20.0])


def test_the_same_grid_changes_nothing() -> None:
    tokens = jnp.asarray(normal(2, 20, 3), jnp.float32)
    pooled = pool_tokens(tokens, token_grid=(4, 5), cluster_grid=(4, 5))
    upsampled = upsample_tokens(tokens, cluster_grid=(4, 5), token_grid=(4, 5))
    unpooled = unpool_tokens(tokens, tokens=tokens, clusters=tokens)
    for same in (pooled, upsampled, unpooled):
        chex.assert_trees_all_close(same, tokens, rtol=1e-6, atol=1e-6)


def test_constant_clusters_stay_constant() -> None:
    tokens = jnp.broadcast_to(jnp.array([0.3, -100.0]), (1, 35, 2))
    pooled = pool_tokens(tokens, token_grid=(7, 5), cluster_grid=(3, 4))
    np.testing.assert_allclose(pooled, tokens[:, :12], rtol=1e-6)
    upsampled = upsample_tokens(pooled, cluster_grid=(3, 4), token_grid=(7, 5))
    np.testing.assert_allclose(upsampled, tokens, rtol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision_is_the_rounded_float32_result(dtype: jnp.dtype) -> None:
    tokens, clusters = jnp.asarray(normal(2, 35, 3), dtype), jnp.asarray(normal(2, 12, 3), dtype)
    operators = [
        lambda tokens, clusters: pool_tokens(tokens, token_grid=(7, 5), cluster_grid=(3, 4)),
        lambda tokens, clusters: upsample_tokens(clusters, token_grid=(7, 5), cluster_grid=(3, 4)),
        lambda tokens, clusters: unpool_tokens(clusters, tokens=tokens, clusters=clusters),
    ]
    for operator in map(jax.jit, operators):
        half = operator(tokens, clusters)
        assert half.dtype == dtype
        expected = operator(tokens.astype(jnp.float32), clusters.astype(jnp.float32))
        tolerance = float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(half.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance * 1e-2)


def test_gradients_are_finite() -> None:
    def energy(tokens: jax.Array) -> jax.Array:
        pooled = pool_tokens(tokens, token_grid=(7, 5), cluster_grid=(3, 4))
        upsampled = upsample_tokens(pooled, cluster_grid=(3, 4), token_grid=(7, 5))
        return jnp.sum((upsampled + unpool_tokens(pooled, tokens=tokens, clusters=pooled)) ** 2)

    gradient = jax.jit(jax.grad(energy))(jnp.asarray(normal(2, 35, 3), jnp.float32))
    chex.assert_shape(gradient, (2, 35, 3))
    chex.assert_tree_all_finite(gradient)
    assert np.any(gradient)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("operator", "arrays", "options", "shown"),
    [
        (pool_tokens, [(12, 3)], {"token_grid": (3, 4), "cluster_grid": (2, 2)}, r"\(12, 3\)"),
        (pool_tokens, [(1, 12, 3)], {"token_grid": (3, 5), "cluster_grid": (2, 2)}, r"\b12\b"),
        (pool_tokens, [(1, 12, 3)], {"token_grid": (3, 4), "cluster_grid": (2, 0)}, r"\b2, 0\b"),
        (upsample_tokens, [(4, 3)], {"token_grid": (3, 4), "cluster_grid": (2, 2)}, r"\(4, 3\)"),
        (upsample_tokens, [(1, 4, 3)], {"token_grid": (3, 4), "cluster_grid": (2, 3)}, r"\b4\b"),
        (upsample_tokens, [(1, 4, 3)], {"token_grid": (-3, 4), "cluster_grid": (2, 2)}, r"-3, 4\b"),
    ],
)
def test_bad_grid_is_named(operator: Callable, arrays: list, options: dict, shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        operator(*map(jnp.zeros, arrays), **options)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"tokens": jnp.zeros((12, 3))}, r"\(12, 3\)"),
        ({"refined": jnp.zeros((2, 6, 5))}, r"\b6\b"),
        ({"refined": jnp.zeros((1, 4, 5))}, r"\b1\b"),
        ({"clusters": jnp.zeros((2, 4, 7))}, r"\b7\b"),
    ],
)
def test_bad_shape_of_unpooling_is_named(wrong: dict, shown: str) -> None:
    arguments = {
        "refined": jnp.zeros((2, 4, 5)),
        "tokens": jnp.zeros((2, 12, 3)),
        "clusters": jnp.zeros((2, 4, 3)),
    }
    with pytest.raises(ValueError, match=shown):
        unpool_tokens(**(arguments | wrong))
