"""Attention for groups of similar queries (Adaptive Clustering Transformer, arXiv 2011.09315)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, UInt32

from hourglass_jax.ops.attention import attention

HASHES = 32
"""Maximum number of hashes: each takes two bits of a 64-bit code."""


def clustered_attention(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    *,
    prototypes: int,
    hashes: int = HASHES,
    bucket: float = 8.0,
    seed: int = 0,
) -> Float[Array, "batch queries heads width"]:
    """Attention in which queries with the same hash code share one row, that of their mean.

    Args:
        query, key, value: [B, heads, D, N].
        prototypes: maximum number of groups per head. If there are more codes, neighbouring codes in sorted order
            share a group.
        hashes: number of hashes.
        bucket: width of a hash's buckets.
        seed: seed of the random directions.

    Returns:
        [B, N, heads, D] in the dtype of `query`.

    Source: gaopengcuhk/SMCA-DETR, Adaptive_Cluster_Transformer/ACT/ada_clustering_attention.py. There the number of
        groups is that of the codes, and every call draws new directions.
    """
    groups = group_queries(query, prototypes, hashes=hashes, bucket=bucket, seed=seed)
    means = _group_means(query.astype(jnp.float32), groups, min(prototypes, query.shape[-1]))
    mixed = attention(means.astype(query.dtype), key, value)
    index = groups.swapaxes(1, 2)[..., None]
    return jnp.take_along_axis(mixed, index, axis=1)


def group_queries(
    query: Float[Array, "batch heads width queries"],
    prototypes: int,
    *,
    hashes: int = HASHES,
    bucket: float = 8.0,
    seed: int = 0,
) -> Int[Array, "batch heads queries"]:
    """The group of every query, [B, heads, D, N] -> int32 [B, heads, N] in 0 .. prototypes - 1.

    Hash i of a query q, divided by sqrt(D) as for attention, is floor((q w_i + b_i) / bucket) with w_i normal and
    b_i uniform in 0..1, less its minimum over the queries; the code is the sum of hash i times 4^i, modulo 2^64.
    """
    high, low = _codes(query, hashes, bucket, seed)
    order = jnp.broadcast_to(np.arange(query.shape[-1], dtype=np.int32), low.shape)
    high, low, order = jax.lax.sort((high, low, order), num_keys=2)
    changes = (high[..., 1:] != high[..., :-1]) | (low[..., 1:] != low[..., :-1])
    run = jnp.pad(jnp.cumsum(changes, axis=-1, dtype=jnp.int32), ((0, 0),) * (changes.ndim - 1) + ((1, 0),))
    runs = run[..., -1:] + 1
    run = jnp.where(runs > prototypes, run * prototypes // runs, run)
    return jax.lax.sort((order, run), num_keys=1)[1]


def _codes(
    query: Float[Array, "batch heads width queries"], hashes: int, bucket: float, seed: int
) -> tuple[UInt32[Array, "batch heads queries"], UInt32[Array, "batch heads queries"]]:
    """The upper and lower 32 bits of every query's code, uint32 [B, heads, N]."""
    width = query.shape[2]
    random = np.random.default_rng(seed)
    directions = random.standard_normal((hashes, width), np.float32) * width**-0.5
    bias = random.random((hashes, 1), np.float32)
    with jax.named_scope("clustering"):
        projected = jnp.einsum("kd,bhdn->bhkn", directions, query.astype(jnp.float32), precision="highest")
    values = jnp.floor((projected + bias) / bucket).astype(jnp.int32)
    values -= values.min(axis=-1, keepdims=True)
    # Sixteen bits at a time: eight hashes of two bits, and the carry into the next sixteen bits.
    values = jnp.pad(values, ((0, 0), (0, 0), (0, HASHES - hashes), (0, 0)))
    values = values.reshape(*values.shape[:2], 4, 8, values.shape[-1])
    sums = jnp.sum(values << (2 * np.arange(8, dtype=np.int32))[:, None], axis=3).astype(jnp.uint32)
    digits, carry = [], 0
    for place in range(4):
        total = sums[:, :, place] + carry
        digits.append(total & 0xFFFF)
        carry = total >> 16
    return digits[3] << 16 | digits[2], digits[1] << 16 | digits[0]


def _group_means(
    query: Float[Array, "batch heads width queries"], groups: Int[Array, "batch heads queries"], count: int
) -> Float[Array, "batch heads width {count}"]:
    """The mean query of every group, [B, heads, D, N] -> [B, heads, D, count]; zero for a group without queries."""

    def means(query: jax.Array, groups: jax.Array) -> jax.Array:
        total = jax.ops.segment_sum(query.T, groups, count)
        members = jax.ops.segment_sum(jnp.ones(len(groups)), groups, count)
        return (total / jnp.maximum(members, 1)[:, None]).T

    return jax.vmap(jax.vmap(means))(query, groups)
