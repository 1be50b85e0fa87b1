"""The rules of segment-anything's automatic masks, written out plainly in NumPy, float64."""

import math
from collections.abc import Callable

import numpy as np
from scipy import ndimage

Answer = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""A crop of a photograph and points [N, 2] in it -> logits [N, 3, h, w] and qualities [N, 3]."""


def automatic_masks(photo: np.ndarray, answer: Answer, view: int, settings: object) -> list[dict]:
    """The kept masks, in the order in which they are kept."""
    rows, columns = photo.shape[:2]
    crops = [((0, 0, columns, rows), 0)]
    for layer in range(1, settings.crop_layers + 1):
        side_count = 2**layer
        overlap = int(settings.crop_overlap * min(rows, columns) * 2 / side_count)
        width = math.ceil((overlap * (side_count - 1) + columns) / side_count)
        height = math.ceil((overlap * (side_count - 1) + rows) / side_count)
        for i in range(side_count):
            for j in range(side_count):
                x0, y0 = int((width - overlap) * i), int((height - overlap) * j)
                crops.append(((x0, y0, min(x0 + width, columns), min(y0 + height, rows)), layer))
    kept = []
    for crop, layer in crops:
        kept += of_crop(photo, crop, int(settings.points / settings.crop_downscale**layer), answer, view, settings)
    if len(crops) > 1:
        scores = [1 / ((each["crop"][2] - each["crop"][0]) * (each["crop"][3] - each["crop"][1])) for each in kept]
        kept = [kept[i] for i in suppress([each["box"] for each in kept], scores, settings.crop_box_overlap)]
    if settings.least_region:
        scores = []
        for each in kept:
            mask, filled = small(each["mask"], settings.least_region, True)
            mask, thinned = small(mask, settings.least_region, False)
            each["mask"], each["box"] = mask, box(mask)
            scores.append(0.0 if filled or thinned else 1.0)
        most = max(settings.box_overlap, settings.crop_box_overlap)
        kept = [kept[i] for i in suppress([each["box"] for each in kept], scores, most)]
    return kept


def of_crop(photo, crop, per_side, answer, view, settings) -> list[dict]:
    x0, y0, x1, y1 = crop
    part = photo[y0:y1, x0:x1]
    points = []
    for j in range(per_side):
        for i in range(per_side):
            points.append(((i + 0.5) / per_side * (x1 - x0), (j + 0.5) / per_side * (y1 - y0)))
    found = []
    for point in points:
        logits, qualities = answer(part, np.array([point]))
        for m in range(3):
            if not qualities[0, m] > settings.quality:
                continue
            large = full_size(logits[0, m], view, part.shape[:2])
            union = (large > -settings.offset).sum()
            stability = (large > settings.offset).sum() / union if union else math.nan
            if not stability >= settings.stability:
                continue
            whole = np.zeros(photo.shape[:2], bool)
            whole[y0:y1, x0:x1] = large > 0
            inside = box(large > 0)
            around = (inside[0] + x0, inside[1] + y0, inside[2] + x0, inside[3] + y0)
            edges = zip(around, crop, (0, 0, photo.shape[1], photo.shape[0]), strict=True)
            if any(abs(a - b) <= 20 and not abs(a - c) <= 20 for a, b, c in edges):
                continue
            found.append(
                {
                    "mask": whole,
                    "box": around,
                    "quality": float(qualities[0, m]),
                    "stability": stability,
                    "point": (point[0] + x0, point[1] + y0),
                    "crop": crop,
                }
            )
    order = suppress([each["box"] for each in found], [each["quality"] for each in found], settings.box_overlap)
    return [found[i] for i in order]


def full_size(logits: np.ndarray, view: int, size: tuple[int, int]) -> np.ndarray:
    """To the model's input, without what was filled up, to the size of the crop; each bilinearly."""
    scale = view / max(size)
    inner = [int(side * scale + 0.5) for side in size]
    return bilinear(bilinear(logits.astype(float), (view, view))[: inner[0], : inner[1]], size)


def bilinear(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    for axis, length in enumerate(size):
        places = (np.arange(length) + 0.5) * image.shape[axis] / length - 0.5
        places = np.clip(places, 0, image.shape[axis] - 1)
        image = np.apply_along_axis(lambda line, at=places: np.interp(at, np.arange(len(line)), line), axis, image)
    return image


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    if not mask.any():
        return 0, 0, 0, 0
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()), int(y.max())


def suppress(boxes: list, scores: list, most: float) -> list[int]:
    """Greedy: the best box that is left drops those that overlap it by more than `most`."""
    order = sorted(range(len(boxes)), key=lambda i: -scores[i])
    kept: list[int] = []
    for i in order:
        if all(not overlap(boxes[i], boxes[j]) > most for j in kept):
            kept.append(i)
    return kept


def overlap(a, b) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
    return shared / union if union else math.nan


def small(mask: np.ndarray, least: int, holes: bool) -> tuple[np.ndarray, bool]:
    labels, count = ndimage.label(~mask if holes else mask, structure=np.ones((3, 3)))
    sizes = [(labels == i).sum() for i in range(1, count + 1)]
    few = [i for i, size in enumerate(sizes, start=1) if size < least]
    if not few:
        return mask, False
    if holes:
        return mask | np.isin(labels, few), True
    many = [i for i in range(1, count + 1) if i not in few]
    return np.isin(labels, many or [1 + int(np.argmax(sizes))]), True
