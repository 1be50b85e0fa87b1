"""Bipartite soft matching: merging similar tokens (Token Merging, arXiv 2210.09461)."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Shaped

from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.targets import run_for_target

MEDOID_MARGIN = 1e-4
"""A token replaces its partner as the medoid only if it is nearer to the mean by this relative margin: two tokens
of equal sizes have the same distance to their mean, up to rounding."""


class Matching(NamedTuple):
    """The pairs of M tokens to merge into M - r: unmerged tokens of the first half, then the second half.

    Attributes:
        stay: [B, Ma - r], indices of the tokens of the first half that do not merge.
        join: [B, r], indices of the tokens of the first half that merge into a partner.
        others: [Mb], indices of the second half.
        partner: [B, r], the partners of `join`, as indices into `others`.
        place: [B, M], the index of every token after merging, 0 .. M - r - 1.
    """

    stay: Int[Array, "batch staying"]
    join: Int[Array, "batch joining"]
    others: Int[np.ndarray, " others"]
    partner: Int[Array, "batch joining"]
    place: Int[Array, "batch tokens"]


def alternate(count: int, *, offset: int = 0) -> Bool[np.ndarray, " {count}"]:
    """Splits `count` tokens of a sequence into halves: every second token is in the second half.

    Args:
        count: M.
        offset: number of tokens before them in the sequence, which do not merge.

    Returns:
        bool [M], true in the second half.

    Source: facebookresearch/ToMe, tome/merge.py (`bipartite_soft_matching`).
    """
    return (np.arange(count) + offset) % 2 == 1


def checkerboard(grid: Grid) -> Bool[np.ndarray, " tokens"]:
    """Splits a grid (H, W) of tokens into halves: neighbours in a row or column are in different halves.

    For an odd number of columns this is `alternate`, which would make stripes for an even number.

    Returns:
        bool [H*W], true in the second half.
    """
    rows, columns = np.indices(grid).reshape(2, -1)
    return (rows + columns) % 2 == 1


def match_tokens(
    metric: Float[Array, "batch tokens width"],
    count: int,
    *,
    second: Bool[np.ndarray, " tokens"],
    in_order: bool = True,
) -> Matching:
    """Chooses the most similar pairs between two halves of the tokens.

    Every token of the first half has one candidate: the token of the second half with the largest cosine of their
    metrics. The pairs with the largest cosines merge; several tokens may merge into the same partner.

    Args:
        metric: [B, M, D], the features to compare; cosines are computed in float32 or wider.
        count: r, the number of tokens to merge, from one to the size of the first half.
        second: bool [M], the tokens of the second half (`alternate`, `checkerboard`).
        in_order: whether unmerged tokens of the first half keep their order; otherwise they are sorted by
            decreasing similarity to their candidates.

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
    join, stay = order[:, :count], order[:, count:]
    staying = len(first) - count
    position = rank - count
    if in_order:
        stay = jnp.sort(stay, axis=-1)
        position = jnp.cumsum(rank >= count, axis=-1) - 1
    place_first = jnp.where(rank < count, staying + candidate, position)
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
    """Merges tokens by a matching.

    Args:
        tokens: [B, M, C].
        sizes: [B, M], number of members of each token.
        matching: the pairs to merge.
        value: value of a group: "mean", weighted by the sizes, or "medoid", the member nearest to that mean.

    Returns:
        Tokens [B, M - r, C] in the dtype of `tokens`, and their sizes [B, M - r].

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
    """Gathers rows of [B, M] or [B, M, C] at the indices [B, K] of every image."""
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
