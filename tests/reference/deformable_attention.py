"""Deformable attention's sampling, written plainly: loops over everything, float64."""

import math
from collections.abc import Sequence

import numpy as np


def interpolated(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """The value of an image [H, W, D] at column `x` and row `y`, real numbers; zeros surround it."""
    height, width, channels = image.shape
    value = np.zeros(channels)
    for row in (math.floor(y), math.floor(y) + 1):
        for column in (math.floor(x), math.floor(x) + 1):
            if 0 <= row < height and 0 <= column < width:
                value += (1 - abs(row - y)) * (1 - abs(column - x)) * image[row, column]
    return value


def sample_values(values: Sequence[np.ndarray], locations: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Values [B, H, W, heads, D] of levels at locations [B, N, heads, levels, points, 2], summed by weights."""
    batch, queries, heads, levels, points = weights.shape
    result = np.zeros((batch, queries, heads, values[0].shape[-1]))
    for b, n, h, level, p in np.ndindex(batch, queries, heads, levels, points):
        image = values[level][b, :, :, h].astype(np.float64)
        x, y = locations[b, n, h, level, p].astype(np.float64) * (image.shape[1], image.shape[0]) - 0.5
        result[b, n, h] += weights[b, n, h, level, p] * interpolated(image, x, y)
    return result
