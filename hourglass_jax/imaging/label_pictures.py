"""Visualization of label maps: classes as colours, and as an overlay with a legend."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from hourglass_jax.imaging.images import check_rgb
from hourglass_jax.imaging.labels import Color
from hourglass_jax.imaging.pictures import outline, text_line


def colorize_labels(labels: np.ndarray, colors: Sequence[Color]) -> np.ndarray:
    """Colours a label map.

    Args:
        labels: int [H, W], indices into `colors`.
        colors: colours of the classes: red, green and blue in 0..255.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another type or shape, a label or a colour out of range.
    """
    table = np.asarray(colors)
    if table.ndim != 2 or table.shape[1] != 3 or not np.issubdtype(table.dtype, np.integer):
        raise ValueError(f"colors must be integers [classes, 3], got {table.dtype} {list(table.shape)}")
    if table.min() < 0 or table.max() > 255:
        raise ValueError(f"colors must lie in 0..255, got {table.min()} to {table.max()}")
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"labels must be integers [H, W], got {labels.dtype} {list(labels.shape)}")
    if labels.min() < 0 or labels.max() >= len(table):
        raise ValueError(f"labels must lie in 0..{len(table) - 1}, got {labels.min()} to {labels.max()}")
    return table.astype(np.uint8)[labels]


def label_overlay(
    photo: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    colors: Sequence[Color | None],
    opacity: float = 0.5,
) -> np.ndarray:
    """Draws classes over their photograph, with outlines and a legend on the right.

    The legend has a row for every class that occurs, with its share of the pixels, the largest first. Classes that
    do not fit are summed in the last row.

    Args:
        photo: uint8 [H, W, 3].
        labels: int [H, W], places in `names` and `colors`.
        names: of the classes.
        colors: of the classes: red, green and blue in 0..255; None leaves the photograph as it is.
        opacity: of the colours, in 0..1; at 0 only the borders between the classes are drawn.

    Returns:
        uint8 [rows, columns, 3]. The photograph is not scaled and lies at the top left; below it is white if it is
        too low for the legend, which may have 6 rows at any size.

    Raises:
        ValueError: another type or shape, a label or a colour out of range, an opacity outside 0..1, or another
            number of names than of colours.
    """
    check_rgb("photo", photo)
    if not 0 <= opacity <= 1:
        raise ValueError(f"opacity must lie in 0..1, got {opacity}")
    if len(names) != len(colors):
        raise ValueError(f"names must be as many as colors, {len(colors)}, got {len(names)}")
    labels = np.asarray(labels)
    if labels.shape != photo.shape[:2]:
        raise ValueError(f"labels must have shape {list(photo.shape[:2])}, got {list(labels.shape)}")
    shades = colorize_labels(labels, [color or (0, 0, 0) for color in colors])
    alpha = float(opacity) * np.array([color is not None for color in colors])[labels][..., None]
    picture = photo * (1 - alpha) + shades * alpha
    outline(picture, labels)
    height, width = labels.shape
    legend = _legend(labels, names, colors)
    canvas = Image.new("RGB", (width + legend.width, max(height, legend.height)), "white")
    canvas.paste(Image.fromarray(np.rint(picture).astype(np.uint8)), (0, 0))
    canvas.paste(legend, (width, 0))
    return np.array(canvas)


def _legend(labels: np.ndarray, names: Sequence[str], colors: Sequence[Color | None]) -> Image.Image:
    """The classes in `labels` with their shares: as many rows as fit the height of `labels`, but at least 6."""
    height, width = labels.shape
    size = max(12, min(height, width) // 32)
    pitch = round(1.6 * size)
    counts = np.bincount(labels.astype(np.intp).ravel(), minlength=len(names))
    classes = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    places = max(6, (height - 2 * size) // pitch)
    shown = len(classes) if len(classes) <= places else places - 1
    rows: list[tuple[str, Color | None, int]] = [
        (names[label], colors[label], int(counts[label])) for label in map(int, classes[:shown])
    ]
    if shown < len(classes):
        rows.append((f"{len(classes) - shown} others", None, int(counts[classes[shown:]].sum())))

    titles = [text_line(name, size, (30, 30, 30)) for name, _, _ in rows]
    shares = [text_line(_percent(count / labels.size), size, (110, 110, 110)) for _, _, count in rows]
    left = 2 * size + size // 2
    right = left + max(line.width for line in titles) + size + max(line.width for line in shares)
    legend = Image.new("RGB", (right + size, 2 * size + len(rows) * pitch), "white")
    draw = ImageDraw.Draw(legend)
    middle = size + pitch // 2
    for (_, color, _), title, share in zip(rows, titles, shares, strict=True):
        if color is not None:
            top = middle - size // 2
            draw.rectangle((size, top, 2 * size - 1, top + size - 1), fill=(*color,), outline=(150, 150, 150))
        draw.text((left, middle), title.text, fill=title.color, font=title.font, anchor="lm")
        draw.text((right, middle), share.text, fill=share.color, font=share.font, anchor="rm")
        middle += pitch
    return legend


def _percent(share: float) -> str:
    return f"{share:.1%}" if share >= 0.0005 else "<0.1%"
