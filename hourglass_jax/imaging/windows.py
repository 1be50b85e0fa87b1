"""Sliding windows: an image is cut into overlapping squares, and their maps are averaged where they overlap.

Windows, bilinear upsampling, averaging and the resize to the photograph's size are linear and separable: all
windows of a row have the same rows. So the whole merge is one matrix for the rows of the windows' coarse maps and
one for their columns, and windows are never upsampled one by one.

Source: rstrudel/segmenter, segm/model/utils.py (resize, sliding_window, merge_windows).
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import check_enlargement, resampled
from hourglass_jax.ops.resize import ResizeMethod, resize_matrix

TILE = 256
"""Side in pixels of the tiles that are merged at once: logits of all classes for a whole photograph are large."""


class Layout(NamedTuple):
    """The layout of the views of an image.

    Attributes:
        image: (rows, columns) of the image in pixels.
        view: (rows, columns) of every view in pixels.
        tops: the first row of each row of views.
        lefts: the first column of each column of views.
    """

    image: tuple[int, int]
    view: tuple[int, int]
    tops: tuple[int, ...]
    lefts: tuple[int, ...]


@dataclass(frozen=True)
class SlidingWindow:
    """Square windows of `size` pixels; the last one of a row ends with the image.

    Attributes:
        size: of a side, in pixels.
        stride: how far they are apart, in pixels; None for as few of them as cover the image, evenly spread.

    Raises:
        ValueError: a field is not positive, or windows would leave gaps.
    """

    size: int
    stride: int | None

    def __post_init__(self) -> None:
        check_config(self, zero=("size", "stride"))
        if not 1 <= (self.size if self.stride is None else self.stride) <= self.size:
            raise ValueError(f"stride must lie in 1..size, got stride {self.stride} and size {self.size}")

    def cut(self, image: np.ndarray) -> tuple[np.ndarray, Layout]:
        """Cuts an image into windows; one whose shorter side is less than `size` is enlarged (bilinearly) before.

        Args:
            image: float [rows, columns, channels].

        Returns:
            The windows, [n, size, size, channels], row by row, and their layout.
        """
        image = _enlarge(image, self.size)
        tops, lefts = (self._anchors(length) for length in image.shape[:2])
        windows = [image[y : y + self.size, x : x + self.size] for y in tops for x in lefts]
        return np.stack(windows), Layout(image.shape[:2], (self.size, self.size), tops, lefts)

    def _anchors(self, length: int) -> tuple[int, ...]:
        last = length - self.size
        if self.stride is None:
            gaps = -(-last // self.size)
            return tuple(index * last // max(1, gaps) for index in range(gaps + 1))
        return (*range(0, last, self.stride), last)


def whole_view(image: np.ndarray, multiple: int = 1) -> tuple[np.ndarray, Layout]:
    """The image as its own only view: [1, rows, columns, channels] and its layout.

    Its sides are filled up to multiples of `multiple` pixels with zeros, on the right and below.
    """
    layout = whole_layout(image.shape[:2])
    rows, columns = (side + -side % multiple for side in layout.image)
    missing = (rows - image.shape[0], columns - image.shape[1], *(0,) * (image.ndim - 2))
    filled = np.pad(image, [(0, count) for count in missing])
    return filled[None], layout._replace(view=(rows, columns))


def whole_layout(size: tuple[int, int]) -> Layout:
    """The layout of an image of `size` = (rows, columns) as a single view."""
    return Layout(size, size, (0,), (0,))


def merge(
    maps: np.ndarray | jax.Array,
    layout: Layout,
    size: tuple[int, int],
    *,
    cell: int,
    resampling: ResizeMethod = "bilinear",
    decide: Callable[[jax.Array], jax.Array],
) -> np.ndarray:
    """Merges the coarse maps of the views of a photograph into one map.

    Args:
        maps: [n, h, w, C], maps of the views in the order of their layout; a view was padded at the bottom and on
            the right to h * cell x w * cell pixels.
        layout: layout of the views.
        size: (rows, columns) of the photograph in pixels.
        cell: stride of the maps in pixels.
        resampling: how the merged map is resized to the photograph.
        decide: [rows, columns, C] -> [rows, columns], the decision for every pixel; a function that can be
            compiled, the same object every time.

    Returns:
        [rows, columns], the output of `decide`.
    """
    _, h, w, channels = maps.shape
    rows = _weights(layout.image[0], layout.view[0], layout.tops, h, cell, size[0], resampling)
    columns = _weights(layout.image[1], layout.view[1], layout.lefts, w, cell, size[1], resampling)
    grid = jnp.asarray(maps).reshape(len(layout.tops), len(layout.lefts), h, w, channels)
    grid = grid.swapaxes(1, 2).reshape(rows.shape[1], columns.shape[1], channels)
    merged = [np.concatenate([_tile(grid, y, x, decide) for x in _tiles(columns)], axis=1) for y in _tiles(rows)]
    return np.concatenate(merged)[: len(rows), : len(columns)]


@partial(jax.jit, static_argnames="decide")
def _tile(grid: jax.Array, rows: jax.Array, columns: jax.Array, decide: Callable) -> jax.Array:
    return decide(jnp.einsum("yh,hwc,xw->yxc", rows, grid, columns, precision="highest"))


def _tiles(weights: np.ndarray) -> list[np.ndarray]:
    """Tiles of `TILE` rows; the last one is padded, so that one compiled function fits photographs of any size."""
    filled = np.pad(weights, ((0, -len(weights) % TILE), (0, 0)))
    return list(filled.reshape(-1, TILE, weights.shape[1]))


def _weights(
    image: int,
    view: int,
    anchors: tuple[int, ...],
    positions: int,
    cell: int,
    target: int,
    resampling: ResizeMethod,
) -> np.ndarray:
    """Weights of the positions of the views' maps for every pixel of the photograph, along one axis.

    float32 [target, views * positions], rows sum to one.
    """
    upsampling = resize_matrix(positions, positions * cell, "bilinear")[:view]
    weights = np.zeros((image, len(anchors), positions))
    for index, anchor in enumerate(anchors):
        weights[anchor : anchor + view, index] += upsampling
    weights /= weights.sum(axis=(1, 2), keepdims=True)
    resized = resize_matrix(image, target, resampling) @ weights.reshape(image, -1)
    return resized.astype(np.float32)


def _enlarge(image: np.ndarray, least: int) -> np.ndarray:
    rows, columns = image.shape[:2]
    shorter = min(rows, columns)
    if shorter >= least:
        return image
    height, width = (int(side / shorter * least) if side != shorter else least for side in (rows, columns))
    check_enlargement((rows, columns), (height, width))
    return resampled(image, (height, width), "bilinear")
