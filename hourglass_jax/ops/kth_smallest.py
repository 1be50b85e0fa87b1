"""The k-th smallest of many values, without sorting."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def kth_smallest(
    values: Float[Array, "batch among each"],
    k: int,
    low: Float[Array, "batch 1 each"],
    high: Float[Array, "batch 1 each"],
) -> Float[Array, "batch 1 each"]:
    """The k-th smallest value along the middle axis, or `high` where fewer than k values are within it.

    Non-negative floats have the same order as their bit patterns, so that bisection of the patterns finds the exact
    value. `jax.lax.top_k` takes 30 times as long on CPU (benchmarks/operators.py).

    Args:
        values: [B, M, N], not negative.
        k: from 1 to M.
        low: [B, 1, N], at most the k-th smallest.
        high: [B, 1, N], the limit of the search.

    Returns:
        [B, 1, N], without a gradient.
    """
    values, low, high = jax.lax.stop_gradient((values, low, high))
    integer = jnp.int64 if values.dtype == jnp.float64 else jnp.int32
    bits, low, high = (jax.lax.bitcast_convert_type(floats, integer) for floats in (values, low, high))

    def halve(bracket: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bracket
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle, axis=1, keepdims=True, dtype=jnp.int32) >= k
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    threshold, _ = jax.lax.while_loop(lambda bracket: jnp.any(bracket[0] < bracket[1]), halve, (low, high))
    return jax.lax.bitcast_convert_type(threshold, values.dtype)
