"""The token clustering layer: local soft k-means on a grid of tokens (arXiv 2210.01035, equations 2 and 3).

A token can join only the window x window clusters around its home cell, so most of the h*w distances are not
needed. The cluster grid is divided into square tiles, each with the rectangle of tokens that can reach it
(`ops.tiling`). An iteration is two batched matrix products over the tiles, with a softmax over the window^2
candidates in between. The tokens are rearranged once, before the iterations.
"""

from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hourglass_jax.ops.grids import Grid, check_grid, check_tokens
from hourglass_jax.ops.pooling import pool_tokens
from hourglass_jax.ops.tiling import Tiling

Temperature = float | Literal["auto"] | Float[Array | np.ndarray, "..."]
Representative = Literal["mean", "medoid"]


def cluster_tokens(
    tokens: Float[Array, "batch tokens channels"],
    *,
    token_grid: Grid,
    cluster_grid: Grid,
    window: int = 5,
    iterations: int = 5,
    temperature: Temperature = 50.0,
    representative: Representative = "mean",
) -> Float[Array, "batch clusters channels"]:
    """Turns H*W tokens into h*w clusters.

    The centres s start as the adaptive average pooling of the tokens z. Each iteration computes, for every token p,
    Q_pi = softmax over its candidates i of -||z_p - s_i||^2 / temperature, and sets
    s_i = sum_p Q_pi z_p / max(sum_p Q_pi, 1e-16).

    Args:
        tokens: [B, H*W, C], row by row; no class or register tokens.
        token_grid: (H, W).
        cluster_grid: (h, w); a side may exceed that of the token grid.
        window: side of the square of clusters around its home cell that a token may join (lambda = window^2); odd.
        iterations: kappa, number of k-means iterations; 0 returns the average pooling.
        temperature: tau, in units of squared feature distance (the official code multiplies by 1/tau); "auto" is
            `auto_temperature`; an array [B] has one temperature per image.
        representative: "mean" is the paper's. "medoid" replaces every centre by the nearest token among those that
            can join it.

    Returns:
        [B, h*w, C] in the dtype of `tokens`. Distances and softmax are computed in float32 or wider.

    Raises:
        ValueError: an option is out of range, or the shapes and grids do not fit each other.

    Source: Expedit-Segmenter, mmseg/ops/cluster.py (`TokenClusteringBlock`).

    Pooling mixes the two values of these 4 x 4 tokens, clustering does not:

    >>> tokens = jnp.array([[0.0, 0, 0, 9]] * 4).reshape(1, 16, 1)
    >>> pooled = cluster_tokens(tokens, token_grid=(4, 4), cluster_grid=(2, 2), iterations=0)
    >>> pooled.ravel().tolist()
    [0.0, 4.5, 0.0, 4.5]
    >>> clusters = cluster_tokens(tokens, token_grid=(4, 4), cluster_grid=(2, 2), temperature=1.0)
    >>> clusters.ravel().round(3).tolist()
    [0.0, 9.0, 0.0, 9.0]
    """
    token_grid, cluster_grid = check_grid("token_grid", token_grid), check_grid("cluster_grid", cluster_grid)
    check_tokens("tokens", tokens, token_grid)
    if not isinstance(window, (int, np.integer)) or window < 1 or window % 2 == 0:
        raise ValueError(f"window must be a positive odd integer, got {window!r}")
    if not isinstance(iterations, (int, np.integer)) or iterations < 0:
        raise ValueError(f"iterations must be a non-negative integer, got {iterations!r}")
    if representative not in ("mean", "medoid"):
        raise ValueError(f"representative must be 'mean' or 'medoid', got {representative!r}")

    z = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    tau = resolve_temperature(temperature, z, token_grid)
    # A common offset does not change distances; without it they lose fewer digits.
    offset = z.mean(axis=1, keepdims=True)
    z = z - offset

    tiling = Tiling.build(token_grid, cluster_grid, window)
    z_tiles = tiling.split_tokens(z)
    centers = tiling.split_clusters(pool_tokens(z, token_grid=token_grid, cluster_grid=cluster_grid))

    def iterate(_: jax.Array | int, centers: jax.Array) -> jax.Array:
        # ||z||^2 is the same for all candidates of a token, and cancels in the softmax.
        affinity = 2 * _products(z_tiles, centers) - jnp.sum(centers**2, axis=-1)[:, :, None]
        weights = tiling.softmax(affinity, tau)
        mass = weights.sum(axis=2)[..., None]
        floored = jnp.maximum(mass, 1e-16)
        total = jnp.einsum("btpi,btpc->btic", weights, z_tiles, precision="highest")
        # By equation 3 a cluster without mass is zero, before the offset is subtracted.
        return total / floored + (mass / floored - 1) * offset[:, None]

    centers = jax.lax.fori_loop(0, iterations, iterate, centers)
    clusters = (centers + offset[:, None]).astype(tokens.dtype)
    if representative == "medoid":
        squares = tiling.split_tokens(jnp.sum(z**2, axis=-1, keepdims=True))
        clusters = _medoids(tiling, tokens, squares - 2 * _products(z_tiles, centers), clusters)
    return tiling.merge_clusters(clusters)


def auto_temperature(tokens: Float[Array, "batch tokens channels"], token_grid: Grid) -> Float[Array, " batch"]:
    """0.05 times the mean squared distance between horizontally and vertically adjacent tokens, per image.

    The temperature is a squared feature distance, whose scale differs between backbones, blocks and images: this
    value adapts to it.

    Args:
        tokens: [B, H*W, C].
        token_grid: (H, W).

    Returns:
        [B], float32 or wider, positive (a constant image gets the resolution of its features' precision).

    >>> tokens = jnp.array([0.0, 1, 2, 3]).reshape(1, 4, 1)
    >>> print(auto_temperature(tokens, (1, 4)))
    [0.05]
    """
    height, width = check_grid("token_grid", token_grid)
    check_tokens("tokens", tokens, (height, width))
    batch, _, channels = tokens.shape
    z = tokens.astype(jnp.promote_types(tokens.dtype, jnp.float32))
    z = (z - z.mean(axis=1, keepdims=True)).reshape(batch, height, width, channels)
    down, across = z[:, 1:] - z[:, :-1], z[:, :, 1:] - z[:, :, :-1]
    # Rows of many channels first: XLA adds them with vectors on CPU, single numbers one after another.
    squares = jnp.sum(down**2, axis=(1, 2)).sum(axis=-1) + jnp.sum(across**2, axis=(1, 2)).sum(axis=-1)
    pairs = (height - 1) * width + height * (width - 1)
    # Differences of tokens are not resolved below eps times their size.
    resolution = jnp.finfo(z.dtype).eps ** 2 * (1 + jnp.mean(tokens.astype(z.dtype) ** 2, axis=1).sum(axis=-1))
    return jnp.maximum(0.05 * squares / max(pairs, 1), resolution)


def resolve_temperature(
    temperature: Temperature, tokens: Float[Array, "batch tokens channels"], token_grid: Grid | None
) -> Float[Array, " batch"]:
    """The temperature of every image as an array [B]; raises ValueError for a bad one."""
    if isinstance(temperature, str):
        if temperature != "auto":
            raise ValueError(f"temperature must be a positive number or 'auto', got {temperature!r}")
        if token_grid is None:
            raise ValueError("temperature='auto' needs token_grid, the (rows, columns) of the tokens; got None")
        return auto_temperature(tokens, token_grid)
    if isinstance(temperature, (int, float, np.number)) and not (np.isfinite(temperature) and temperature > 0):
        raise ValueError(f"temperature must be a positive number or 'auto', got {temperature!r}")
    if np.shape(temperature) not in ((), tokens.shape[:1]):
        raise ValueError(
            f"temperature must be one number or one per image [{tokens.shape[0]}], got {np.shape(temperature)}"
        )
    dtype = jnp.promote_types(tokens.dtype, jnp.float32)
    return jnp.broadcast_to(jnp.asarray(temperature, dtype), tokens.shape[:1])


def _products(
    z_tiles: Float[Array, "batch tiles span2 channels"], centers: Float[Array, "batch tiles side2 channels"]
) -> Float[Array, "batch tiles span2 side2"]:
    return jnp.einsum("btpc,btic->btpi", z_tiles, centers, precision="highest")


def _medoids(
    tiling: Tiling,
    tokens: Float[Array, "batch tokens channels"],
    distances: Float[Array, "batch tiles span2 side2"],
    clusters: Float[Array, "batch tiles side2 channels"],
) -> Float[Array, "batch tiles side2 channels"]:
    """Replaces every cluster by the token nearest to its centre among those that can join it, if any."""
    nearest = jnp.argmin(jnp.where(tiling.is_candidate, distances, jnp.inf), axis=2)
    index = jnp.take_along_axis(jnp.asarray(tiling.positions)[None], nearest, axis=2)
    medoids = jnp.take_along_axis(tokens, index.reshape(tokens.shape[0], -1, 1), axis=1).reshape(clusters.shape)
    return jnp.where(np.any(tiling.is_candidate, axis=1)[..., None], medoids, clusters)
