"""Shared by the two pruning methods: dropping tokens, and restoring them."""

from typing import Literal

import jax
import jax.numpy as jnp

from hourglass_jax.ops.clustering import resolve_temperature
from hourglass_jax.ops.merging import take
from hourglass_jax.ops.reconstruction import reconstruct_tokens
from hourglass_jax.plans.base import Tokens

Restore = Literal["reconstruction", "reuse"]
NEIGHBORS = (3, 5, 10, 20, 50)
"""Values of k, of the reconstruction, that the tuner tries."""


def select(
    tokens: Tokens,
    scores: jax.Array,
    count: int,
    *,
    restore: Restore = "reconstruction",
    neighbors: int = 20,
    temperature: float | Literal["auto"] = "auto",
) -> tuple[Tokens, jax.Array]:
    """Keeps the `count` tokens with the highest scores, in their order.

    Args:
        tokens: tokens, of which M are image tokens.
        scores: [B, M].
        count: number of tokens to keep.
        restore: how dropped tokens are restored. "reconstruction" interpolates them from the kept ones by eq. 4,
            with weights from the features at the time of dropping; "reuse" returns the features themselves as they
            were at that time, and cannot restore other values.
        neighbors: k of eq. 4.
        temperature: tau of eq. 4, or "auto": `ops.auto_temperature` of consecutive tokens.

    Returns:
        The kept tokens, and the indices [B, M - count] of the dropped ones. If tokens are appended later,
        restoration uses the first `count` only.
    """
    values = tokens.values
    with jax.named_scope("clustering"):
        order = jnp.argsort(-scores, axis=-1)
        kept, dropped = (jnp.sort(part, axis=-1) for part in (order[:, :count], order[:, count:]))
        place = jnp.argsort(jnp.concatenate([kept, dropped], axis=-1), axis=-1)
        near, far = take(values, kept), take(values, dropped)
        positions = take(jnp.broadcast_to(tokens.positions, (*scores.shape, 2)), kept)

    def spread(refined: jax.Array) -> jax.Array:
        refined = refined[:, :count]
        with jax.named_scope("reconstruction"):
            if restore == "reuse":
                if refined.shape[-1] != far.shape[-1]:
                    raise ValueError(
                        f"restore='reuse' restores features of {far.shape[-1]} channels, got {refined.shape[-1]}"
                    )
                back = far.astype(refined.dtype)
            else:
                tau = resolve_temperature(temperature, values, (1, values.shape[1]))
                back = reconstruct_tokens(refined, tokens=far, clusters=near, neighbors=neighbors, temperature=tau)
            return tokens.restore(take(jnp.concatenate([refined, back], axis=1), place))

    return tokens.with_values(near, positions=positions, restore=spread, sizes=None), dropped
