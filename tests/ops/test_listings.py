"""The two layers against Listings 1 and 2 of the paper, and where these differ from equations 2 to 4."""

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from hourglass_jax import cluster_tokens, reconstruct_tokens
from tests.reference import hourglass as equations
from tests.reference import listings

TOKEN_GRID, CLUSTER_GRID, ITERATIONS, TAU, NEIGHBORS = (6, 4), (3, 2), 2, 8.0, 3


@jax.jit
def cluster(tokens: jax.Array) -> jax.Array:
    return cluster_tokens(
        tokens,
        token_grid=TOKEN_GRID,
        cluster_grid=CLUSTER_GRID,
        window=3,
        iterations=ITERATIONS,
        temperature=TAU,
    )


@jax.jit
def reconstruct(refined: jax.Array, tokens: jax.Array, clusters: jax.Array) -> jax.Array:
    return reconstruct_tokens(refined, tokens=tokens, clusters=clusters, neighbors=NEIGHBORS, temperature=TAU)


def normal(count: int, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=(2, count, 5)), jnp.float32)


def listing_1(tokens: jax.Array, centers: ArrayLike) -> np.ndarray:
    candidates = equations.candidates_of_tokens(TOKEN_GRID, CLUSTER_GRID, 3)
    mask = np.array([[i in near for near in candidates] for i in range(6)])
    assert not mask.all()
    return listings.token_clustering_layer(tokens, centers, mask, num_iters=ITERATIONS, teu=TAU)


def test_clusters_are_those_of_listing_1_with_averages_for_its_interpolation() -> None:
    tokens = normal(24)
    averages = equations.pool_tokens(tokens, token_grid=TOKEN_GRID, cluster_grid=CLUSTER_GRID)
    np.testing.assert_allclose(cluster(tokens), listing_1(tokens, averages), rtol=1e-5, atol=1e-5)


def test_pytorchs_default_interpolation_makes_other_clusters_than_equation_2() -> None:
    """`interpolate` takes the nearest token unless it is told otherwise; equation 2 averages."""
    tokens = normal(24)
    nearest = tokens.reshape(2, *TOKEN_GRID, 5)[:, ::2, ::2].reshape(2, 6, 5)
    assert np.abs(cluster(tokens) - listing_1(tokens, nearest)).max() > 0.01


def test_listing_1_divides_by_a_clusters_weights_where_equation_3_does_not() -> None:
    """Equal tokens are their own clusters: without the division a cluster would be as many times as large."""
    tokens, ones = jnp.ones((2, 24, 5)), np.ones((2, 6, 5))
    np.testing.assert_allclose(listing_1(tokens, ones), ones)
    np.testing.assert_allclose(cluster(tokens), ones, rtol=1e-6)


def test_tokens_are_those_of_listing_2_at_one_over_tau() -> None:
    tokens, clusters, refined = normal(24), normal(6, seed=1), normal(6, seed=2)
    clusters = clusters.at[:, 3].set(clusters[:, 2])  # where these two are third and fourth, all four remain
    found = reconstruct(refined, tokens, clusters)
    expected = listings.token_reconstruction_layer(refined, tokens, clusters, k=NEIGHBORS, teu=1 / TAU)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    multiplied = listings.token_reconstruction_layer(refined, tokens, clusters, k=NEIGHBORS, teu=TAU)
    assert np.abs(found - multiplied).max() > 0.01


def test_listing_2_loses_tokens_far_from_all_clusters_and_equation_4_does_not() -> None:
    """At 40 tau and more all weights of the listing are less than the 1e-16 that it divides by at least."""
    tokens, clusters, refined = normal(24) + 20, normal(6, seed=1), normal(6, seed=2)
    listed = listings.token_reconstruction_layer(refined, tokens, clusters, k=NEIGHBORS, teu=1 / TAU)
    assert np.abs(listed).max() < 0.05
    found = reconstruct(refined, tokens, clusters)
    expected = equations.reconstruct_tokens(
        refined, tokens=tokens, clusters=clusters, neighbors=NEIGHBORS, temperature=TAU
    )
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    assert np.linalg.norm(found, axis=-1).min() > 0.01
