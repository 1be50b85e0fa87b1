"""What the two pruning methods share: tokens that are dropped, and how they come back."""

from typing import Literal

import jax
import jax.numpy as jnp

from hourglass_jax.ops.clustering import resolve_temperature
from hourglass_jax.ops.merging import take
from hourglass_jax.ops.reconstruction import reconstruct_tokens
from hourglass_jax.plans.base import Tokens

Restore = Literal["reconstruction", "reuse"]
NEIGHBORS = (3, 5, 10, 20, 50)
"""What the tuner tries of the k of the reconstruction."""


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
        tokens: of which M are left.
        scores: [B, M].
        count: how many to keep.
        restore: how dropped tokens come back. "reconstruction" spreads the kept ones over them by eq. 4, with the
            features of the moment when they were dropped; "reuse" returns those features themselves, and so can
            restore nothing but features.
        neighbors: k of eq. 4.
        temperature: tau of eq. 4, or "auto": `ops.auto_temperature` of tokens that follow one another.

    Returns:
        The tokens, and the places [B, M - count] of those that were dropped. Restored values of more than `count`
        tokens are of others that came to them since: only the first `count` are spread.
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
