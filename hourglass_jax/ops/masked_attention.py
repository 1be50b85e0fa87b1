"""Attention whose queries may read some of the keys only, and the sine encoding of the keys' places."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from hourglass_jax.ops import fused_attention as fused
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.targets import run_for_target


def masked_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    allowed: Bool[Array, "batch queries keys"],
    *,
    key_bias: Float[Array, "batch keys"] | None = None,
) -> Float[Array, "batch queries heads width"]:
    """softmax(query key^T / sqrt(D) + key_bias) value over the keys that each query may read, for every head.

    One head at a time on CPU: the logits of all of them would be the largest array of a mask decoder. Elsewhere see
    `targets.attention_form`.

    Args:
        query: [B, N, heads, D].
        key, value: [B, M, heads, D].
        allowed: bool [B, N, M], the same for all heads; a query that may read nothing reads everything.
        key_bias: [B, M], added to the logits of every query and head.

    Returns:
        [B, N, heads, D] in the dtype of `query`.
    """
    (batch, _, _, width), keys = query.shape, key.shape[1]
    width += fused.BIAS_CHANNELS * (key_bias is not None)
    return run_for_target(
        query,
        key,
        value,
        allowed | ~allowed.any(axis=-1, keepdims=True),
        key_bias,
        loop=_masked_by_head,
        xla=_batched_masked,
        cudnn=fused.cudnn_masked_attention if fused.fits_cudnn(width, query.dtype, batch, keys) else None,
    )


def _batched_masked(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    allowed: Bool[Array, "batch queries keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    bias = None if key_bias is None else key_bias[:, None, None].astype(jnp.float32)
    return jax.nn.dot_product_attention(query, key, value, bias, allowed[:, None], implementation="xla")


def _masked_by_head(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    allowed: Bool[Array, "batch queries keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    width = query.shape[-1]
    bias = jnp.where(allowed, 0, -jnp.inf)
    if key_bias is not None:
        bias += key_bias[:, None]

    def one_head(inputs: tuple[Array, Array, Array]) -> Array:
        q, k, v = inputs
        logits = jnp.einsum("bnd,bmd->bnm", q * width**-0.5, k, preferred_element_type=jnp.float32) + bias
        weights = jnp.exp(logits - logits.max(axis=-1, keepdims=True))
        mixed = jnp.einsum("bnm,bmd->bnd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (mixed / weights.sum(axis=-1, keepdims=True)).astype(query.dtype)

    by_head = tuple(heads.transpose(2, 0, 1, 3) for heads in (query, key, value))
    return jax.lax.map(one_head, by_head).transpose(1, 2, 0, 3)


def sine_positions(grid: Grid, width: int) -> Float32[Array, "{grid[0]*grid[1]} {width}"]:
    """The sine encoding of the places of a map, float32 [H * W, width].

    The first half of the channels is the row's, the second the column's: counted from 1 and scaled so that the
    last one is 2 pi, times width / 4 frequencies, sine and cosine in turns.

    Source: facebookresearch/Mask2Former, mask2former/modeling/transformer_decoder/position_encoding.py.
    """
    height, columns = grid
    rows, across = (_sines(side, width // 2) for side in (height, columns))
    rows = jnp.broadcast_to(rows[:, None], (height, columns, width // 2))
    across = jnp.broadcast_to(across[None], (height, columns, width // 2))
    return jnp.concatenate([rows, across], axis=-1).reshape(height * columns, width)


def _sines(count: int, features: int) -> Float32[np.ndarray, "{count} {features}"]:
    places = np.arange(1, count + 1) / (count + 1e-6) * 2 * np.pi
    angles = places[:, None] / 10000 ** (2 * (np.arange(features) // 2) / features)
    return np.where(np.arange(features) % 2, np.cos(angles), np.sin(angles)).astype(np.float32)
