"""Rotary position embedding on a grid (DINOv3): queries and keys are turned by angles that follow their places."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from hourglass_jax.ops.grids import Grid

Real = Array | np.ndarray


class Rotation(NamedTuple):
    """Cosines and sines of the angles of a sequence's tokens, float32 [1 or B, 1, D / 2, N]."""

    cosines: Float[Real, "batch 1 half tokens"]
    sines: Float[Real, "batch 1 half tokens"]


def rotation(
    positions: Float[Real, "batch tokens 2"], grid: Grid, *, width: int, base: float, special: int = 0
) -> Rotation:
    """The angles of tokens at positions on a grid.

    Rows and columns run from -1 to 1 over the area of the grid, each by itself. With f of the D / 4 frequencies
    base^(-4 i / D), the angles of a token are 2 pi f times its row, then 2 pi f times its column.

    Args:
        positions: [1 or B, M, 2], row and column, whole numbers at the places of the grid; static ones, in NumPy,
            have static angles.
        grid: (H, W).
        width: D, channels of a head, a multiple of four.
        base: of the frequencies, more than 0.
        special: S, tokens before the others that are not turned.

    Returns:
        A `Rotation` of S + M tokens.

    Source: facebookresearch/dinov3, dinov3/layers/rope_position_encoding.py (`normalize_coords="separate"`).
    """
    xp = np if isinstance(positions, np.ndarray) else jnp
    frequencies = 2 * np.pi * float(base) ** (-4 / width * np.arange(width // 4))
    coordinates = (2 * positions + 1) / np.asarray(grid, np.float32) - 1
    angles = xp.swapaxes(coordinates, 1, 2)[:, :, None] * frequencies.astype(np.float32)[:, None]
    angles = angles.reshape(len(positions), 1, width // 2, -1)
    angles = xp.pad(angles, ((0, 0), (0, 0), (0, 0), (special, 0)))
    return Rotation(xp.cos(angles), xp.sin(angles))


def rotate(x: Float[Array, "batch heads width tokens"], by: Rotation) -> Float[Array, "batch heads width tokens"]:
    """Queries or keys [B, heads, D, N], turned: channel i together with channel i + D / 2.

    Args:
        x: as above.
        by: of N tokens.

    Returns:
        As `x`, in its dtype; computed in float32 or wider.

    Source: facebookresearch/dinov3, dinov3/layers/attention.py (`rope_apply`).
    """
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=2)
    cosines, sines = by
    turned = jnp.concatenate([first * cosines - second * sines, second * cosines + first * sines], axis=2)
    return turned.astype(x.dtype)
