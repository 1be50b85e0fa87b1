"""Prompts drawn on a photograph: points and boxes."""

import numpy as np
from PIL import Image, ImageDraw

INSIDE, BESIDE, BOX = (30, 200, 60), (230, 40, 40), (255, 210, 0)
"""The colours of points on what is wanted and beside it, and of boxes."""


def draw_prompts(
    picture: np.ndarray,
    size: tuple[int, int],
    points: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
) -> np.ndarray:
    """A picture with prompts; what lies outside the photograph is not drawn.

    Args:
        picture: uint8 [rows, columns, 3], with the photograph at the top left.
        size: (rows, columns) of the photograph.
        points: [N, 2], x and y in pixels.
        labels: [N], 1 for what is wanted and 0 for what is not.
        boxes: [M, 4], left, top, right and bottom in pixels.

    Returns:
        uint8 [rows, columns, 3]
    """
    rows, columns = size
    part = Image.fromarray(picture[:rows, :columns])
    draw = ImageDraw.Draw(part)
    line, radius = max(2, min(size) // 200), max(4, min(size) // 80)
    for left, top, right, bottom in np.asarray(boxes, float).reshape(-1, 4):
        corners = [sorted(np.clip(pair, -radius, limit + radius).tolist()) for pair, limit in (
            ((left, right), columns), ((top, bottom), rows)
        )]  # fmt: skip
        (x0, x1), (y0, y1) = corners
        draw.rectangle((x0, y0, x1, y1), outline=BOX, width=line)
    for (x, y), label in zip(np.asarray(points, float).reshape(-1, 2), labels, strict=True):
        if -radius <= x <= columns + radius and -radius <= y <= rows + radius:
            circle = x - radius, y - radius, x + radius, y + radius
            draw.ellipse(circle, fill=INSIDE if label == 1 else BESIDE, outline="white", width=max(1, line // 2))
    drawn = picture.copy()
    drawn[:rows, :columns] = np.asarray(part)
    return drawn
