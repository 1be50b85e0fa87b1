"""Bipartite soft matching: similar tokens become one (Token Merging, arXiv 2210.09461)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.targets import run_for_target

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

    stay: Int[Array, "batch staying"]
    join: Int[Array, "batch joining"]
    others: Int[np.ndarray, " others"]
    partner: Int[Array, "batch joining"]
    place: Int[Array, "batch tokens"]


def alternate(count: int, *, offset: int = 0) -> Bool[np.ndarray, " {count}"]:
    """The halves of `count` tokens of a sequence: every second token is of the second half.

    Args:
        count: M.
        offset: how many tokens of the sequence come before them and take no part.

    Returns:
        bool [M], true in the second half.

    Source: facebookresearch/ToMe, tome/merge.py (`bipartite_soft_matching`).
    """
    return (np.arange(count) + offset) % 2 == 1


def checkerboard(grid: Grid) -> Bool[np.ndarray, " tokens"]:
    """The halves of a grid (H, W) of tokens, row by row: neighbours in a row or column are of different halves.

    Where the columns are an odd number, this is `alternate`; where they are even, that would be stripes.

    Returns:
        bool [H*W], true in the second half.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    return (rows + columns) % 2 == 1


def match_tokens(
    metric: Float[Array, "batch tokens width"],
    merged: int,
    *,
    second: Bool[np.ndarray, " tokens"],
    in_order: bool = True,
) -> Matching:
    """Of two halves of the tokens, the most similar pairs between them are to merge.

    Every token of the first half has one candidate: the token of the second half whose metric has the largest
    cosine to its own. The pairs with the largest cosines merge, several into one partner where it so happens.

    Args:
        metric: [B, M, D], what is compared; cosines are computed in float32 or wider.
        merged: r, the number of tokens that join another: from one to as many as the first half has.
        second: bool [M], which tokens are of the second half (`alternate`, `checkerboard`).
        in_order: whether tokens of the first half that stay keep their order; otherwise the least similar to their
            candidates come last.

    Returns:
        A `Matching`.

    Source: facebookresearch/ToMe, tome/merge.py (`bipartite_soft_matching`).
    """
    first, second = np.flatnonzero(~second), np.flatnonzero(second)
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
    place_second = jnp.broadcast_to(staying + np.arange(len(second)), (metric.shape[0], len(second)))
    in_sequence = np.argsort(np.concatenate([first, second]))
    return Matching(
        stay=jnp.take(first, stay),
        join=jnp.take(first, join),
        others=second,
        partner=jnp.take_along_axis(candidate, join, axis=-1),
        place=jnp.concatenate([place_first, place_second], axis=1)[:, in_sequence],
    )


def merge_tokens(
    tokens: Float[Array, "batch tokens channels"],
    sizes: Float[Array, "batch tokens"],
    matching: Matching,
    *,
    value: Literal["mean", "medoid"] = "mean",
) -> tuple[Float[Array, "batch left channels"], Float[Array, "batch left"]]:
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


def take(
    values: Shaped[Array, "batch rows *channels"], index: Int[Array, "batch taken"]
) -> Shaped[Array, "batch taken *channels"]:
    """Rows of [B, M] or [B, M, C] at the places [B, K] of every image."""
    return jnp.take_along_axis(values, index.reshape(*index.shape, *(1,) * (values.ndim - 2)), axis=1)


def _add(
    values: Float[Array, "batch rows *channels"],
    index: Int[Array, "batch added"],
    more: Float[Array, "batch added *channels"],
) -> Float[Array, "batch rows *channels"]:
    """Adds to the rows at the places [B, K] of every image."""
    return run_for_target(values, index, more, loop=_add_by_scatter, xla=_add_by_product)


def _add_by_scatter(
    values: Float[Array, "batch rows *channels"],
    index: Int[Array, "batch added"],
    more: Float[Array, "batch added *channels"],
) -> Float[Array, "batch rows *channels"]:
    return jax.vmap(lambda values, index, more: values.at[index].add(more))(values, index, more)


def _add_by_product(
    values: Float[Array, "batch rows *channels"],
    index: Int[Array, "batch added"],
    more: Float[Array, "batch added *channels"],
) -> Float[Array, "batch rows *channels"]:
    """On accelerators a product with zeros and ones is cheaper than a scatter, and ONNX has no form for that."""
    places = (index[:, None] == np.arange(values.shape[1])[:, None]).astype(values.dtype)
    return values + jnp.einsum("bra,ba...->br...", places, more, precision="highest")
