import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax import reconstruct_tokens
from tests.reference import hourglass as reference

PRECISIONS = [(np.float32, 1e-5), (np.float64, 1e-10)]
OPTIONS = ("neighbors", "temperature", "normalize", "token_grid")
EXTREME_TEMPERATURES = np.array([1e-35, 1e-3, 1e6, 1e35])


def energy_of_tokens(arguments: dict[str, jax.Array], **options: object) -> jax.Array:
    return jnp.sum(reconstruct_tokens(**arguments, **options) ** 2)


def at_extreme_temperatures(arguments: dict[str, jax.Array], **options: object) -> jax.Array:
    return reconstruct_tokens(**arguments, temperature=EXTREME_TEMPERATURES, **options)


reconstruct_extreme = jax.jit(at_extreme_temperatures, static_argnames=OPTIONS)
reconstruct_jitted = jax.jit(reconstruct_tokens, static_argnames=OPTIONS)
gradients_of_energy = jax.jit(jax.grad(energy_of_tokens), static_argnames=OPTIONS)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).normal(size=shape)


def arrays(
    batch: int = 2,
    count: int = 6,
    *,
    channels: int = 4,
    refined_channels: int = 3,
    scale: float = 1.0,
    seed: int = 0,
) -> dict[str, np.ndarray]:
    """Arguments for 30 tokens and count clusters, with values that float32 holds exactly."""
    shapes = {
        "refined": (batch, count, refined_channels),
        "tokens": (batch, 30, channels),
        "clusters": (batch, count, channels),
    }
    scales = {"refined": 1.0, "tokens": scale, "clusters": scale}
    rng = np.random.default_rng(seed)
    return {
        name: (scales[name] * rng.normal(size=shape)).astype(np.float32).astype(np.float64)
        for name, shape in shapes.items()
    }


def as_dtype(arguments: dict[str, np.ndarray], dtype: jnp.dtype = jnp.float32) -> dict[str, jax.Array]:
    return {name: jnp.asarray(array, dtype) for name, array in arguments.items()}


@settings(max_examples=12, deadline=None, derandomize=True)
@given(
    token_grid=st.sampled_from([(6, 5), (2, 15), (1, 30)]),
    batch=st.integers(1, 3),
    clusters=st.sampled_from([1, 6, 12, 35]),
    channels=st.sampled_from([1, 3, 16]),
    refined_channels=st.sampled_from([1, 4]),
    neighbors=st.sampled_from([1, 4, 20, 50]),
    temperature=st.sampled_from(["auto", 1.0, 5.0, 50.0]),
    normalize=st.sampled_from(["sum", "l2"]),
    precision=st.sampled_from(PRECISIONS),
    seed=st.integers(0, 1000),
)
def test_tokens_are_those_of_equation_4(
    token_grid: tuple[int, int],
    batch: int,
    clusters: int,
    channels: int,
    refined_channels: int,
    neighbors: int,
    temperature: float | str,
    normalize: str,
    precision: tuple[type, float],
    seed: int,
) -> None:
    options = dict(zip(OPTIONS, (neighbors, temperature, normalize, token_grid), strict=True))
    arguments = arrays(batch, clusters, channels=channels, refined_channels=refined_channels, seed=seed)
    dtype, tolerance = precision
    with jax.enable_x64(dtype is np.float64):
        reconstructed = reconstruct_jitted(**as_dtype(arguments, dtype), **options)
    assert reconstructed.dtype == dtype
    expected = reference.reconstruct_tokens(**arguments, **options)
    np.testing.assert_allclose(reconstructed, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("normalize", "expected"), [("sum", [8.0, 24.0]), ("l2", [24 / math.sqrt(5), 72 / math.sqrt(5)])]
)
def test_two_tokens_computed_by_hand(normalize: str, expected: list[float]) -> None:
    """The two nearest clusters are at squared distances 1 and 4: weights of 2 to 1 at this tau."""
    reconstructed = reconstruct_jitted(
        jnp.array([6.0, 12.0, 30.0]).reshape(1, 3, 1),
        tokens=jnp.array([0.0, 4.0]).reshape(1, 2, 1),
        clusters=jnp.array([1.0, 2.0, 3.0]).reshape(1, 3, 1),
        neighbors=2,
        temperature=3 / math.log(2),
        normalize=normalize,
    )
    np.testing.assert_allclose(reconstructed.ravel(), expected, rtol=1e-6)


def test_clusters_tied_with_the_kth_nearest_all_take_part() -> None:
    """Weights 2, 1, 1, 1 although k is 2; the last cluster is farther."""
    reconstructed = reconstruct_jitted(
        jnp.array([5.0, 10.0, 15.0, 20.0, 1000.0]).reshape(1, 5, 1),
        tokens=jnp.zeros((1, 1, 1)),
        clusters=jnp.array([0.0, 1.0, -1.0, 1.0, 2.0]).reshape(1, 5, 1),
        neighbors=2,
        temperature=1 / math.log(2),
    )
    np.testing.assert_allclose(reconstructed.item(), (2 * 5 + 10 + 15 + 20) / 5, rtol=1e-6)


@pytest.mark.parametrize("neighbors", [1, 3, 8])
def test_duplicated_clusters_share_their_weight(neighbors: int) -> None:
    """Padded windows hold such duplicates: an odd k always cuts a pair."""
    arguments = arrays(count=12, channels=16)
    arguments["clusters"] = np.concatenate([arguments["clusters"][:, :6]] * 2, axis=1)
    reconstructed = reconstruct_jitted(**as_dtype(arguments), neighbors=neighbors, temperature=5.0)
    expected = reference.reconstruct_tokens(**arguments, neighbors=neighbors, temperature=5.0)
    np.testing.assert_allclose(reconstructed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("count", [1024, 40_000])
def test_many_clusters(count: int) -> None:
    """Of many clusters at nearly one distance, as many take part as should. All weights are alike."""
    arguments = arrays(batch=1, count=count)
    arguments["tokens"] = arguments["tokens"][:, :2]
    options = {"neighbors": 1000, "temperature": 1000.0}
    with jax.enable_x64(True):
        reconstructed = reconstruct_jitted(**as_dtype(arguments, jnp.float64), **options)
    np.testing.assert_allclose(reconstructed, reference.reconstruct_tokens(**arguments, **options), rtol=1e-10)


def test_more_neighbors_than_clusters_are_all_clusters() -> None:
    arguments = as_dtype(arrays(count=6))
    chex.assert_trees_all_close(
        reconstruct_jitted(**arguments, neighbors=50), reconstruct_jitted(**arguments, neighbors=6), rtol=1e-6
    )


def test_one_cluster_gives_every_token_the_same() -> None:
    arguments = arrays(count=1)
    reconstructed = reconstruct_jitted(**as_dtype(arguments))
    np.testing.assert_allclose(reconstructed, np.repeat(arguments["refined"], 30, axis=1), rtol=1e-6)


def test_one_neighbor_of_unchanged_tokens_gives_them_back() -> None:
    tokens = jnp.asarray(normal(2, 30, 4), jnp.float32)
    reconstructed = reconstruct_jitted(tokens, tokens=tokens, clusters=tokens, neighbors=1)
    np.testing.assert_allclose(reconstructed, tokens, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("temperature", [1e-3, 50.0, "auto"])
def test_constant_image_gives_the_mean_of_refined(temperature: float | str) -> None:
    refined = normal(1, 6, 3)
    vector = jnp.array([0.3, -100.0, 7.0, 0.0])
    reconstructed = reconstruct_jitted(
        jnp.asarray(refined, jnp.float32),
        tokens=jnp.broadcast_to(vector, (1, 30, 4)),
        clusters=jnp.broadcast_to(vector, (1, 6, 4)),
        temperature=temperature,
        token_grid=(6, 5),
    )
    expected = np.broadcast_to(refined.mean(1, keepdims=True), (1, 30, 3))
    np.testing.assert_allclose(reconstructed, expected, rtol=1e-5, atol=1e-6)


def test_jit_and_vmap_and_single_images_agree() -> None:
    arguments = as_dtype(arrays(3))
    options = {"neighbors": 4, "temperature": "auto", "token_grid": (6, 5)}

    def reconstruct(arguments: dict[str, jax.Array]) -> jax.Array:
        return reconstruct_tokens(**arguments, **options)

    @jax.jit
    def reconstruct_one(arguments: dict[str, jax.Array]) -> jax.Array:
        return reconstruct({name: array[None] for name, array in arguments.items()})[0]

    images = [{name: array[i] for name, array in arguments.items()} for i in range(3)]
    batched = reconstruct(arguments)
    chex.assert_shape(batched, (3, 30, 3))
    for other in (
        jax.jit(reconstruct)(arguments),
        jax.vmap(reconstruct_one)(arguments),
        jnp.stack([reconstruct_one(image) for image in images]),
    ):
        chex.assert_trees_all_close(other, batched, rtol=1e-5, atol=1e-6)


def test_every_image_can_have_its_own_temperature() -> None:
    arguments = arrays(3)
    temperature = np.array([0.5, 5.0, 50.0])
    reconstructed = reconstruct_tokens(**as_dtype(arguments), temperature=jnp.asarray(temperature, jnp.float32))
    expected = reference.reconstruct_tokens(**arguments, temperature=temperature)
    np.testing.assert_allclose(reconstructed, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("temperature", "normalize"), [("auto", "sum"), (5.0, "l2")])
@pytest.mark.parametrize("scale", [0.0, 1.0, 100.0])
def test_gradients_are_finite(scale: float, temperature: float | str, normalize: str) -> None:
    arguments = as_dtype(arrays(scale=scale))
    options = {"neighbors": 4, "temperature": temperature, "normalize": normalize, "token_grid": (6, 5)}
    gradients = gradients_of_energy(arguments, **options)
    chex.assert_trees_all_equal_shapes(gradients, arguments)
    chex.assert_tree_all_finite(gradients)
    assert np.any(gradients["refined"])


@pytest.mark.parametrize(("dtype", "normalize"), [(jnp.float16, "sum"), (jnp.bfloat16, "l2")])
def test_half_precision_is_the_rounded_float32_result(dtype: jnp.dtype, normalize: str) -> None:
    """At a scale of 30 the squared distances are beyond the range of float16."""
    arguments = as_dtype(arrays(channels=64, scale=30.0), dtype)
    options = {"neighbors": 4, "temperature": 5e4, "normalize": normalize}
    reconstructed = reconstruct_jitted(**arguments, **options)
    assert reconstructed.dtype == dtype
    expected = reconstruct_jitted(**as_dtype(arguments), **options)
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(reconstructed.astype(jnp.float32), expected, rtol=tolerance, atol=tolerance * 1e-2)


def test_extreme_temperatures_in_high_dimensions() -> None:
    """One temperature for every image: exp would underflow for whole rows of the first two."""
    arguments = arrays(4, channels=512, scale=30.0)
    reconstructed = reconstruct_extreme(as_dtype(arguments), neighbors=4)
    expected = reference.reconstruct_tokens(**arguments, neighbors=4, temperature=EXTREME_TEMPERATURES)
    np.testing.assert_allclose(reconstructed, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [4, 512])
def test_weights_sum_to_one(channels: int) -> None:
    arguments = as_dtype(arrays(4, channels=channels, scale=30.0))
    arguments["refined"] = jnp.ones_like(arguments["refined"])
    reconstructed = reconstruct_extreme(arguments, neighbors=4)
    np.testing.assert_allclose(reconstructed, np.ones((4, 30, 3)), rtol=1e-6)


def test_l2_weights_have_unit_norm() -> None:
    """With one refined channel per cluster the reconstructed tokens are the weights."""
    arguments = as_dtype(arrays(4, count=6, channels=64, scale=10.0))
    arguments["refined"] = jnp.broadcast_to(jnp.eye(6), (4, 6, 6))
    weights = reconstruct_extreme(arguments, normalize="l2")
    np.testing.assert_allclose(np.linalg.norm(weights, axis=-1), np.ones((4, 30)), rtol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, "auto"])
def test_a_large_common_offset_keeps_the_precision(temperature: float | str) -> None:
    arguments = arrays(channels=16)
    for name in ("tokens", "clusters"):
        arguments[name] = (arguments[name] + 100.0).astype(np.float32).astype(np.float64)
    options = {"neighbors": 4, "temperature": temperature, "token_grid": (6, 5)}
    reconstructed = reconstruct_jitted(**as_dtype(arguments), **options)
    expected = reference.reconstruct_tokens(**arguments, **options)
    np.testing.assert_allclose(reconstructed, expected, rtol=0, atol=1e-3)


@pytest.mark.usefixtures("no_type_checks")
@pytest.mark.parametrize(
    ("wrong", "shown"),
    [
        ({"tokens": jnp.zeros((12, 3))}, r"\(12, 3\)"),
        ({"refined": jnp.zeros((4, 5))}, r"\(4, 5\)"),
        ({"clusters": jnp.zeros((4, 3))}, r"\(4, 3\)"),
        ({"refined": jnp.zeros((2, 6, 5))}, r"\b6\b"),
        ({"refined": jnp.zeros((1, 4, 5))}, r"\b1\b"),
        ({"clusters": jnp.zeros((2, 4, 7))}, r"\b7\b"),
        ({"tokens": jnp.zeros((9, 12, 3))}, r"\b9\b"),
        ({"neighbors": 0}, r"\b0\b"),
        ({"neighbors": -2}, r"-2\b"),
        ({"temperature": 0.0}, r"\b0\.0\b"),
        ({"temperature": -1.5}, r"-1\.5\b"),
        ({"temperature": "automatic"}, "automatic"),
        ({"temperature": "auto"}, "token_grid"),
        ({"temperature": "auto", "token_grid": (3, 5)}, r"\b12\b"),
        ({"normalize": "l1"}, "l1"),
    ],
)
def test_bad_input_is_named(wrong: dict, shown: str) -> None:
    arguments = {
        "refined": jnp.zeros((2, 4, 5)),
        "tokens": jnp.zeros((2, 12, 3)),
        "clusters": jnp.zeros((2, 4, 3)),
    }
    with pytest.raises(ValueError, match=shown):
        reconstruct_tokens(**(arguments | wrong))
