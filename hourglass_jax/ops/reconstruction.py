"""The token reconstruction layer: from refined clusters to the full token grid (arXiv 2210.01035, equation 4)."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hourglass_jax.ops.clustering import Temperature, resolve_temperature
from hourglass_jax.ops.grids import Grid, check_tokens
from hourglass_jax.ops.kth_smallest import kth_smallest


def reconstruct_tokens(
    refined: Float[Array, "batch clusters refined_channels"],
    *,
    tokens: Float[Array, "batch tokens channels"],
    clusters: Float[Array, "batch clusters channels"],
    neighbors: int = 20,
    temperature: Temperature = 50.0,
    normalize: Literal["sum", "l2"] = "sum",
    token_grid: Grid | None = None,
) -> Float[Array, "batch tokens refined_channels"]:
    """Reconstructs every token as a weighted mean of the refined clusters that were nearest before the refinement.

    The weights of token p are proportional to exp(-||z_p - s_i||^2 / temperature) over its `neighbors` nearest
    clusters s_i; clusters tied with the last of them are included.

    Args:
        refined: [B, M, Cr], the values to spread: clusters after further blocks, or their class logits.
        tokens: [B, N, C], the tokens z that were clustered.
        clusters: [B, M, C], the clusters s, the output of `cluster_tokens`.
        neighbors: k; more than M means all clusters.
        temperature: tau, as in `cluster_tokens`.
        normalize: "sum" makes the weights of a token sum to one (equation 4); "l2" gives them unit Euclidean norm,
            as the official code does.
        token_grid: (H, W), required for temperature="auto" only.

    Returns:
        [B, N, Cr] in the dtype of `refined`. Distances and weights are computed in float32 or wider.

    Raises:
        ValueError: an option is out of range, or the shapes do not fit each other.

    Source: Expedit-Segmenter, mmseg/ops/reconstruction.py (`TokenReconstructionBlock`).

    The first two tokens are equal to a cluster, the last one lies halfway between both:

    >>> clusters, tokens = jnp.array([[[0.0], [8.0]]]), jnp.array([[[0.0], [8.0], [4.0]]])
    >>> refined = jnp.array([[[10.0], [20.0]]])
    >>> reconstruct_tokens(refined, tokens=tokens, clusters=clusters, temperature=1.0).ravel().tolist()
    [10.0, 20.0, 15.0]
    """
    if not isinstance(neighbors, (int, np.integer)) or neighbors < 1:
        raise ValueError(f"neighbors must be a positive integer, got {neighbors!r}")
    if normalize not in ("sum", "l2"):
        raise ValueError(f"normalize must be 'sum' or 'l2', got {normalize!r}")
    distances = _squared_distances(refined, tokens, clusters, token_grid)
    tau = resolve_temperature(temperature, tokens, token_grid)

    nearest = jnp.min(distances, axis=1, keepdims=True)
    weights = jnp.exp((nearest - distances) / tau[:, None, None])
    if neighbors < clusters.shape[1]:
        # Beyond this, all weights together are less than the rounding error of the nearest cluster's.
        negligible = tau * np.log(clusters.shape[1] / jnp.finfo(distances.dtype).eps)
        limit = nearest + negligible[:, None, None]
        weights = jnp.where(distances <= kth_smallest(distances, neighbors, nearest, limit), weights, 0)
    scale = weights.sum(axis=1) if normalize == "sum" else jnp.sqrt(jnp.sum(weights**2, axis=1))
    spread = jnp.einsum("bmn,bmc->bnc", weights, refined.astype(weights.dtype), precision="highest")
    return (spread / scale[..., None]).astype(refined.dtype)


def unpool_tokens(
    refined: Float[Array, "batch clusters refined_channels"],
    *,
    tokens: Float[Array, "batch tokens channels"],
    clusters: Float[Array, "batch clusters channels"],
) -> Float[Array, "batch tokens refined_channels"]:
    """Reconstructs every token as the refined cluster that was nearest: the hard baseline for the reconstruction.

    Args:
        refined: [B, M, Cr].
        tokens: [B, N, C].
        clusters: [B, M, C], before the refinement.

    Returns:
        [B, N, Cr] in the dtype of `refined`.

    Raises:
        ValueError: the shapes do not fit each other.
    """
    nearest = jnp.argmin(_squared_distances(refined, tokens, clusters), axis=1)
    return jnp.take_along_axis(refined, nearest[..., None], axis=1)


def _squared_distances(
    refined: Float[Array, "batch clusters refined_channels"],
    tokens: Float[Array, "batch tokens channels"],
    clusters: Float[Array, "batch clusters channels"],
    token_grid: Grid | None = None,
) -> Float[Array, "batch clusters tokens"]:
    """||z_p - s_i||^2 as [B, M, N], at least 0; raises ValueError if the shapes do not fit each other."""
    check_tokens("refined", refined)
    check_tokens("tokens", tokens, token_grid)
    check_tokens("clusters", clusters)
    if (tokens.shape[0], tokens.shape[2]) != (clusters.shape[0], clusters.shape[2]):
        raise ValueError(
            f"tokens and clusters must agree in batch and channels, got {tokens.shape} and {clusters.shape}"
        )
    if refined.shape[:2] != clusters.shape[:2]:
        raise ValueError(
            f"refined and clusters must agree in batch and number, got {refined.shape} and {clusters.shape}"
        )
    dtype = jnp.promote_types(jnp.promote_types(tokens.dtype, clusters.dtype), jnp.float32)
    z, s = tokens.astype(dtype), clusters.astype(dtype)
    offset = z.mean(axis=1, keepdims=True)
    z, s = z - offset, s - offset
    products = jnp.einsum("bmc,bnc->bmn", s, z, precision="highest")
    squares = jnp.sum(s**2, axis=-1)[:, :, None] + jnp.sum(z**2, axis=-1)[:, None, :]
    return jnp.maximum(squares - 2 * products, 0)
