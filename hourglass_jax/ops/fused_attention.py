"""Attention for accelerators: all heads at once, without their logits in memory where a kernel is there for it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.cudnn import fused_attention_stablehlo as cudnn
from jax._src.lib import cuda_versions
from jaxtyping import Array, Bool, Float, Int

LANES = 128
"""A TPU's: a head of the flash kernel is filled up to so many channels, and its tokens to so many."""
WIDEST_HEAD = 128
"""Channels of a head that cuDNN takes on every GPU that it has fused attention for."""
QUERY_BLOCK = 256
"""Queries that the flash kernel handles at once."""
KEY_BLOCK = 2048
"""Keys that it handles at once, at most: their logits stay on the chip."""
SHORT_SEQUENCE = 256
"""Up to so many keys the logits are no larger than the heads that a TPU fills up for the kernel."""
BIAS_CHANNELS = 2
"""Of a head, which hold the bias of its keys; see `with_key_bias`."""
REGIONS = 9
"""Of a shifted map; see `ops.windows.shifted_regions`."""


def batched_attention(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    """`ops.attention.attention` by XLA alone, with the logits of all heads in float32."""
    bias = None if key_bias is None else key_bias[:, None, None, :].astype(jnp.float32)
    query, key, value = (x.transpose(0, 3, 1, 2) for x in (query, key, value))
    return jax.nn.dot_product_attention(query, key, value, bias=bias, implementation="xla")


def fits_cudnn(width: int, dtype: jnp.dtype, *sides: object) -> bool:
    """Whether cuDNN has a fused attention for heads of `width` channels, with those of a bias, and these sides.

    It has one for 16 bits, heads that are not too wide and sides that are known.
    """
    is_half = dtype in (jnp.bfloat16, jnp.float16)
    return is_half and width <= WIDEST_HEAD and all(isinstance(side, int) for side in sides)


def cudnn_attention(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    """`ops.attention.attention` by cuDNN.

    It refuses a bias of keys alone, [B, 1, 1, M]: that goes into the heads (`with_key_bias`).
    """
    width = query.shape[2]
    query, key, value = (x.transpose(0, 3, 1, 2) for x in (query, key, value))
    query, key = with_key_bias(query, key, key_bias, scale=width**-0.5)
    return _run_cudnn(query, key, value, scale=width**-0.5)


def _run_cudnn(query: jax.Array, key: jax.Array, value: jax.Array, *, scale: float, **settings: Any) -> jax.Array:
    """cuDNN's attention [B, N, heads, D] of queries, keys and values whose heads are filled up as it wants them."""
    if cuda_versions is None:
        # JAX asks this machine for its cuDNN while it traces. Where there is none, the code is for another one.
        cudnn.check_cudnn_version = lambda: 0
    wide = -(-max(query.shape[-1], value.shape[-1]) // 8) * 8
    filled = (_pad(x, axis=-1, length=wide) for x in (query, key, value))
    mixed = jax.nn.dot_product_attention(*filled, scale=scale, implementation="cudnn", **settings)
    return mixed[..., : value.shape[-1]]


def fits_flash(keys: int, dtype: jnp.dtype, *sides: object) -> bool:
    """Whether the flash kernel pays for so many keys, and takes arrays of this type and these sides."""
    known = all(isinstance(side, int) for side in sides)
    return known and keys > SHORT_SEQUENCE and dtype in (jnp.bfloat16, jnp.float32)


def flash_attention(
    query: Float[Array, "batch heads width queries"],
    key: Float[Array, "batch heads width keys"],
    value: Float[Array, "batch heads width keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    """`ops.attention.attention` by the flash kernel for TPUs that comes with JAX.

    Queries and keys are filled up to whole blocks; the bias of the keys that are none is the lowest number.
    """
    from jax.experimental.pallas.ops.tpu import flash_attention as flash

    batch, _, width, queries = query.shape
    keys = key.shape[-1]
    blocks = -(-keys // KEY_BLOCK)
    block_k = _up(-(-keys // blocks), LANES)
    all_queries, all_keys = _up(queries, LANES), blocks * block_k
    if key_bias is None and all_keys > keys:
        key_bias = jnp.zeros((batch, keys), jnp.float32)
    if key_bias is not None:
        key_bias = _pad(key_bias, axis=1, length=all_keys, value=-jnp.inf)

    query, key, value = (x.transpose(0, 3, 1, 2) for x in (query, key, value))
    query = _pad(query, axis=1, length=all_queries)
    key, value = (_pad(x, axis=1, length=all_keys) for x in (key, value))
    query, key = with_key_bias(query, key, key_bias, scale=width**-0.5)
    wide = _up(query.shape[-1], LANES)
    by_head = (_pad(x, axis=-1, length=wide).transpose(0, 2, 1, 3) for x in (query, key, value))
    sizes = flash.BlockSizes(
        block_q=min(QUERY_BLOCK, all_queries),
        block_k_major=block_k,
        block_k=block_k,
        block_b=1,
        # Of its gradient, whose blocks must divide the sides.
        **dict.fromkeys(("block_q_major_dkv", "block_k_major_dkv", "block_k_dkv", "block_q_dkv"), LANES),
        **dict.fromkeys(("block_k_major_dq", "block_k_dq", "block_q_dq"), LANES),
    )
    mixed = flash.flash_attention(*by_head, sm_scale=width**-0.5, block_sizes=sizes)
    return mixed[:, :, :queries, :width].swapaxes(1, 2)


def with_key_bias(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    key_bias: Float[Array, "batch keys"] | None,
    *,
    scale: float,
) -> tuple[Float[Array, "batch queries heads wider"], Float[Array, "batch keys heads wider"]]:
    """Queries and keys whose products hold the bias: two more channels, [q, 1, 1] and [k, high, low].

    High and low are the parts of bias / scale that fit into eight binary digits each, so that the bias is exact to
    2^-16 of itself also in 16 bits, and where a product of float32 is computed in bfloat16.

    Args:
        query: [B, N, heads, D].
        key: [B, M, heads, D].
        key_bias: [B, M], at least -infinity; None adds no channels.
        scale: what the products are multiplied with.

    Returns:
        [B, N, heads, D + 2] and [B, M, heads, D + 2].
    """
    if key_bias is None:
        return query, key
    lowest = float(jnp.finfo(key.dtype).min) / 2
    scaled = jnp.maximum(key_bias.astype(jnp.float32) / scale, lowest)
    high = jax.lax.reduce_precision(scaled, exponent_bits=8, mantissa_bits=7)
    channels = jnp.stack([high, scaled - high], axis=-1).astype(key.dtype)
    ones = jnp.ones((*query.shape[:3], BIAS_CHANNELS), query.dtype)
    channels = jnp.broadcast_to(channels[:, :, None], (*key.shape[:3], BIAS_CHANNELS))
    return jnp.concatenate([query, ones], axis=-1), jnp.concatenate([key, channels], axis=-1)


def cudnn_window_attention(
    query: Float[Array, "windows tokens heads width"],
    key: Float[Array, "windows tokens heads width"],
    value: Float[Array, "windows tokens heads width"],
    bias: Float[Array, "heads tokens tokens"],
    regions: Int[Array, "windows tokens"] | None,
) -> Float[Array, "windows tokens heads width"]:
    """`ops.attention.window_attention` by cuDNN.

    Less 100 for pairs in different regions is, for the softmax, 100 more for those in the same one: a product of
    channels that say which region a token is of. So all windows share one bias.
    """
    if regions is not None:
        own = jax.nn.one_hot(regions, REGIONS, dtype=query.dtype)[:, :, None]
        own = jnp.broadcast_to(own, (*query.shape[:3], REGIONS))
        query, key = jnp.concatenate([query, own], axis=-1), jnp.concatenate([key, 100 * own], axis=-1)
    return _run_cudnn(query, key, value, bias=bias[None].astype(query.dtype), scale=1.0)


def cudnn_masked_attention(
    query: Float[Array, "batch queries heads width"],
    key: Float[Array, "batch keys heads width"],
    value: Float[Array, "batch keys heads width"],
    allowed: Bool[Array, "batch queries keys"],
    key_bias: Float[Array, "batch keys"] | None,
) -> Float[Array, "batch queries heads width"]:
    """`ops.masked_attention.masked_attention` by cuDNN; every query may read something."""
    scale = query.shape[-1] ** -0.5
    query, key = with_key_bias(query, key, key_bias, scale=scale)
    return _run_cudnn(query, key, value, mask=allowed[:, None], scale=scale)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple


def _pad(x: jax.Array, *, axis: int, length: int, value: float = 0) -> jax.Array:
    """An array filled up at the end of an axis."""
    if x.shape[axis] == length:
        return x
    widths = np.zeros((x.ndim, 2), int)
    widths[axis, 1] = length - x.shape[axis]
    return jnp.pad(x, widths, constant_values=value)
