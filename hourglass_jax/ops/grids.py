"""Static geometry of token grids and cluster grids: NumPy, evaluated during tracing."""

import math
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Float64, Int64

Grid = tuple[int, int]


def check_grid(name: str, grid: Any) -> Grid:
    """Returns `grid` as a pair of Python ints; raises ValueError unless it is two positive integers."""
    sides = tuple(grid) if isinstance(grid, (tuple, list)) else ()
    if len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
        raise ValueError(f"{name} must be two positive integers (rows, columns), got {grid!r}")
    return int(sides[0]), int(sides[1])


def check_tokens(name: str, tokens: jax.Array, grid: Grid | None = None) -> None:
    """Raises ValueError unless `tokens` is a floating [B, N, C] array with N = rows * columns of `grid`."""
    if tokens.ndim != 3:
        raise ValueError(f"{name} must have shape [batch, tokens, channels], got shape {tokens.shape}")
    if not np.issubdtype(tokens.dtype, np.floating) and tokens.dtype.name != "bfloat16":
        raise ValueError(f"{name} must be of a floating type, got {tokens.dtype}")
    if grid is not None and tokens.shape[1] != grid[0] * grid[1]:
        raise ValueError(
            f"{name} must hold {grid[0]} x {grid[1]} = {grid[0] * grid[1]} tokens, got {tokens.shape[1]}"
        )


def home_cells(tokens: int, cells: int) -> Int64[np.ndarray, " {tokens}"]:
    """The home cell of each of `tokens` positions along one axis: PyTorch's nearest interpolation.

    floor(position * float32(cells / tokens)) in float32, as `torch.nn.functional.interpolate` computes it;
    for a few sizes (44 tokens, 26 cells) this is not the integer quotient.

    Returns:
        int [tokens], non-decreasing, in 0 .. cells - 1.
    """
    scaled = np.arange(tokens, dtype=np.float32) * np.float32(cells / tokens)
    return np.minimum(scaled.astype(np.int64), cells - 1)


def pooling_taps(
    tokens: int, cells: int
) -> tuple[Int64[np.ndarray, "taps {cells}"], Float64[np.ndarray, "taps {cells}"]]:
    """Adaptive average pooling along one axis: the positions that each cell averages, and their weights.

    Cell i averages positions floor(i * tokens / cells) .. ceil((i + 1) * tokens / cells) - 1
    (`torch.nn.functional.adaptive_avg_pool2d`); neighbouring cells may share a position.

    Returns:
        positions: int [taps, cells]; cells of fewer positions than the largest repeat one, with weight zero.
        weights: [taps, cells], summing to one over the taps.
    """
    start, stop = np.arange(cells) * tokens // cells, -(-np.arange(1, cells + 1) * tokens // cells)
    positions = start + np.arange((stop - start).max())[:, None]
    return np.minimum(positions, tokens - 1), (positions < stop) / (stop - start)


def grid_positions(grid: Grid, cells: Grid) -> Float32[np.ndarray, "cells 2"]:
    """The positions of the cells of a coarser grid on a grid that covers the same area.

    Args:
        grid: (H, W).
        cells: (h, w).

    Returns:
        float32 [h*w, 2]: row and column of every cell's centre, row by row; integers if both grids are equal.
    """
    rows, columns = ((np.arange(few) + 0.5) * (side / few) - 0.5 for side, few in zip(grid, cells, strict=True))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def pooled_positions(grid: Grid, cells: Grid) -> Float32[np.ndarray, "cells 2"]:
    """The mean row and column of the positions that adaptive average pooling assigns to every cell.

    Args:
        grid: (H, W).
        cells: (h, w).

    Returns:
        float32 [h*w, 2], row by row.
    """
    rows, columns = ((taps * weights).sum(axis=0) for taps, weights in map(pooling_taps, grid, cells))
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), axis=-1).reshape(-1, 2).astype(np.float32)


def shrink_grid(grid: Grid, share: float) -> Grid:
    """The grid with approximately this share of the positions and the same aspect ratio; at least 1 x 1.

    >>> shrink_grid((37, 37), 0.5)
    (26, 26)
    """
    rows, columns = (max(1, round(side * share**0.5)) for side in grid)
    return rows, columns


def fit_clusters(clusters: Grid, grid: Grid, other: Grid) -> Grid:
    """The cluster grid for the token grid `other` with the share of tokens that `clusters` has on `grid`.

    >>> fit_clusters((10, 10), (20, 20), (40, 30))
    (20, 15)
    """
    return shrink_grid(other, min(1.0, math.prod(clusters) / math.prod(grid)))
