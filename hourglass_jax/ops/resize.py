"""Separable resizing with PyTorch's conventions, as two small static matrices."""

from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64

ResizeMethod = Literal[
    "bilinear", "bicubic", "bicubic-antialias", "bilinear-align-corners", "bicubic-align-corners"
]


def _cubic(distance: Float64[np.ndarray, "*any"], a: float) -> Float64[np.ndarray, "*any"]:
    x = np.abs(distance)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = a * (((x - 5) * x + 8) * x - 4)
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))


def _linear(distance: Float64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
    return np.maximum(0.0, 1 - np.abs(distance))


def resize_matrix(
    source: int, target: int, method: ResizeMethod, scale: float | None = None
) -> Float64[np.ndarray, "{target} {source}"]:
    """Interpolation along one axis as a matrix [target, source] whose rows sum to one.

    Args:
        source: number of input positions.
        target: number of output positions.
        method: "bilinear" and "bicubic" (a = -0.75) are `torch.nn.functional.interpolate` with
            align_corners=False and no antialiasing: positions outside repeat the border.
            "bicubic-antialias" is its antialias=True: a = -0.5, the kernel widened when shrinking, weights
            outside dropped. The methods with "-align-corners" map the first and last positions onto each other.
        scale: output positions per input position when it is not target / source: DINOv2's original code
            passes (target + 0.1) / source as `scale_factor`.
    """
    if source == target and method != "bicubic":
        return np.eye(source)  # PyTorch copies such an axis, whatever the scale
    scale = scale or target / source
    if method.endswith("-align-corners"):
        centres = np.arange(target) * ((source - 1) / max(target - 1, 1))
    else:
        centres = (np.arange(target) + 0.5) / scale - 0.5

    if method == "bicubic-antialias":
        widening = max(1.0, 1 / scale)
        weights = _cubic((np.arange(source) - centres[:, None]) / widening, a=-0.5)
        return weights / weights.sum(axis=1, keepdims=True)

    if method.startswith("bicubic"):
        reach, kernel = 2, lambda distance: _cubic(distance, a=-0.75)
    else:
        centres = np.clip(centres, 0, source - 1)
        reach, kernel = 1, _linear
    matrix = np.zeros((target, source))
    for row, centre in enumerate(centres):
        taps = int(np.floor(centre)) + np.arange(1 - reach, 1 + reach)
        np.add.at(matrix[row], np.clip(taps, 0, source - 1), kernel(taps - centre))
    return matrix


def resize(
    image: Float[Array | np.ndarray, "batch _ _ channels"],
    size: tuple[int, int],
    method: ResizeMethod,
    *,
    scale: tuple[float, float] | None = None,
) -> Float[Array, "batch {size[0]} {size[1]} channels"]:
    """Resizes the rows and columns of an image or feature map.

    Args:
        image: [B, H, W, C].
        size: (rows, columns) of the result.
        method: see `resize_matrix`.
        scale: see `resize_matrix`, one for rows and one for columns.

    Returns:
        [B, rows, columns, C] in the dtype of `image`; computed in float32 or wider.
    """
    image = jnp.asarray(image)
    if image.shape[1:3] == tuple(size) and scale is None:
        return image
    row_scale, column_scale = scale or (None, None)
    dtype = jnp.promote_types(image.dtype, jnp.float32)
    rows = resize_matrix(image.shape[1], size[0], method, row_scale)
    columns = resize_matrix(image.shape[2], size[1], method, column_scale)
    if method.startswith("bilinear"):
        # On CPU nine times as fast as matrix products, for a DPT's maps of 192 x 192 to 384 x 384 positions.
        resized = _interpolate(_interpolate(image.astype(dtype), rows, 1), columns, 2)
    else:
        resized = jnp.einsum("yh,bhwc->bywc", jnp.asarray(rows, dtype), image, precision="highest")
        resized = jnp.einsum("xw,bywc->byxc", jnp.asarray(columns, dtype), resized, precision="highest")
    return resized.astype(image.dtype)


def _interpolate(
    image: Float[Array, "batch _ _ channels"], matrix: Float64[np.ndarray, "target source"], axis: int
) -> Float[Array, "batch _ _ channels"]:
    """Applies a matrix [target, source] with at most two weights per row to an axis, by gathers."""
    first = np.argmax(matrix != 0, axis=1)
    second = matrix.shape[1] - 1 - np.argmax(matrix[:, ::-1] != 0, axis=1)
    shape = [-1 if place == axis else 1 for place in range(image.ndim)]
    share = jnp.asarray(matrix[np.arange(len(matrix)), first].reshape(shape), image.dtype)
    near, far = (jnp.take(image, places, axis=axis, mode="clip") for places in (first, second))
    return far + share * (near - far)
