import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.attention import attention, window_attention
from hourglass_jax.ops.targets import attention_form


def attention_of_equation(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, key_bias: np.ndarray | None = None
) -> np.ndarray:
    """Softmax attention in float64, image by image and head by head."""
    query, key, value = (np.asarray(array, np.float64) for array in (query, key, value))
    mixed = np.zeros((*query.shape[:3], value.shape[3]))
    for b in range(query.shape[0]):
        for h in range(query.shape[2]):
            logits = query[b, :, h] @ key[b, :, h].T / np.sqrt(query.shape[3])
            if key_bias is not None:
                logits = logits + np.asarray(key_bias, np.float64)[b]
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            mixed[b, :, h] = weights / weights.sum(axis=1, keepdims=True) @ value[b, :, h]
    return mixed


def random_inputs(
    queries: int, keys: int, *, scale: float = 1.0, dtype: jnp.dtype = jnp.float32
) -> dict[str, jax.Array]:
    """Query, key, value and key_bias for 2 images and 3 heads of 8 channels."""
    rng = np.random.default_rng(0)
    arrays = {
        "query": scale * rng.normal(size=(2, queries, 3, 8)),
        "key": rng.normal(size=(2, keys, 3, 8)),
        "value": rng.normal(size=(2, keys, 3, 8)),
        "key_bias": np.log(rng.integers(1, 9, size=(2, keys))),
    }
    dtypes = {name: jnp.float32 if name == "key_bias" else dtype for name in arrays}
    return {name: jnp.asarray(array, dtypes[name]) for name, array in arrays.items()}


def attend(query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None = None) -> jax.Array:
    """`attention` of tokens with their channels last."""
    query, key, value = (x.transpose(0, 2, 3, 1) for x in (query, key, value))
    return attention(query, key, value, key_bias=key_bias)


def use_chunks_of(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hourglass_jax.ops.attention.QUERY_CHUNK", count)


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(
    ("queries", "keys", "chunk"),
    [(7, 7, 2048), (10, 6, 4), (12, 12, 4), (4, 9, 4), (1, 5, 4), (5, 1, 1)],
)
def test_attention_is_softmax_attention(
    monkeypatch: pytest.MonkeyPatch, queries: int, keys: int, chunk: int, biased: bool
) -> None:
    use_chunks_of(chunk, monkeypatch)
    inputs = random_inputs(queries, keys, scale=3.0)
    if not biased:
        del inputs["key_bias"]
    mixed = attend(**inputs)
    assert mixed.dtype == jnp.float32
    np.testing.assert_allclose(mixed, attention_of_equation(**inputs), rtol=1e-5, atol=1e-5)


def test_a_key_of_size_two_counts_as_two_copies() -> None:
    inputs = random_inputs(5, 4)
    doubled = inputs | {"key_bias": jnp.log(jnp.array([[2.0, 1, 1, 1], [1, 1, 1, 2]]))}
    copied = inputs | {
        name: jnp.stack([inputs[name][0, [0, 0, 1, 2, 3]], inputs[name][1, [0, 1, 2, 3, 3]]])
        for name in ("key", "value")
    }
    del copied["key_bias"]
    np.testing.assert_allclose(attend(**doubled), attend(**copied), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_sixteen_bit_types_lose_only_their_own_digits(monkeypatch: pytest.MonkeyPatch, dtype: jnp.dtype) -> None:
    use_chunks_of(4, monkeypatch)
    inputs = random_inputs(10, 12, dtype=dtype)
    mixed = attend(**inputs)
    assert mixed.dtype == dtype
    tolerance = 3 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(mixed.astype(jnp.float32), attention_of_equation(**inputs), rtol=0, atol=tolerance)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_large_logits_pick_the_largest(scale: float) -> None:
    inputs = random_inputs(5, 6, scale=scale)
    np.testing.assert_allclose(attend(**inputs), attention_of_equation(**inputs), rtol=0, atol=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e4])
def test_gradients_are_finite_and_do_not_depend_on_the_chunks(
    monkeypatch: pytest.MonkeyPatch, scale: float
) -> None:
    inputs = random_inputs(10, 6, scale=scale)

    def gradients(chunk: int) -> dict[str, jax.Array]:
        use_chunks_of(chunk, monkeypatch)
        return jax.grad(lambda inputs: jnp.sum(attend(**inputs) ** 2))(inputs)

    whole, chunked = gradients(2048), gradients(4)
    for name, gradient in chunked.items():
        assert np.all(np.isfinite(gradient)), name
        np.testing.assert_allclose(gradient, whole[name], rtol=1e-4, atol=1e-4 * max(scale, 1))
    assert np.any(chunked["value"])


@pytest.mark.parametrize(("form", "large"), [("auto", 512), ("loop", 4), ("xla", 512)])
@pytest.mark.parametrize("separated", [False, True])
def test_attention_in_windows(monkeypatch: pytest.MonkeyPatch, separated: bool, form: str, large: int) -> None:
    """Two images of three windows, each with a region that its other tokens do not see."""
    rng = np.random.default_rng(0)
    query, key, value = (jnp.asarray(rng.normal(size=(6, 4, 3, 8)), jnp.float32) for _ in range(3))
    bias = jnp.asarray(rng.normal(size=(3, 4, 4)), jnp.float32)
    regions = np.array([[0, 0, 0, 0], [0, 0, 1, 1], [0, 1, 2, 3]])
    monkeypatch.setattr("hourglass_jax.ops.attention.LARGE_WINDOW", large)
    with attention_form(form):
        mixed = window_attention(query, key, value, bias=bias, regions=jnp.asarray(regions) if separated else None)
    assert mixed.dtype == jnp.float32
    for window, head in np.ndindex(6, 3):
        logits = np.asarray(query)[window, :, head] @ np.asarray(key)[window, :, head].T + bias[head]
        if separated:
            logits = logits - 100 * (regions[window % 3][:, None] != regions[window % 3])
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        expected = weights / weights.sum(axis=1, keepdims=True) @ np.asarray(value)[window, :, head]
        np.testing.assert_allclose(mixed[window, :, head], expected, rtol=0, atol=1e-5)
