"""Windows of a feature map as a batch of small images, optionally shifted, and their relative positions."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32, Int64, Shaped

from hourglass_jax.ops.grids import Grid


def window_grid(grid: Grid, window: int) -> Grid:
    """Number of windows of `window` x `window` tokens that cover a map, down and across."""
    return -(-grid[0] // window), -(-grid[1] // window)


def partition(
    image: Float[Array, "batch rows columns channels"], window: int, shift: int = 0
) -> Float[Array, "windows {window**2} channels"]:
    """Cuts a feature map into windows, which become images of the batch.

    The map is padded with zeros at the bottom and on the right to multiples of the window; then it is rolled up and
    to the left by `shift`, which moves the windows `shift` tokens down and to the right.

    Args:
        image: [B, H, W, C].
        window: side of a window in tokens.
        shift: shift in tokens, less than `window`.

    Returns:
        [B * windows, window^2, C]; the windows of an image and the tokens of a window are sorted row by row.

    Source: SwinTransformer/Swin-Transformer-Object-Detection, mmdet/models/backbones/swin_transformer.py.
    """
    batch, height, width, channels = image.shape
    down, across = window_grid((height, width), window)
    image = jnp.pad(image, ((0, 0), (0, down * window - height), (0, across * window - width), (0, 0)))
    if shift:
        image = jnp.roll(image, (-shift, -shift), axis=(1, 2))
    windows = image.reshape(batch, down, window, across, window, channels).swapaxes(2, 3)
    return windows.reshape(batch * down * across, window**2, channels)


def merge(
    windows: Shaped[Array, "windows {window**2} channels"], grid: Grid, window: int, shift: int = 0
) -> Shaped[Array, "batch {grid[0]} {grid[1]} channels"]:
    """The inverse of `partition`: [B * windows, window^2, C] -> [B, H, W, C] with (H, W) = `grid`."""
    down, across = window_grid(grid, window)
    image = windows.reshape(-1, down, across, window, window, windows.shape[-1]).swapaxes(2, 3)
    image = image.reshape(-1, down * window, across * window, windows.shape[-1])
    if shift:
        image = jnp.roll(image, (shift, shift), axis=(1, 2))
    return image[:, : grid[0], : grid[1]]


def shifted_regions(grid: Grid, window: int, shift: int) -> Int32[np.ndarray, "windows {window**2}"]:
    """The region of every token in the windows of a shifted map: tokens of different regions must not mix.

    The last window of a row or column contains tokens from both ends of the map.

    Returns:
        int32 [windows, window^2].
    """
    down, across = window_grid(grid, window)

    def of_axis(count: int) -> np.ndarray:
        position = np.arange(count * window).reshape(count, window)
        return (position >= (count - 1) * window).astype(np.int32) + (position >= count * window - shift)

    rows, columns = of_axis(down)[:, None, :, None], of_axis(across)[None, :, None, :]
    return (3 * rows + columns).reshape(down * across, window**2)


def relative_positions(window: int) -> Int64[np.ndarray, "{window**2} {window**2}"]:
    """The index of the offset of every pair of tokens of a window in a table of all offsets.

    Returns:
        int [window^2, window^2]; entry (p, q) is (dy + window - 1) * (2 window - 1) + dx + window - 1 for the
        offset (dy, dx) from q to p.
    """
    y, x = np.divmod(np.arange(window**2), window)
    rows, columns = y[:, None] - y + window - 1, x[:, None] - x + window - 1
    return rows * (2 * window - 1) + columns
