"""Multi-head attention, by the form that is fastest on each target."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from hourglass_jax.ops import fused_attention as fused
from hourglass_jax.ops.targets import run_for_target

QUERY_CHUNK = 1024
"""At most this many queries are handled at once on CPU, so that their attention weights stay in the cache."""
SHORT_ROW = 64
"""Keys whose maximum is left to XLA's reduction."""
LARGE_WINDOW = 512
"""From this many tokens on, the windows of a map are handled one by one on CPU."""


def attention(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    *,
    key_bias: Float[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads width"]:
    """softmax(query^T key / sqrt(D) + key_bias) value^T, for every head.

    The inputs have their channels first, as a projection can write them at no cost: of the layouts of the two
    products that is the fastest on CPU, where a copy of the tokens takes as long as a tenth of the attention. There
    it is one head at a time as plain matrix products: XLA's batched form over all heads takes up to three times as
    long (benchmarks/operators.py). Elsewhere it is a fused kernel where one fits: `targets.attention_form`.

    Args:
        query: [B, heads, D, N].
        key, value: [B, heads, D, M].
        key_bias: [B, M], added to the logits of every query and head: log(size) makes a token that stands for
            several count as that many.

    Returns:
        [B, N, heads, D] in the dtype of `query`.
    """
    (batch, _, width, queries), keys = query.shape, key.shape[-1]
    width += fused.BIAS_CHANNELS * (key_bias is not None)
    return run_for_target(
        query,
        key,
        value,
        key_bias,
        loop=_attention_by_head,
        xla=fused.batched_attention,
        cudnn=fused.cudnn_attention if fused.fits_cudnn(width, query.dtype, batch, queries, keys) else None,
        flash=fused.flash_attention if fused.fits_flash(keys, query.dtype, batch, queries) else None,
    )


def _attention_by_head(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    batch, heads, width, queries = query.shape
    chunk = -(-queries // -(-queries // QUERY_CHUNK))
    bias = None if key_bias is None else jnp.repeat(key_bias, heads, axis=0)
    query, key, value = (x.reshape(batch * heads, width, -1) for x in (query, key, value))

    def one_head(index: jax.Array | int, query: jax.Array) -> jax.Array:
        """What a head mixes, [N, D], takes the memory of its queries, so that the output needs none of its own."""
        own = functools.partial(jax.lax.dynamic_index_in_dim, index=index, keepdims=False)
        q, k, v, b = jax.tree.map(own, (query, key, value, bias))
        q = q * width**-0.5

        def one_chunk(q: jax.Array) -> jax.Array:
            logits = jnp.einsum("dn,dm->nm", q, k, preferred_element_type=jnp.float32)
            if b is not None:
                logits += b
            weights = jnp.exp(logits - row_maximum(logits))
            mixed = jnp.einsum("nm,dm->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (mixed / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

        mixed = jnp.concatenate([one_chunk(q[:, start : start + chunk]) for start in range(0, queries, chunk)])
        return jax.lax.dynamic_update_index_in_dim(query, mixed.reshape(q.shape), index, axis=0)

    mixed = jax.lax.fori_loop(0, batch * heads, one_head, query)
    return mixed.reshape(batch, heads, queries, width).swapaxes(1, 2)


def row_maximum(logits: Float[Array, "*rows keys"]) -> Float[Array, "*rows 1"]:
    """The maximum along the last axis, by halves.

    Elementwise maxima are vectorized on CPU, XLA's own reduction is not: an attention over 1,370 tokens takes a
    quarter less time (benchmarks/operators.py).
    """
    while (count := logits.shape[-1]) > SHORT_ROW:
        half = count // 2
        halves = jnp.maximum(logits[..., :half], logits[..., half : 2 * half])
        logits = halves if count == 2 * half else jnp.maximum(halves, logits[..., 2 * half :])
    return logits.max(axis=-1, keepdims=True)


def window_attention(
    query: Float[Array, "windows tokens heads width"],
    key: Float[Array, "windows tokens heads width"],
    value: Float[Array, "windows tokens heads width"],
    *,
    bias: Float[Array, "heads tokens tokens"],
    regions: Int[Array, "windows_of_image tokens"] | None = None,
) -> Float[Array, "windows tokens heads width"]:
    """softmax(query key^T + bias) value for many small windows, for every head.

    On CPU it is one head at a time, and one window if it is large, which keeps the attention weights in the cache.
    Small windows lose more by a loop than they gain (benchmarks/operators.py).

    Args:
        query: [B * W, N, heads, D], W windows of each image; already scaled.
        key, value: of the same shape.
        bias: [heads, N, N], added to the logits.
        regions: [W, N] integers; -100 is added to the logits of pairs in different regions, as the official code
            masks them.

    Returns:
        [B * W, N, heads, D] in the dtype of `query`.
    """
    windows, _, _, width = query.shape
    width += fused.REGIONS * (regions is not None)
    bias = bias.astype(jnp.float32)
    if regions is not None:
        regions = jnp.tile(regions, (windows // len(regions), 1))
    return run_for_target(
        query,
        key,
        value,
        bias,
        regions,
        loop=_windows_by_head,
        xla=_batched_windows,
        cudnn=fused.cudnn_window_attention if fused.fits_cudnn(width, query.dtype, windows) else None,
    )


def _batched_windows(
    query: Float[Array, "windows tokens heads width"],
    key: Float[Array, "windows tokens heads width"],
    value: Float[Array, "windows tokens heads width"],
    bias: Float[Array, "heads tokens tokens"],
    regions: Int[Array, "windows tokens"] | None,
) -> Float[Array, "windows tokens heads width"]:
    bias = _masked(bias, None if regions is None else regions[:, None])
    return jax.nn.dot_product_attention(query, key, value, bias=bias, scale=1.0, implementation="xla")


def _windows_by_head(
    query: Float[Array, "windows tokens heads width"],
    key: Float[Array, "windows tokens heads width"],
    value: Float[Array, "windows tokens heads width"],
    bias: Float[Array, "heads tokens tokens"],
    regions: Int[Array, "windows tokens"] | None,
) -> Float[Array, "windows tokens heads width"]:
    def mix(q: jax.Array, k: jax.Array, v: jax.Array, bias: jax.Array) -> jax.Array:
        logits = jnp.einsum("...nd,...md->...nm", q, k, preferred_element_type=jnp.float32) + bias
        weights = jnp.exp(logits - row_maximum(logits))
        mixed = jnp.einsum("...nm,...md->...nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

    def one_head(inputs: tuple[jax.Array, ...]) -> jax.Array:
        q, k, v, bias = inputs
        if query.shape[1] < LARGE_WINDOW:
            return mix(q, k, v, _masked(bias, regions))
        return jax.lax.map(lambda each: mix(each[0], each[1], each[2], _masked(bias, each[3])), (q, k, v, regions))

    by_head = (x.transpose(2, 0, 1, 3) for x in (query, key, value))
    return jax.lax.map(one_head, (*by_head, bias)).transpose(1, 2, 0, 3)


def _masked(
    bias: Float[Array, "*heads tokens tokens"], regions: Int[Array, "*windows tokens"] | None
) -> Float[Array, "... tokens tokens"]:
    """The bias [..., N, N], less 100 for pairs of tokens in different regions, [..., N]."""
    if regions is None:
        return bias
    return jnp.where(regions[..., :, None] != regions[..., None, :], bias - 100, bias)
