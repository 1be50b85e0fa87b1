"""Visualization of class probabilities."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from hourglass_jax.imaging.images import check_rgb
from hourglass_jax.imaging.pictures import text_line

BAR = (0, 114, 178)


def class_overlay(photo: np.ndarray, guesses: Sequence[tuple[str, float]]) -> np.ndarray:
    """Draws classes below a photograph: a bar, the name and the probability of each.

    Args:
        photo: uint8 [H, W, 3]; one of fewer than 240 columns is enlarged, so that names are readable.
        guesses: name and probability (0..1) of each class, from top to bottom.

    Returns:
        uint8 [rows, columns, 3], the photograph at the top.

    Raises:
        ValueError: another type or shape, or a probability outside 0..1.
    """
    check_rgb("photo", photo)
    for name, probability in guesses:
        if not 0 <= probability <= 1:
            raise ValueError(f"the probability of {name!r} must lie in 0..1, got {probability}")
    scale = max(1, 240 / photo.shape[1])
    width, height = (round(scale * side) for side in photo.shape[1::-1])
    size = max(11, width // 24)
    pitch, margin = 2 * size, size // 2
    canvas = Image.new("RGB", (width, height + margin + len(guesses) * pitch), "white")
    canvas.paste(Image.fromarray(photo).resize((width, height), Image.Resampling.BICUBIC), (0, 0))
    draw = ImageDraw.Draw(canvas)
    room = width - 2 * margin
    for row, (name, probability) in enumerate(guesses):
        top = height + margin + row * pitch
        share = text_line(f"{probability:.1%}", size, (110, 110, 110))
        title = text_line(name, size, (30, 30, 30))
        draw.text((margin, top), title.text, fill=title.color, font=title.font)
        draw.rectangle((width - margin - share.width, top, width, top + share.height), fill="white")
        draw.text((width - margin, top), share.text, fill=share.color, font=share.font, anchor="ra")
        bottom = top + pitch - size // 4
        draw.rectangle((margin, bottom - size // 3, margin + round(room * probability), bottom), fill=BAR)
    return np.array(canvas)
