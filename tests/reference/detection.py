"""Boxes, suppression and RoIAlign written plainly: lists and loops, float64."""

import math

import numpy as np

Box = tuple[float, float, float, float]


def anchors(rows: int, columns: int, stride: int) -> np.ndarray:
    found = []
    for y in range(rows):
        for x in range(columns):
            for ratio in (0.5, 1, 2):
                height, width = 8 * stride * math.sqrt(ratio), 8 * stride / math.sqrt(ratio)
                cx, cy = x * stride, y * stride
                found.append((cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return np.array(found)


def decoded(box: np.ndarray, delta: np.ndarray, stds: tuple[float, ...], size: tuple[float, float]) -> np.ndarray:
    dx, dy, dw, dh = (float(d) * s for d, s in zip(delta, stds, strict=True))
    x1, y1, x2, y2 = map(float, box)
    most = math.log(1000 / 16)
    dw, dh = (max(-most, min(most, d)) for d in (dw, dh))
    cx, cy = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    width, height = (x2 - x1) * math.exp(dw), (y2 - y1) * math.exp(dh)
    corners = (cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2)
    rows, columns = size
    return np.array(
        [max(0, min(limit, c)) for c, limit in zip(corners, (columns, rows, columns, rows), strict=True)]
    )


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    either = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both
    return both / either if either > 0 else 0.0


def suppressed(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    """Indices that are kept, the best first."""
    order = sorted(range(len(boxes)), key=lambda i: (-scores[i], i))
    kept: list[int] = []
    for i in order:
        if all(overlap(boxes[k], boxes[i]) <= threshold for k in kept):
            kept.append(i)
    return kept


def soft(
    boxes: np.ndarray, scores: np.ndarray, kind: str, threshold: float, least: float, sigma: float
) -> list[tuple[int, float]]:
    """Indices and lowered scores of boxes of one class, in the order of selection."""
    left = {i: float(score) for i, score in enumerate(scores)}
    found = []
    while left:
        best = min(left, key=lambda i: (-left[i], i))
        found.append((best, left.pop(best)))
        for i in left:
            over = overlap(boxes[best], boxes[i])
            if kind == "gaussian":
                left[i] *= math.exp(-(over**2) / sigma)
            elif over >= threshold:
                left[i] *= 1 - over
        left = {i: score for i, score in left.items() if score >= least}
    return found


def roi_align(image: np.ndarray, box: np.ndarray, stride: int, bins: int) -> np.ndarray:
    """Bins [bins, bins, C] of a box in pixels, from a map [H, W, C]."""
    x1, y1, x2, y2 = (float(c) / stride - 0.5 for c in box)
    height, width = (y2 - y1) / bins, (x2 - x1) / bins
    down, across = math.ceil(height), math.ceil(width)
    found = np.zeros((bins, bins, image.shape[2]))
    for i in range(bins):
        for j in range(bins):
            for a in range(down):
                for b in range(across):
                    y = y1 + (i + (a + 0.5) / down) * height
                    x = x1 + (j + (b + 0.5) / across) * width
                    found[i, j] += _sample(image, y, x)
            found[i, j] /= max(down * across, 1)
    return found


def _sample(image: np.ndarray, y: float, x: float) -> np.ndarray:
    rows, columns, _ = image.shape
    if not (-1 <= y <= rows and -1 <= x <= columns):
        return np.zeros(image.shape[2])
    y, x = min(max(y, 0), rows - 1), min(max(x, 0), columns - 1)
    top, left = min(int(y), rows - 1), min(int(x), columns - 1)
    below, right = min(top + 1, rows - 1), min(left + 1, columns - 1)
    v, u = y - top, x - left
    upper = (1 - u) * image[top, left] + u * image[top, right]
    lower = (1 - u) * image[below, left] + u * image[below, right]
    return (1 - v) * upper + v * lower


def pasted(mask: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The probability of every pixel of a photograph, from that of every part of a box [S, S]."""
    side = len(mask)
    bordered = np.pad(mask.astype(np.float64), 1)
    x1, y1, x2, y2 = map(float, box)
    found = np.zeros(size)
    for row in range(size[0]):
        for column in range(size[1]):
            y = (row + 0.5 - y1) / (y2 - y1) * side - 0.5
            x = (column + 0.5 - x1) / (x2 - x1) * side - 0.5
            if -1 < y < side and -1 < x < side:
                top, left = math.floor(y), math.floor(x)
                v, u = y - top, x - left
                (a, b), (c, d) = bordered[top + 1 : top + 3, left + 1 : left + 3]
                found[row, column] = (1 - v) * ((1 - u) * a + u * b) + v * ((1 - u) * c + u * d)
    return found
