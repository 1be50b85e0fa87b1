"""The paper's baselines without parameters (Tables 4 and 5)."""

import functools

import jax.numpy as jnp
from jaxtyping import Array, Float

from hourglass_jax.ops.grids import Grid, check_grid, check_tokens, pooling_taps
from hourglass_jax.ops.resize import resize


def pool_tokens(
    tokens: Float[Array, "batch tokens channels"], *, token_grid: Grid, cluster_grid: Grid
) -> Float[Array, "batch clusters channels"]:
    """Adaptive average pooling of a token grid; also the initial centres of `cluster_tokens`.

    Args:
        tokens: [B, H*W, C], row by row.
        token_grid: (H, W).
        cluster_grid: (h, w).

    Returns:
        [B, h*w, C] in the dtype of `tokens`.

    Raises:
        ValueError: the shapes and grids do not fit each other.
    """
    height, width = check_grid("token_grid", token_grid)
    rows, columns = check_grid("cluster_grid", cluster_grid)
    check_tokens("tokens", tokens, (height, width))
    batch, _, channels = tokens.shape
    image = tokens.reshape(batch, height, width, channels).astype(jnp.promote_types(tokens.dtype, jnp.float32))
    pooled = _pool_axis(_pool_axis(image, 1, rows), 2, columns)
    return pooled.reshape(batch, rows * columns, channels).astype(tokens.dtype)


def _pool_axis(
    image: Float[Array, "batch rows columns channels"], axis: int, cells: int
) -> Float[Array, "batch pooled_rows pooled_columns channels"]:
    """Sums over the few positions of a cell; a matrix product takes five times as long, mostly for transposes."""
    following = (1,) * (image.ndim - axis - 1)
    terms = (
        jnp.take(image, positions, axis=axis, mode="clip") * weights.reshape(-1, *following).astype(image.dtype)
        for positions, weights in zip(*pooling_taps(image.shape[axis], cells), strict=True)
    )
    return functools.reduce(jnp.add, terms)


def upsample_tokens(
    clusters: Float[Array, "batch clusters channels"], *, cluster_grid: Grid, token_grid: Grid
) -> Float[Array, "batch tokens channels"]:
    """Bilinear upsampling (half-pixel centres) of a cluster grid: the baseline for the reconstruction.

    Args:
        clusters: [B, h*w, C], row by row.
        cluster_grid: (h, w).
        token_grid: (H, W).

    Returns:
        [B, H*W, C] in the dtype of `clusters`.

    Raises:
        ValueError: the shapes and grids do not fit each other.
    """
    rows, columns = check_grid("cluster_grid", cluster_grid)
    height, width = check_grid("token_grid", token_grid)
    check_tokens("clusters", clusters, (rows, columns))
    batch, _, channels = clusters.shape
    image = resize(clusters.reshape(batch, rows, columns, channels), (height, width), "bilinear")
    return image.reshape(batch, height * width, channels)
