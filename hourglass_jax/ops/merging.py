"""Bipartite soft matching: similar tokens become one (Token Merging, arXiv 2210.09461)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

MEDOID_MARGIN = 1e-4
"""A token is the medoid in its partner's place only if it is nearer to the mean by more than this, relatively: two
tokens of one size are equally near to theirs, up to rounding."""


class Matching(NamedTuple):
    """Which of M tokens join which; M - r are left: those of the first half that stay, then the second half.

    Attributes:
        stay: [B, Ma - r], the tokens of the first half that join none.
        join: [B, r], those that join a partner.
        others: [Mb], the second half.
        partner: [B, r], whom `join` joins, as a place in `others`.
        place: [B, M], where every token is afterwards, 0 .. M - r - 1.
    """

    stay: jax.Array
    join: jax.Array
    others: np.ndarray
    partner: jax.Array
    place: jax.Array


def match_tokens(metric: jax.Array, merged: int, *, offset: int = 0, in_order: bool = True) -> Matching:
    """Splits tokens alternately; the most similar pairs between the halves are to merge.

    Every token of the first half has one candidate: the token of the second half whose metric has the largest
    cosine to its own. The pairs with the largest cosines merge, several into one partner where it so happens.

    Args:
        metric: [B, M, D], what is compared; cosines are computed in float32 or wider.
        merged: r, the number of tokens that join another: from one to as many as the first half has.
        offset: of the alternation: the first half is the even places of a sequence in which this many tokens that
            take no part come first.
        in_order: whether tokens of the first half that stay keep their order; otherwise the least similar to their
            candidates come last.

    Returns:
        A `Matching`.

    Source: facebookresearch/ToMe, tome/merge.py (`bipartite_soft_matching`).
    """
    batch, count, _ = metric.shape
    first, second = np.arange(offset % 2, count, 2), np.arange(1 - offset % 2, count, 2)
    metric = metric.astype(jnp.promote_types(metric.dtype, jnp.float32))
    metric = metric / jnp.maximum(jnp.linalg.norm(metric, axis=-1, keepdims=True), jnp.finfo(metric.dtype).tiny)
    cosines = jnp.einsum("bid,bjd->bij", metric[:, first], metric[:, second], precision="highest")
    candidate, best = jnp.argmax(cosines, axis=-1), jnp.max(cosines, axis=-1)

    order = jnp.argsort(-best, axis=-1)
    rank = jnp.argsort(order, axis=-1)
    join, stay = order[:, :merged], order[:, merged:]
    staying = len(first) - merged
    position = rank - merged
    if in_order:
        stay = jnp.sort(stay, axis=-1)
        position = jnp.cumsum(rank >= merged, axis=-1) - 1
    place_first = jnp.where(rank < merged, staying + candidate, position)
    place_second = jnp.broadcast_to(staying + np.arange(len(second)), (batch, len(second)))
    even, odd = (place_second, place_first) if offset % 2 else (place_first, place_second)
    odd = jnp.pad(odd, ((0, 0), (0, even.shape[1] - odd.shape[1])))
    return Matching(
        stay=jnp.take(first, stay),
        join=jnp.take(first, join),
        others=second,
        partner=jnp.take_along_axis(candidate, join, axis=-1),
        place=jnp.stack([even, odd], axis=-1).reshape(batch, -1)[:, :count],
    )


def merge_tokens(
    tokens: jax.Array, sizes: jax.Array, matching: Matching, *, value: Literal["mean", "medoid"] = "mean"
) -> tuple[jax.Array, jax.Array]:
    """Tokens and their sizes after a matching.

    Args:
        tokens: [B, M, C].
        sizes: [B, M], how many tokens each one stands for.
        matching: which join which.
        value: what a group becomes: "mean", weighted with the sizes, or "medoid", the member that is nearest to
            that mean.

    Returns:
        [B, M - r, C] in the dtype of `tokens`, and [B, M - r].

    Source: facebookresearch/ToMe, tome/merge.py (`merge_wavg`); the medoid is this library's.
    """
    wide = jnp.promote_types(tokens.dtype, jnp.float32)
    joining, joining_sizes = take(tokens, matching.join).astype(wide), take(sizes, matching.join)
    partners, partner_sizes = tokens[:, matching.others].astype(wide), sizes[:, matching.others]
    new_sizes = _add(partner_sizes, matching.partner, joining_sizes)
    total = _add(partner_sizes[..., None] * partners, matching.partner, joining_sizes[..., None] * joining)
    mean = total / new_sizes[..., None]
    groups = mean.astype(tokens.dtype)
    if value == "medoid":
        own = jnp.sum((partners - mean) ** 2, axis=-1)
        theirs = jnp.sum((joining - take(mean, matching.partner)) ** 2, axis=-1)
        members = matching.partner[:, None] == np.arange(len(matching.others))[:, None]
        distances = jnp.where(members, theirs[:, None], jnp.inf)
        nearest = jnp.take_along_axis(matching.join, jnp.argmin(distances, axis=-1), axis=-1)
        nearer = distances.min(axis=-1) < (1 - MEDOID_MARGIN) * own
        groups = take(tokens, jnp.where(nearer, nearest, matching.others))
    return (
        jnp.concatenate([take(tokens, matching.stay), groups], axis=1),
        jnp.concatenate([take(sizes, matching.stay), new_sizes], axis=1),
    )


def take(values: jax.Array, index: jax.Array) -> jax.Array:
    """Rows of [B, M] or [B, M, C] at the places [B, K] of every image."""
    return jnp.take_along_axis(values, index.reshape(*index.shape, *(1,) * (values.ndim - 2)), axis=1)


def _add(values: jax.Array, index: jax.Array, more: jax.Array) -> jax.Array:
    """Adds to the rows at the places [B, K] of every image."""
    return jax.vmap(lambda values, index, more: values.at[index].add(more))(values, index, more)
