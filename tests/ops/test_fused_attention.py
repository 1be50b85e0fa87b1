"""The forms of attention for GPUs and TPUs: their arithmetic, run on the CPU."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pallas_tpu

from hourglass_jax.ops import fused_attention as fused
from hourglass_jax.ops.attention import attention, window_attention
from hourglass_jax.ops.masked_attention import masked_attention
from hourglass_jax.ops.targets import attention_form
from tests.ops.test_attention import attention_of_equation, random_inputs

SIXTEEN_BITS = [jnp.float16, jnp.bfloat16]


def attend(query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None = None) -> jax.Array:
    """`attention` of tokens with their channels last."""
    query, key, value = (x.transpose(0, 2, 3, 1) for x in (query, key, value))
    return attention(query, key, value, key_bias=key_bias)


@pytest.fixture
def without_cudnn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Computes what is handed to cuDNN by XLA; returns the shapes of the queries that came."""
    seen = []
    by_xla = jax.nn.dot_product_attention

    def run(query: jax.Array, *arrays: jax.Array, implementation: str, **settings: object) -> jax.Array:
        if implementation == "cudnn":
            seen.append(query.shape)
        return by_xla(query, *arrays, implementation="xla", **settings)

    monkeypatch.setattr(jax.nn, "dot_product_attention", run)
    return seen


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("dtype", SIXTEEN_BITS)
def test_cudnn_gets_the_bias_of_the_keys_inside_the_heads(
    dtype: jnp.dtype, biased: bool, without_cudnn: list[tuple[int, ...]]
) -> None:
    inputs = random_inputs(10, 12, dtype=dtype)
    if not biased:
        del inputs["key_bias"]
    with attention_form("cudnn"):
        mixed = attend(**inputs)
    assert mixed.dtype == dtype
    assert without_cudnn == [(2, 10, 3, 16 if biased else 8)]
    tolerance = 3 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(mixed.astype(jnp.float32), attention_of_equation(**inputs), rtol=0, atol=tolerance)


@pytest.mark.parametrize(
    ("queries", "block", "biased"),
    [
        (7, 256, True),
        *(pytest.param(*each, marks=pytest.mark.slow) for each in ((7, 2048, False), (300, 256, True))),
    ],
)
def test_the_kernel_of_a_tpu_computes_attention(
    queries: int, block: int, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 270 keys, in one block or two, the last of which is filled up."""
    monkeypatch.setattr(fused, "KEY_BLOCK", block)
    inputs = {name: array[:1] for name, array in random_inputs(queries, 270, scale=3.0).items()}
    if not biased:
        del inputs["key_bias"]
    with attention_form("flash"), pallas_tpu.force_tpu_interpret_mode():
        mixed = attend(**inputs)
    np.testing.assert_allclose(mixed, attention_of_equation(**inputs), rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [*SIXTEEN_BITS, jnp.float32])
def test_sizes_inside_the_heads_are_exact(dtype: jnp.dtype) -> None:
    """Against the logits with the bias added, up to what a query and a key lose to 16 bits themselves."""
    sizes = jnp.asarray([[1, 2, 3, 5, 7, 100, 1369, 40000]], jnp.float32)
    query, key = jnp.zeros((1, 4, 2, 64), dtype), jnp.zeros((1, 8, 2, 64), dtype)
    query, key = fused.with_key_bias(query, key, jnp.log(sizes), scale=0.125)
    logits = 0.125 * jnp.einsum("bnhd,bmhd->bhnm", query, key, preferred_element_type=jnp.float32)
    np.testing.assert_allclose(logits[0, 0, 0], jnp.log(sizes[0]), rtol=2**-15, atol=0)


def test_a_key_of_size_zero_is_not_read() -> None:
    inputs = random_inputs(5, 4) | {"key_bias": jnp.asarray([[-np.inf, 0, 0, 0], [0, 0, 0, -np.inf]])}
    query, key = fused.with_key_bias(inputs["query"], inputs["key"], inputs["key_bias"], scale=8**-0.5)
    weights = jax.nn.softmax(8**-0.5 * jnp.einsum("bnhd,bmhd->bhnm", query, key))
    mixed = jnp.einsum("bhnm,bmhd->bnhd", weights, inputs["value"])
    np.testing.assert_allclose(mixed, attention_of_equation(**inputs), rtol=0, atol=1e-5)


def in_windows() -> jax.Array:
    """Attention of two images of three windows, whose tokens are of different regions."""
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.normal(size=(6, 4, 3, 8)), jnp.bfloat16) for _ in range(3))
    bias = jnp.asarray(random.normal(size=(3, 4, 4)), jnp.bfloat16).astype(jnp.float32)
    regions = jnp.asarray([[0, 0, 0, 0], [0, 0, 1, 1], [4, 5, 7, 8]])
    return window_attention(query, key, value, bias=bias, regions=regions)


def with_a_mask() -> jax.Array:
    """Of queries that may read some of the keys, and one that may read none."""
    random = np.random.default_rng(0)
    query, key, value = (jnp.asarray(random.normal(size=(2, n, 3, 8)), jnp.bfloat16) for n in (5, 7, 7))
    allowed = jnp.asarray(random.random((2, 5, 7)) < 0.5).at[0, 0].set(False)
    key_bias = jnp.asarray(np.log(random.integers(1, 9, (2, 7))), jnp.float32)
    return masked_attention(query, key, value, allowed, key_bias=key_bias)


@pytest.mark.parametrize("form", ["xla", "cudnn", "flash"])
@pytest.mark.parametrize("compute", [in_windows, with_a_mask])
def test_every_form_does_the_same(
    compute: Callable[[], jax.Array], form: str, without_cudnn: list[tuple[int, ...]]
) -> None:
    with attention_form("loop"):
        expected = compute()
    with attention_form(form):
        found = compute()
    assert len(without_cudnn) == 1 or form != "cudnn"
    np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=0, atol=0.02)


def test_functions_are_compiled_anew_for_another_form() -> None:
    traced = []

    @jax.jit
    def compute(inputs: dict[str, jax.Array]) -> jax.Array:
        traced.append(attention_form.value)
        return attend(**inputs)

    for form in ("auto", "xla", "auto", "loop"):
        with attention_form(form):
            compute(random_inputs(5, 6))
    assert traced == ["auto", "xla", "loop"]


def test_an_unknown_form_is_named() -> None:
    with attention_form("fast"), pytest.raises(ValueError, match=r"must be auto, .* got 'fast'"):
        attend(**random_inputs(5, 6))


@pytest.mark.parametrize("biased", [False, True])
def test_the_widest_heads_of_cudnn_have_no_room_for_a_bias(
    biased: bool, without_cudnn: list[tuple[int, ...]]
) -> None:
    """With two more channels they are wider than cuDNN takes, on a CPU as well, where all forms are traced."""
    width = fused.WIDEST_HEAD
    arrays = [jnp.ones((1, 300, 1, width), jnp.bfloat16)] * 3
    bias = jnp.zeros((1, 300)) if biased else None
    with attention_form("cudnn"):
        jax.eval_shape(attend, *arrays, bias)
    assert without_cudnn == ([] if biased else [(1, 300, 1, width)])
    jax.jit(attend).lower(*arrays, bias)
