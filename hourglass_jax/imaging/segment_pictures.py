"""Pictures of segments and instances: on their photograph, each with its name, and as COCO's map of numbers."""

import colorsys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from hourglass_jax.imaging.label_pictures import label_overlay
from hourglass_jax.imaging.labels import Color
from hourglass_jax.imaging.pictures import text_line

ALIKE = 90.0
"""Colours of neighbours are at least so far apart, if that can be had (Euclidean, in 0..255)."""
SAME = 40.0
"""Those of any two regions, likewise."""


class Region(NamedTuple):
    """A segment to draw.

    Attributes:
        mask: bool [rows, columns], of the photograph or of a part of it.
        text: its name in the legend, with its score.
        color: of its class: red, green and blue in 0..255.
        is_thing: things are named in the picture too, and have colours that tell them from others of their class.
        corner: (row, column) of the mask's first pixel in the photograph.
    """

    mask: np.ndarray
    text: str
    color: Color
    is_thing: bool
    corner: tuple[int, int] = (0, 0)


def encode_ids(segments: np.ndarray) -> np.ndarray:
    """COCO's picture of a panoptic map: number = red + 256 green + 65536 blue, uint8 [rows, columns, 3]."""
    return np.stack([segments >> shift & 255 for shift in (0, 8, 16)], axis=-1).astype(np.uint8)


def segment_overlay(photo: np.ndarray, regions: Sequence[Region]) -> np.ndarray:
    """Draws regions over their photograph, with outlines, names of things, and a legend on the right.

    What belongs to no region is left as it is.

    Where regions overlap, the first one lies on top.

    Args:
        photo: uint8 [H, W, 3].
        regions: that lie inside of it.

    Returns:
        uint8 [rows, columns, 3]; the photograph lies at the top left, see `label_overlay`.
    """
    height, width = photo.shape[:2]
    numbers = np.zeros((height, width), np.int32)
    for number, region in reversed([*enumerate(regions, start=1)]):
        (top, left), (below, right) = region.corner, np.add(region.corner, region.mask.shape)
        numbers[top:below, left:right][region.mask] = number
    colors = [None, *_told_apart(numbers, regions)]
    picture = label_overlay(photo, numbers, ["nothing", *(region.text for region in regions)], colors)
    canvas = Image.fromarray(picture)
    draw = ImageDraw.Draw(canvas, "RGBA")
    rows, columns = photo.shape[:2]
    size = max(11, min(rows, columns) // 36)
    for number, region in enumerate(regions, start=1):
        visible = numbers == number
        line = text_line(region.text, size, (255, 255, 255))
        if region.is_thing and visible.sum() >= 2 * line.width * line.height:
            row, column = _middle(visible)
            left = min(max(0, column - line.width // 2), max(0, columns - line.width))
            top = min(max(0, row - line.height // 2), max(0, rows - line.height))
            box = (left - 2, top, left + line.width + 1, top + line.height)
            draw.rectangle(box, fill=(0, 0, 0, 150))
            draw.text((left, top + line.height // 2), line.text, fill=line.color, font=line.font, anchor="lm")
    return np.array(canvas)


def _eight_bits(red: float, green: float, blue: float) -> Color:
    return round(255 * red), round(255 * green), round(255 * blue)


def _told_apart(numbers: np.ndarray, regions: Sequence[Region]) -> list[Color]:
    """A colour for every region: its class's, unless a neighbour has one like it or any region the same."""
    neighbours = _neighbours(numbers, len(regions))
    palette: list[Color] = [
        _eight_bits(*colorsys.hsv_to_rgb(step / 12, saturation, value))
        for saturation, value in ((0.85, 0.95), (0.55, 0.7))
        for step in range(12)
    ]
    chosen: list[Color] = []
    for number, region in enumerate(regions):
        near = [color for other, color in enumerate(chosen) if neighbours[number + 1, other + 1]]

        def apart(color: Color, /, near: Sequence[Color] = near) -> tuple[float, float]:
            return min(_distance(color, near), 2 * ALIKE), _distance(color, chosen)

        to_neighbours, to_all = apart(region.color)
        is_kept = to_neighbours >= ALIKE and to_all >= SAME
        chosen.append(region.color if is_kept else max(palette, key=apart))
    return chosen


def _distance(color: Color, others: Sequence[Color]) -> float:
    """From the nearest of other colours."""
    return min((float(np.linalg.norm(np.subtract(color, each))) for each in others), default=np.inf)


def _neighbours(numbers: np.ndarray, count: int) -> np.ndarray:
    """Adjacency of regions, bool [count + 1, count + 1]."""
    touching = np.zeros((count + 1, count + 1), bool)
    for before, after in ((numbers[:-1], numbers[1:]), (numbers[:, :-1], numbers[:, 1:])):
        differs = before != after
        touching[before[differs], after[differs]] = True
    return touching | touching.T


def _middle(mask: np.ndarray) -> tuple[int, int]:
    """A pixel (row, column) of a mask that is far from its border."""
    step = max(1, max(mask.shape) // 96)
    inner = np.pad(mask[step // 2 :: step, step // 2 :: step], 1)
    if not inner.any():
        rows, columns = np.nonzero(mask)
        return int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
    while True:
        smaller = inner.copy()
        smaller[1:-1, 1:-1] &= inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
        if not smaller.any():
            rows, columns = np.nonzero(inner)
            place = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
            return int(rows[place] - 1) * step + step // 2, int(columns[place] - 1) * step + step // 2
        inner = smaller
