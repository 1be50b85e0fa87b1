"""The parameter-free baselines that the paper compares with (Tables 4 and 5)."""

import jax
import jax.numpy as jnp

from hourglass_jax.ops.grids import Grid, check_grid, check_tokens, pooling_matrix
from hourglass_jax.ops.resize import resize


def pool_tokens(tokens: jax.Array, *, token_grid: Grid, cluster_grid: Grid) -> jax.Array:
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
    image = tokens.reshape(batch, height, width, channels)
    dtype = jnp.promote_types(tokens.dtype, jnp.float32)
    pooled = jnp.einsum("ih,bhwc->biwc", pooling_matrix(height, rows).astype(dtype), image, precision="highest")
    pooled = jnp.einsum("jw,biwc->bijc", pooling_matrix(width, columns).astype(dtype), pooled, precision="highest")
    return pooled.reshape(batch, rows * columns, channels).astype(tokens.dtype)


def upsample_tokens(clusters: jax.Array, *, cluster_grid: Grid, token_grid: Grid) -> jax.Array:
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
