"""Shared by the two merging methods: merging tokens, and restoring the full grid."""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.ops.merging import match_tokens, merge_tokens, take
from hourglass_jax.plans.base import Tokens


def merge(
    tokens: Tokens,
    metric: jax.Array,
    count: int,
    *,
    second: np.ndarray,
    value: Literal["mean", "medoid"] = "mean",
    in_order: bool = True,
) -> Tokens:
    """Merges `count` tokens into others; see `ops.merging.match_tokens` and `merge_tokens`.

    Restoration gives every token of the grid the value of its group: the composition of all merges so far.
    """
    with jax.named_scope("clustering"):
        matching = match_tokens(metric, count, second=second, in_order=in_order)
        sizes = jnp.ones(metric.shape[:2], jnp.float32) if tokens.sizes is None else tokens.sizes
        values, new_sizes = merge_tokens(tokens.values, sizes, matching, value=value)
        positions, _ = merge_tokens(jnp.broadcast_to(tokens.positions, (*sizes.shape, 2)), sizes, matching)
        group = tokens.restore(matching.place[..., None])[..., 0]
    return tokens.with_values(
        values, positions=positions, restore=lambda restored: take(restored, group), sizes=new_sizes
    )
