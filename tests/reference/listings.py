"""Listings 1 and 2 of arXiv 2210.01035 in float64, whole arrays at a time as there.

What a listing leaves open is an argument. `teu` is its name for the temperature, which Listing 1 divides by and
Listing 2 multiplies by.
"""

import numpy as np
from numpy.typing import ArrayLike

Array = np.ndarray


def token_clustering_layer(
    features: ArrayLike, cluster_features: ArrayLike, mask: Array, *, num_iters: int, teu: float
) -> Array:
    """Listing 1 from its line 15 on.

    Args:
        features: [B, H*W, C].
        cluster_features: [B, h*w, C], what `interpolate` of the listing makes of them.
        mask: [h*w, H*W], True where a token may join a cluster, what `calculate_mask` makes.
        num_iters: kappa.
        teu: divides the distances.

    Returns:
        [B, h*w, C].
    """
    features, clusters = np.asarray(features, np.float64), np.asarray(cluster_features, np.float64)
    remote = 1e16 * ~mask
    for _ in range(num_iters):
        distances = squared_distances(clusters, features) + remote
        logits = -distances / teu
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        weights = weights / weights.sum(axis=1, keepdims=True)
        weights = weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-16)
        clusters = weights @ features
    return clusters


def token_reconstruction_layer(
    cluster_features: ArrayLike,
    features_before_clustering: ArrayLike,
    features_after_clustering: ArrayLike,
    *,
    k: int,
    teu: float,
) -> Array:
    """Listing 2.

    Args:
        cluster_features: [B, h*w, C], the clusters after the beta blocks.
        features_before_clustering: [B, H*W, C], the tokens.
        features_after_clustering: [B, h*w, C], the clusters before the beta blocks; the listing's comment has
            H*W for h*w, which `weight` contradicts.
        k: number of clusters whose weight remains, and those that are equal to the last of them.
        teu: multiplies the distances.

    Returns:
        [B, H*W, C].
    """
    distances = squared_distances(features_before_clustering, features_after_clustering)
    weights = np.exp(-teu * distances)
    smallest = np.sort(weights, axis=2)[:, :, -k, None]
    weights = weights * (weights >= smallest)
    weights = weights / np.maximum(weights.sum(axis=2, keepdims=True), 1e-16)
    return weights @ np.asarray(cluster_features, np.float64)


def squared_distances(rows: ArrayLike, columns: ArrayLike) -> Array:
    """[B, M, C] and [B, N, C] to [B, M, N]: what equations 3 and 4 have for the listings' `L2_distance`."""
    rows, columns = np.asarray(rows, np.float64), np.asarray(columns, np.float64)
    return np.sum((rows[:, :, None] - columns[:, None]) ** 2, axis=-1)
