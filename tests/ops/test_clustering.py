import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from hourglass_jax import auto_temperature, cluster_tokens
from tests.reference import hourglass as reference

GRIDS = [
    ((6, 6), (3, 3)),
    ((7, 5), (3, 4)),
    ((4, 6), (5, 7)),
    ((4, 5), (4, 5)),
    ((5, 4), (1, 1)),
    ((1, 8), (1, 3)),
    ((3, 3), (10, 2)),
    ((2, 16), (1, 14)),
    ((12, 11), (9, 10)),
]
PRECISIONS = [(np.float32, 1e-5), (np.float64, 1e-10)]
OPTIONS = ("token_grid", "cluster_grid", "window", "iterations", "temperature", "representative")
SMALL = {"token_grid": (6, 5), "cluster_grid": (3, 2), "window": 3, "iterations": 3}


def energy_of_clusters(tokens: jax.Array, **options: object) -> jax.Array:
    return jnp.sum(cluster_tokens(tokens, **options) ** 2)


cluster_jitted = jax.jit(cluster_tokens, static_argnames=OPTIONS)
gradient_of_energy = jax.jit(jax.grad(energy_of_clusters), static_argnames=OPTIONS)
representatives = pytest.mark.parametrize("representative", ["mean", "medoid"])


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    grids=st.sampled_from(GRIDS),
    batch=st.integers(1, 3),
    channels=st.sampled_from([1, 3, 16]),
    window=st.sampled_from([1, 3, 5]),
    iterations=st.sampled_from([0, 1, 5]),
    temperature=st.sampled_from(["auto", 1.0, 5.0, 50.0]),
    representative=st.sampled_from(["mean", "medoid"]),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 1000),
)
def test_clusters_are_those_of_equations_2_and_3(
    grids: tuple[tuple[int, int], tuple[int, int]],
    batch: int,
    channels: int,
    window: int,
    iterations: int,
    temperature: float | str,
    representative: str,
    precision: tuple[type, float],
    seed: int,
) -> None:
    # The average of two tokens is equally near to both: rounding would choose the medoid.
    assume(representative == "mean" or (window > 1 and iterations > 0))
    values = (*grids, window, iterations, temperature, representative)
    options = dict(zip(OPTIONS, values, strict=True))
    dtype, tolerance = precision
    tokens = normal(batch, math.prod(grids[0]), channels, seed=seed).astype(dtype)
    with jax.enable_x64(dtype is np.float64):
        clusters = cluster_jitted(tokens, **options)
    assert clusters.dtype == dtype
    expected = reference.cluster_tokens(tokens, **options)
    np.testing.assert_allclose(clusters, expected, rtol=tolerance, atol=tolerance)


def test_one_iteration_computed_by_hand() -> None:
    """Centres 1 and 3: the squared distances of the outer tokens differ by 8, so the weights are 3 to 1."""
    tokens = jnp.array([0.0, 2.0, 2.0, 4.0]).reshape(1, 4, 1)
    clusters = cluster_jitted(
        tokens, token_grid=(1, 4), cluster_grid=(1, 2), iterations=1, temperature=8 / math.log(3)
    )
    np.testing.assert_allclose(clusters.ravel(), [1.5, 2.5], rtol=1e-6)


def test_medoid_is_the_first_of_equally_near_tokens() -> None:
    tokens = jnp.array([0.0, 2.0, 2.0, 4.0]).reshape(1, 4, 1)
    clusters = cluster_jitted(tokens, token_grid=(1, 4), cluster_grid=(1, 2), iterations=0, representative="medoid")
    np.testing.assert_array_equal(clusters.ravel(), [0.0, 2.0])


def test_home_cell_is_rounded_to_float32() -> None:
    """Row 22 of 44 belongs to cell 13 of 26 in exact arithmetic and to cell 12 in PyTorch."""
    rows = jnp.arange(44.0).reshape(1, 44, 1)
    clusters = cluster_jitted(rows, token_grid=(44, 1), cluster_grid=(26, 1), window=1, iterations=1)
    np.testing.assert_allclose(clusters[0, 12:14, 0], [21.5, 23.0], rtol=1e-6)


@representatives
def test_medoids_are_real_tokens_and_means_are_not(representative: str) -> None:
    tokens = normal(16, 30, 4).astype(np.float32)
    clusters = np.asarray(cluster_jitted(jnp.asarray(tokens), representative=representative, **SMALL))
    is_token = (clusters[:, :, None] == tokens[:, None]).all(-1).any(-1)
    np.testing.assert_array_equal(is_token, representative == "medoid")


def test_a_token_changes_only_the_clusters_within_reach() -> None:
    """Token 0 moves centre (0, 0), which moves the weights of tokens with home up to (1, 1)."""
    tokens = jnp.asarray(normal(1, 144, 4), jnp.float32)
    cluster = functools.partial(cluster_jitted, token_grid=(12, 12), cluster_grid=(8, 8), window=3, iterations=1)
    difference = cluster(tokens.at[0, 0].add(5.0)) - cluster(tokens)
    changed = (np.abs(difference) > 1e-5).any(-1).reshape(8, 8)
    row, column = np.indices((8, 8))
    np.testing.assert_array_equal(changed, (row <= 2) & (column <= 2))


def test_window_of_one_averages_each_home_cell() -> None:
    tokens = normal(1, 36, 4)
    clusters = cluster_jitted(
        jnp.asarray(tokens, jnp.float32), token_grid=(6, 6), cluster_grid=(3, 3), window=1, iterations=3
    )
    cells = tokens.reshape(3, 2, 3, 2, 4).mean((1, 3)).reshape(1, 9, 4)
    np.testing.assert_allclose(clusters, cells, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("temperature", "representative"), [("auto", "mean"), (1e-3, "medoid")])
@pytest.mark.parametrize("cluster_grid", [(6, 5), (8, 7)])
def test_constant_image_gives_constant_clusters(
    cluster_grid: tuple[int, int], temperature: float | str, representative: str
) -> None:
    vector = jnp.array([0.3, -100.0, 7.0])
    clusters = cluster_jitted(
        jnp.broadcast_to(vector, (1, 30, 3)),
        token_grid=(6, 5),
        cluster_grid=cluster_grid,
        window=5,
        iterations=2,
        temperature=temperature,
        representative=representative,
    )
    expected = np.broadcast_to(vector, (1, math.prod(cluster_grid), 3))
    np.testing.assert_allclose(clusters, expected, rtol=1e-6)


def test_one_cluster_is_the_mean_of_all_tokens() -> None:
    tokens = normal(2, 30, 4)
    clusters = cluster_jitted(jnp.asarray(tokens, jnp.float32), token_grid=(6, 5), cluster_grid=(1, 1))
    np.testing.assert_allclose(clusters, tokens.mean(1, keepdims=True), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("iterations", "temperature"), [(0, 50.0), (5, 1e-3)])
def test_as_many_clusters_as_tokens_are_the_tokens(iterations: int, temperature: float) -> None:
    tokens = jnp.asarray(normal(2, 30, 4), jnp.float32)
    clusters = cluster_jitted(
        tokens, token_grid=(6, 5), cluster_grid=(6, 5), iterations=iterations, temperature=temperature
    )
    np.testing.assert_allclose(clusters, tokens, rtol=1e-5, atol=1e-6)


def test_jit_and_vmap_and_single_images_agree() -> None:
    tokens = jnp.asarray(normal(3, 30, 4), jnp.float32)
    cluster = functools.partial(cluster_tokens, temperature="auto", **SMALL)
    single = jax.jit(lambda image: cluster(image[None])[0])
    batched = cluster(tokens)
    chex.assert_shape(batched, (3, 6, 4))
    for other in (jax.jit(cluster)(tokens), jax.vmap(single)(tokens), jnp.stack([*map(single, tokens)])):
        chex.assert_trees_all_close(other, batched, rtol=1e-5, atol=1e-6)


def test_every_image_can_have_its_own_temperature() -> None:
    tokens = normal(3, 30, 4)
    temperature = np.array([0.5, 5.0, 50.0])
    clusters = cluster_tokens(
        jnp.asarray(tokens, jnp.float32), temperature=jnp.asarray(temperature, jnp.float32), **SMALL
    )
    expected = reference.cluster_tokens(tokens, temperature=temperature, **SMALL)
    np.testing.assert_allclose(clusters, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("temperature", "representative"), [("auto", "mean"), (5.0, "mean"), ("auto", "medoid")])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite(scale: float, temperature: float | str, representative: str) -> None:
    tokens = jnp.asarray(1.0 + normal(2, 30, 4, scale=scale), jnp.float32)
    gradient = gradient_of_energy(tokens, temperature=temperature, representative=representative, **SMALL)
    chex.assert_shape(gradient, tokens.shape)
    chex.assert_tree_all_finite(gradient)
    assert np.any(gradient)


@pytest.mark.parametrize(
    ("dtype", "representative"), [(jnp.float16, "mean"), (jnp.bfloat16, "mean"), (jnp.bfloat16, "medoid")]
)
def test_half_precision_is_the_rounded_float32_result(dtype: jnp.dtype, representative: str) -> None:
    """At a scale of 30 the squared distances are beyond the range of float16."""
    tokens = jnp.asarray(normal(2, 30, 64, scale=30.0), dtype)
    options = {"temperature": 5e4, "representative": representative, **SMALL}
    clusters = cluster_jitted(tokens, **options)
    assert clusters.dtype == dtype
    expected = cluster_jitted(tokens.astype(jnp.float32), **options)
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(clusters.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance * 0.1)


@representatives
def test_extreme_temperatures_in_high_dimensions(representative: str) -> None:
    """One temperature for every image: exp would underflow for whole rows of the first two."""
    tokens = normal(4, 30, 512, scale=30.0).astype(np.float32)
    temperature = np.array([1e-35, 1e-3, 1e6, 1e35])
    options = {"temperature": temperature, "representative": representative, **SMALL}
    clusters = jax.jit(functools.partial(cluster_tokens, **options))(tokens)
    np.testing.assert_allclose(clusters, reference.cluster_tokens(tokens, **options), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("temperature", [5.0, "auto"])
def test_an_offset_of_all_tokens_moves_every_cluster_by_it(temperature: float | str) -> None:
    tokens = jnp.asarray(normal(2, 30, 4), jnp.float32)
    offset = jnp.asarray(normal(4, seed=1, scale=10.0), jnp.float32)
    moved = cluster_jitted(tokens + offset, temperature=temperature, **SMALL)
    expected = cluster_jitted(tokens, temperature=temperature, **SMALL) + offset
    np.testing.assert_allclose(moved, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, "auto"])
def test_a_large_common_offset_keeps_the_precision(temperature: float | str) -> None:
    tokens = normal(2, 30, 16).astype(np.float32) + np.float32(100.0)
    clusters = cluster_jitted(jnp.asarray(tokens), temperature=temperature, **SMALL)
    expected = reference.cluster_tokens(tokens, temperature=temperature, **SMALL)
    np.testing.assert_allclose(clusters, expected, rtol=0, atol=1e-3)


def test_auto_temperature_computed_by_hand() -> None:
    """Tokens 0 1 / 3 7: differences 1, 4 along the rows and 3, 6 along the columns."""
    tokens = jnp.array([0.0, 1.0, 3.0, 7.0]).reshape(1, 4, 1)
    expected = [0.05 * (1 + 16 + 9 + 36) / 4]
    np.testing.assert_allclose(auto_temperature(tokens, (2, 2)), expected, rtol=1e-6)


def test_auto_temperature_of_a_constant_image_is_negligible() -> None:
    tokens = jnp.array([0.0, 1.0, 100.0])[:, None, None] * jnp.ones((3, 30, 4))
    negligible = 1e-6 * np.maximum(1.0, [0.0, 4.0, 4e4])
    temperature = np.asarray(auto_temperature(tokens, (6, 5)))
    np.testing.assert_array_less(-1e-30, temperature)
    np.testing.assert_array_less(temperature, negligible)


@pytest.mark.parametrize("token_grid", [(6, 5), (2, 15), (1, 30), (30, 1)])
def test_auto_temperature_is_that_of_the_reference(token_grid: tuple[int, int]) -> None:
    tokens = normal(3, 30, 4) * np.array([0.01, 1.0, 100.0])[:, None, None] + 1000.0
    auto = jax.jit(lambda tokens: auto_temperature(tokens, token_grid))
    single = auto(jnp.asarray(tokens[1:], jnp.float32))
    expected = reference.auto_temperature(tokens[1:].astype(np.float32), token_grid)
    np.testing.assert_allclose(single, expected, rtol=1e-5)
    with jax.enable_x64(True):
        double = auto(jnp.asarray(tokens))
        np.testing.assert_allclose(double, reference.auto_temperature(tokens, token_grid), rtol=1e-10)


def test_auto_temperature_of_a_single_token_is_usable() -> None:
    token = jnp.asarray(normal(2, 1, 4), jnp.float32)
    clusters = cluster_jitted(token, token_grid=(1, 1), cluster_grid=(1, 1), temperature="auto")
    np.testing.assert_allclose(clusters, token, rtol=1e-6)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"tokens": jnp.zeros((12, 3))}, r"\(12, 3\)"),
        ({"tokens": jnp.zeros((2, 13, 3))}, r"\b13\b"),
        ({"token_grid": (3, 5)}, r"\b12\b"),
        ({"token_grid": (0, 4)}, r"\b0, 4\b"),
        ({"cluster_grid": (2, 0)}, r"\b2, 0\b"),
        ({"cluster_grid": (-2, 2)}, r"-2, 2\b"),
        ({"window": 4}, r"\b4\b"),
        ({"window": 0}, r"\b0\b"),
        ({"window": -3}, r"-3\b"),
        ({"iterations": -1}, r"-1\b"),
        ({"temperature": 0.0}, r"\b0\.0\b"),
        ({"temperature": -1.5}, r"-1\.5\b"),
        ({"temperature": "automatic"}, "automatic"),
        ({"representative": "median"}, "median"),
    ],
)
def test_bad_input_is_named(wrong: dict, shown: str) -> None:
    arguments = {"tokens": jnp.zeros((2, 12, 3)), "token_grid": (3, 4), "cluster_grid": (2, 2)}
    with pytest.raises(ValueError, match=shown):
        cluster_tokens(**(arguments | wrong))


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("tokens", "token_grid", "shown"),
    [
        (jnp.zeros((12, 3)), (3, 4), r"\(12, 3\)"),
        (jnp.zeros((1, 12, 3)), (3, 5), r"\b12\b"),
        (jnp.zeros((1, 12, 3)), (-3, -4), r"-3, -4\b"),
    ],
)
def test_bad_input_of_auto_temperature_is_named(tokens: jax.Array, token_grid: tuple[int, int], shown: str) -> None:
    with pytest.raises(ValueError, match=shown):
        auto_temperature(tokens, token_grid)
