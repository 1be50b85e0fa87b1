"""Multi-head attention, by the form that is fastest on each backend."""

import jax
import jax.numpy as jnp

QUERY_CHUNK = 512
"""Queries that are handled at once on CPU, so that their attention weights stay in the cache."""


def attention(
    query: jax.Array, key: jax.Array, value: jax.Array, *, key_bias: jax.Array | None = None
) -> jax.Array:
    """softmax(query key^T / sqrt(D) + key_bias) value, for every head.

    On CPU one head at a time as plain matrix products: XLA's batched form over all heads takes up to three times as
    long (benchmarks/operators.py). On GPU cuDNN's fused attention for 16-bit types; XLA's own otherwise.

    Args:
        query: [B, N, heads, D].
        key, value: [B, M, heads, D].
        key_bias: [B, M], added to the logits of every query and head: log(size) makes a token that stands for
            several count as that many.

    Returns:
        [B, N, heads, D] in the dtype of `query`.
    """
    backend = jax.default_backend()
    if backend == "cpu":
        return _attention_by_head(query, key, value, key_bias)
    fused = backend == "gpu" and query.dtype in (jnp.bfloat16, jnp.float16)
    bias = None if key_bias is None else key_bias[:, None, None, :].astype(query.dtype)
    return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation="cudnn" if fused else "xla")


def _attention_by_head(query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None) -> jax.Array:
    batch, queries, heads, width = query.shape
    chunks = -(-queries // QUERY_CHUNK)
    chunk = -(-queries // chunks)

    def by_head(x: jax.Array) -> jax.Array:
        """Channels first: of the layouts of the two products this one is the fastest."""
        return x.transpose(0, 2, 3, 1).reshape(batch * heads, width, -1)

    padding = ((0, 0), (0, 0), (0, chunks * chunk - queries))
    q = jnp.pad(by_head(query * width**-0.5), padding)
    q = q.reshape(batch * heads, width, chunks, chunk).swapaxes(1, 2)
    bias = None if key_bias is None else jnp.repeat(key_bias, heads, axis=0)

    def one_head(inputs: tuple[jax.Array, jax.Array, jax.Array, jax.Array | None]) -> jax.Array:
        q, k, v, bias = inputs

        def one_chunk(q: jax.Array) -> jax.Array:
            logits = jnp.einsum("dn,dm->nm", q, k, preferred_element_type=jnp.float32)
            if bias is not None:
                logits += bias
            weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
            mixed = jnp.einsum("nm,dm->nd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
            return (mixed / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

        return jax.lax.map(one_chunk, q)

    mixed = jax.lax.map(one_head, (q, by_head(key), by_head(value), bias))
    mixed = mixed.reshape(batch, heads, chunks * chunk, width)[:, :, :queries]
    return mixed.swapaxes(1, 2)
