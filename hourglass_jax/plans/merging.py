"""What the two merging methods share: tokens that join others, and how all of them come back."""

from typing import Literal

import jax
import jax.numpy as jnp

from hourglass_jax.ops.merging import match_tokens, merge_tokens, take
from hourglass_jax.plans.base import Tokens


def merged(
    tokens: Tokens,
    metric: jax.Array,
    count: int,
    *,
    value: Literal["mean", "medoid"] = "mean",
    offset: int = 0,
    in_order: bool = True,
) -> Tokens:
    """The tokens after `count` of them joined others; see `ops.merging.match_tokens` and `merge_tokens`.

    They are restored by giving every token of the grid the value of its group: the places of all merges so far,
    composed.
    """
    with jax.named_scope("clustering"):
        matching = match_tokens(metric, count, offset=offset, in_order=in_order)
        sizes = jnp.ones(metric.shape[:2], jnp.float32) if tokens.sizes is None else tokens.sizes
        values, sizes = merge_tokens(tokens.values, sizes, matching, value=value)
        group = tokens.restore(matching.place[..., None])[..., 0]
    return Tokens(values, lambda restored: take(restored, group), sizes)
