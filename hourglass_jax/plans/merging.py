"""What the two merging methods share: tokens that join others, and how all of them come back."""

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
    """Lets `count` of the tokens join others; see `ops.merging.match_tokens` and `merge_tokens`.

    They are restored by giving every token of the grid the value of its group: the places of all merges so far,
    composed.
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
