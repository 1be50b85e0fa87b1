"""All masks of a photograph, from a grid of points: the rules by which answers are kept.

Source: facebookresearch/segment-anything, segment_anything/automatic_mask_generator.py and utils/amg.py.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

import numpy as np

from hourglass_jax.imaging.labels import palette
from hourglass_jax.imaging.segment_pictures import Region, segment_overlay
from hourglass_jax.metrics.run_lengths import decode_runs, encode_runs, run_lengths
from hourglass_jax.tasks.base import Rendering, image_id

EDGE = 20
"""Pixels: a box so near to the edge of a crop is taken for one that the crop cuts."""
Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels."""


@dataclass(frozen=True)
class AutomaticSettings:
    """Which points are asked about, and which answers are kept.

    Attributes:
        points: of the grid, along a side.
        batch_size: points that are asked about at once.
        quality: what the model's own estimate of a mask's overlap with the truth must exceed.
        stability: the least overlap of the masks at the two thresholds.
        offset: of the thresholds of a mask's logits, above and below 0, whose masks are compared.
        box_overlap: of two boxes; the worse mask of a pair that exceeds it is dropped.
        crop_layers: how often the photograph is cut, into 4, 16, ... crops, each of which is encoded on its own.
        crop_overlap: by which crops overlap, as a share of the shorter side.
        crop_box_overlap: of boxes of different crops; the mask of the smaller crop is kept.
        crop_downscale: what the points along a side are divided by for each layer of crops.
        least_region: pixels: smaller holes are filled, and smaller islands are dropped; 0 leaves them.
    """

    points: int = 32
    batch_size: int = 64
    quality: float = 0.88
    stability: float = 0.95
    offset: float = 1.0
    box_overlap: float = 0.7
    crop_layers: int = 0
    crop_overlap: float = 512 / 1500
    crop_box_overlap: float = 0.7
    crop_downscale: int = 1
    least_region: int = 0

    def check(self) -> None:
        """Raises ValueError if a value is out of range."""
        for name, least, most in (
            ("points", 1, 1024),
            ("batch_size", 1, 4096),
            ("crop_layers", 0, 6),
            ("crop_downscale", 1, 1024),
            ("least_region", 0, math.inf),
        ):
            value = getattr(self, name)
            if not isinstance(value, int) or not least <= value <= most:
                limit = f"at least {least}" if most == math.inf else f"in {least}..{most}"
                raise ValueError(f"{name} must be an integer {limit}, got {value!r}")
        for name in ("quality", "stability", "offset", "box_overlap", "crop_overlap", "crop_box_overlap"):
            value = getattr(self, name)
            if not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a number of at least 0, got {value!r}")
        if self.crop_overlap >= 1:
            raise ValueError(f"crop_overlap must be less than 1, got {self.crop_overlap}")


class AutomaticMask(NamedTuple):
    """A mask that was kept.

    Attributes:
        runs: the run lengths of the mask, column by column, outside first.
        size: (rows, columns) of the photograph.
        box: left, top, right and bottom; the last two are those of the mask's last pixels.
        quality: the model's own estimate of its overlap with the truth.
        stability: the overlap of the masks at the two thresholds.
        point: x and y that were asked about, in pixels.
        crop: left, top, right and bottom of the crop that it was found in.
    """

    runs: np.ndarray
    size: tuple[int, int]
    box: Box
    quality: float
    stability: float
    point: tuple[float, float]
    crop: Box

    @property
    def area(self) -> int:
        """Of the mask, in pixels."""
        return int(self.runs[1::2].sum())

    def mask(self) -> np.ndarray:
        """bool [rows, columns]"""
        return decode_runs(self.runs, self.size)

    def with_mask(self, mask: np.ndarray) -> "AutomaticMask":
        """The same with another mask."""
        return self._replace(runs=run_lengths(mask), box=box_of(mask))


def grid_points(count: int) -> np.ndarray:
    """`count` x `count` points (x, y) in 0..1, x fastest: the middles of as many cells. float64 [count^2, 2]."""
    places = (np.arange(count) + 0.5) / count
    x, y = np.meshgrid(places, places)
    return np.stack([x.ravel(), y.ravel()], axis=-1)


def crop_boxes(size: tuple[int, int], layers: int, overlap: float) -> list[tuple[Box, int]]:
    """The photograph, and the crops of every layer: left, top, right and bottom, and the number of the layer.

    Layer i has 2^i crops along each side; the photograph itself is layer 0.
    """
    rows, columns = size
    found: list[tuple[Box, int]] = [((0, 0, columns, rows), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(rows, columns) * (2 / count))
        width, height = (math.ceil((shared * (count - 1) + side) / count) for side in (columns, rows))
        lefts, tops = ([int((side - shared) * place) for place in range(count)] for side in (width, height))
        found += [
            ((left, top, min(left + width, columns), min(top + height, rows)), layer)
            for left, top in product(lefts, tops)
        ]
    return found


def box_of(mask: np.ndarray) -> Box:
    """The first and last columns and rows of a mask; zeros of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    return int(columns[0]), int(rows[0]), int(columns[-1]), int(rows[-1])


def is_cut(box: Box, crop: Box, size: tuple[int, int]) -> bool:
    """Whether a box of the photograph ends near an edge of its crop that is none of the photograph."""
    whole = (0, 0, size[1], size[0])
    return any(
        abs(side - edge) <= EDGE < abs(side - outer) for side, edge, outer in zip(box, crop, whole, strict=True)
    )


def keep_best(boxes: np.ndarray, scores: np.ndarray, most: float) -> np.ndarray:
    """Which boxes are left if none may overlap a better one by more than `most`, the best first.

    Args:
        boxes: [N, 4], left, top, right and bottom; areas are those of the coordinates.
        scores: [N]; of equals the first is better.
        most: intersection over union.

    Returns:
        int [kept].

    Source: torchvision, torchvision/csrc/ops/cpu/nms_kernel.cpp.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left = np.argsort(-np.asarray(scores), kind="stable")
    kept = []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        shared = np.maximum(high - low, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):
            overlaps = shared / (areas[best] + areas[left] - shared)
        left = left[~(overlaps > most)]
    return np.array(kept, int)


def select(masks: Sequence[AutomaticMask], most: float) -> list[AutomaticMask]:
    """The masks of one crop whose boxes do not overlap that of a better one by more than `most`, the best first."""
    kept = keep_best(np.array([each.box for each in masks]), np.array([each.quality for each in masks]), most)
    return [masks[place] for place in kept]


def select_among_crops(masks: Sequence[AutomaticMask], most: float) -> list[AutomaticMask]:
    """Likewise among crops; that of the smaller crop is better."""
    areas = np.array(
        [(right - left) * (bottom - top) for left, top, right, bottom in (each.crop for each in masks)]
    )
    kept = keep_best(np.array([each.box for each in masks]), 1 / areas if len(areas) else areas, most)
    return [masks[place] for place in kept]


def without_small_regions(masks: Sequence[AutomaticMask], least: int, most: float) -> list[AutomaticMask]:
    """Masks whose small holes are filled and whose small islands are dropped; those that it changed come last.

    Args:
        masks: of a photograph.
        least: pixels of a region that stays.
        most: the overlap of boxes beyond which the later mask is dropped; those that did not change come first.
    """
    changed, boxes, scores = [], [], []
    for each in masks:
        mask, is_filled = remove_small(each.mask(), least, holes=True)
        mask, is_thinned = remove_small(mask, least, holes=False)
        changed.append(each.with_mask(mask) if is_filled or is_thinned else each)
        boxes.append(box_of(mask))
        scores.append(not (is_filled or is_thinned))
    return [changed[place] for place in keep_best(np.array(boxes), np.array(scores, float), most)]


def remove_small(mask: np.ndarray, least: int, *, holes: bool) -> tuple[np.ndarray, bool]:
    """Fills the holes, or drops the islands, that are smaller than `least` pixels; if all islands are, one stays.

    Args:
        mask: bool [rows, columns].
        least: in pixels.
        holes: which of the two.

    Returns:
        The mask, and whether it is another one.
    """
    labels, sizes = connected_regions(mask != holes)
    small = np.flatnonzero(sizes < least) + 1
    if not len(small):
        return mask, False
    if holes:
        return mask | np.isin(labels, small), True
    kept = np.flatnonzero(sizes >= least) + 1
    return np.isin(labels, kept if len(kept) else [np.argmax(sizes) + 1]), True


def connected_regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The regions of a mask, whose pixels touch along sides or at corners.

    Args:
        mask: bool [rows, columns].

    Returns:
        int32 [rows, columns], 0 outside and 1, 2, ... of each region, in the order of their first pixels; and their
        sizes in pixels.
    """
    rows, columns = mask.shape
    padded = np.zeros((rows, columns + 2), np.int8)
    padded[:, 1:-1] = mask
    steps = np.diff(padded, axis=1)
    row, start = np.nonzero(steps == 1)
    _, stop = np.nonzero(steps == -1)
    first = np.searchsorted(row, np.arange(rows + 1))
    parents = list(range(len(row)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    for below in range(1, rows):
        above, end, here = first[below - 1], first[below], first[below]
        while above < end and here < first[below + 1]:
            if start[above] <= stop[here] and start[here] <= stop[above]:
                a, b = root(above), root(here)
                parents[max(a, b)] = min(a, b)
            if stop[above] < stop[here]:
                above += 1
            else:
                here += 1
    roots = np.array([root(run) for run in range(len(row))], int)
    _, numbers = np.unique(roots, return_inverse=True)
    lengths = stop - start
    labels = np.zeros(mask.shape, np.int32)
    labels[mask] = np.repeat(numbers + 1, lengths)
    return labels, np.bincount(numbers, lengths, minlength=0).astype(int)


def render(photo: np.ndarray, masks: Sequence[AutomaticMask]) -> Rendering:
    """COCO's form of the masks, and all of them on the photograph, the small ones on top."""
    colors = palette(len(masks) + 1)[1:]
    by_area = sorted(zip(masks, colors, strict=True), key=lambda pair: pair[0].area)
    regions = [Region(mask.mask(), f"{mask.quality:.2f}", color, is_thing=False) for mask, color in by_area]
    return Rendering(
        {"everything": segment_overlay(photo, regions)},
        records={"masks": len(masks)},
        documents={
            "everything": lambda name: [_annotation(name, number, each) for number, each in enumerate(masks)]
        },
        text=(f"{len(masks)} masks",),
    )


def _annotation(name: str, number: int, found: AutomaticMask) -> dict[str, object]:
    left, top, right, bottom = found.box
    crop = found.crop
    return {
        "id": number,
        "image_id": image_id(name),
        "segmentation": encode_runs(found.runs, found.size),
        "area": found.area,
        "bbox": [left, top, right - left, bottom - top],
        "predicted_iou": found.quality,
        "stability_score": found.stability,
        "point_coords": [list(found.point)],
        "crop_box": [crop[0], crop[1], crop[2] - crop[0], crop[3] - crop[1]],
    }
