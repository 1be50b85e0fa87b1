"""Pictures of results: colour maps, overlays, cluster mosaics, and sheets that put them side by side."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Anchors of matplotlib's inferno, evenly spaced over 0..1.
_INFERNO = np.array(
    [
        (0, 0, 4),
        (22, 11, 57),
        (66, 10, 104),
        (106, 23, 110),
        (147, 38, 103),
        (188, 55, 84),
        (221, 81, 58),
        (243, 120, 25),
        (252, 165, 10),
        (246, 215, 70),
        (252, 255, 164),
    ],
    np.float32,
)
_LIMIT = 0.25


def colorize(values: np.ndarray) -> np.ndarray:
    """Values in 0..1, [H, W], as colours: uint8 [H, W, 3], from black over red to light yellow."""
    position = np.clip(values, 0, 1).astype(np.float32) * (len(_INFERNO) - 1)
    below = np.minimum(position.astype(int), len(_INFERNO) - 2)
    share = (position - below)[..., None]
    return np.round(_INFERNO[below] * (1 - share) + _INFERNO[below + 1] * share).astype(np.uint8)


def overlay(photo: np.ndarray, values: np.ndarray, opacity: float = 0.7) -> np.ndarray:
    """The colours of `values` in 0..1, [H, W], laid over a photograph; low values leave it visible.

    Args:
        photo: uint8 [H, W, 3].
        values: [H, W].
        opacity: of the highest values.

    Returns:
        uint8 [H, W, 3].
    """
    weight = opacity * np.clip(values, 0, 1)[..., None]
    return np.round(photo * (1 - weight) + colorize(values) * weight).astype(np.uint8)


def difference(a: np.ndarray, b: np.ndarray, limit: float = _LIMIT) -> np.ndarray:
    """|a - b| of two maps [H, W] as colours, black at 0 and lightest at `limit` and above."""
    return colorize(np.abs(a - b) / limit)


def mosaic(photo: np.ndarray, assignment: np.ndarray) -> np.ndarray:
    """Clusters drawn on a photograph: every cluster in its mean colour, with a border.

    Args:
        photo: uint8 [H, W, 3].
        assignment: int [rows, columns], the cluster of every token of the photograph.

    Returns:
        uint8 [H, W, 3].
    """
    height, width = photo.shape[:2]
    rows = np.arange(height) * assignment.shape[0] // height
    columns = np.arange(width) * assignment.shape[1] // width
    _, labels = np.unique(assignment, return_inverse=True)
    labels = labels.reshape(assignment.shape)[rows[:, None], columns]
    counts = np.bincount(labels.ravel())
    means = np.stack([np.bincount(labels.ravel(), photo[..., c].ravel()) / counts for c in range(3)], axis=-1)
    picture = means[labels]
    border = np.zeros((height, width), bool)
    border[1:] |= labels[1:] != labels[:-1]
    border[:, 1:] |= labels[:, 1:] != labels[:, :-1]
    picture[border] = 0.4 * picture[border] + 0.6 * 255
    return np.round(picture).astype(np.uint8)


def sheet(panels: list[tuple[str, np.ndarray]], height: int = 360) -> np.ndarray:
    """Titled pictures side by side on white.

    Args:
        panels: (title, uint8 [H, W, 3]).
        height: of every picture in pixels; widths keep the aspect ratios.

    Returns:
        uint8 [rows, columns, 3].
    """
    margin, title_height = 16, 30
    pictures = [
        Image.fromarray(picture).resize(
            (max(1, round(picture.shape[1] * height / picture.shape[0])), height), Image.Resampling.LANCZOS
        )
        for _, picture in panels
    ]
    width = sum(picture.width for picture in pictures) + margin * (len(pictures) + 1)
    canvas = Image.new("RGB", (width, height + title_height + 2 * margin), "white")
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.load_default(size=18)
    left = margin
    for (title, _), picture in zip(panels, pictures, strict=True):
        draw.text((left, margin - 4), title, fill=(40, 40, 40), font=font)
        canvas.paste(picture, (left, margin + title_height))
        left += picture.width + margin
    return np.asarray(canvas)


def comparison_picture(
    photo: np.ndarray, output: np.ndarray, expedited: np.ndarray, assignment: np.ndarray, speedup: float
) -> np.ndarray:
    """The photograph, both outputs over it, their difference, and the clusters.

    Args:
        photo: uint8 [H, W, 3].
        output, expedited: maps in 0..1 of any size, stretched to the photograph.
        assignment: int [rows, columns], the cluster of every token.
        speedup: of the expedited model, for the title.

    Returns:
        uint8 [rows, columns, 3].
    """
    size = photo.shape[1::-1]
    output, expedited = (
        np.asarray(Image.fromarray(values.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for values in (output, expedited)
    )
    return sheet(
        [
            ("photograph", photo),
            ("original output", overlay(photo, output)),
            (f"expedited, {speedup:.2f} times faster", overlay(photo, expedited)),
            (f"difference (light: {_LIMIT} or more)", difference(output, expedited)),
            (f"{len(np.unique(assignment))} clusters", mosaic(photo, assignment)),
        ]
    )
