"""Depth maps as pictures: 16-bit values, and colours with a colour bar."""

import numpy as np
from PIL import Image, ImageDraw

from hourglass_jax.imaging.pictures import colorize, text_line

TICKS = 5
"""Number of ticks of a colour bar."""


def steps_per_metre(farthest: float) -> int:
    """Steps of 16-bit depth per metre: 1000 (as in NYUv2's files), or 256 (as in KITTI's) for larger ranges."""
    return 1000 if 1000 * farthest < 2**16 else 256


def depth_in_16_bits(depth: np.ndarray, farthest: float | None) -> np.ndarray:
    """Converts a depth map to uint16.

    Args:
        depth: [H, W], metres, or relative inverse depth.
        farthest: largest depth in metres that the model can predict, or None for relative inverse depth.

    Returns:
        uint16 [H, W]: depth in steps of `steps_per_metre`, or relative inverse depth from the least, 0, to the
        largest, 65535.
    """
    steps = 65535 * _share(depth) if farthest is None else depth * steps_per_metre(farthest)
    return np.rint(np.clip(steps, 0, 65535)).astype(np.uint16)


def sixteen_bit_unit(farthest: float | None) -> str:
    """Describes the values of `depth_in_16_bits` in words."""
    if farthest is None:
        return "relative inverse depth, from the photograph's least (0) to its largest (65535)"
    steps = steps_per_metre(farthest)
    return "millimetres" if steps == 1000 else f"metres times {steps}"


def depth_picture(depth: np.ndarray, is_metric: bool) -> np.ndarray:
    """Draws a depth map in colours, near values light, with a colour bar on the right.

    Args:
        depth: [H, W], metres if `is_metric`, otherwise relative inverse depth.
        is_metric: whether the values are metres.

    Returns:
        uint8 [rows, columns, 3]; the map is not scaled and lies at the top left.

    Raises:
        ValueError: another shape, NaN or infinite values.
    """
    nearness = colorize(1 - _share(depth) if is_metric else _share(depth))
    low, high = float(depth.min()), float(depth.max())
    ends = (low, high) if is_metric else (high, low)
    bar = colorize(np.linspace(1, 0, depth.shape[0])[:, None])
    height, width = depth.shape
    size = max(10, min(height, width) // 24)
    digits = max(0, 2 - int(np.floor(np.log10(max(abs(low), abs(high), 1e-9)))))
    lines = [text_line(f"{depth:.{digits}f}", size, (30, 30, 30)) for depth in np.linspace(*ends, TICKS)]
    unit = text_line("metres" if is_metric else "inverse depth", size, (110, 110, 110))
    left = width + size + size
    legend = max(max(line.width for line in lines) + size // 2, unit.width - size)
    canvas = Image.new("RGB", (left + legend + size, max(height, 2 * size * TICKS) + 2 * size), "white")
    canvas.paste(Image.fromarray(nearness), (0, 0))
    tall = canvas.height - 2 * size
    canvas.paste(Image.fromarray(bar).resize((size, tall)), (width + size // 2, 0))
    draw = ImageDraw.Draw(canvas)
    for place, line in zip(np.linspace(0, tall - 1, TICKS), lines, strict=True):
        anchor = "la" if place == 0 else "ld" if place == tall - 1 else "lm"
        draw.text((left, place), line.text, fill=line.color, font=line.font, anchor=anchor)
    draw.text((width + size // 2, canvas.height - 1), unit.text, fill=unit.color, font=unit.font, anchor="ld")
    return np.array(canvas)


def _share(depth: np.ndarray) -> np.ndarray:
    """Scales values to 0..1; a constant map becomes 0."""
    low, high = depth.min(), depth.max()
    return (depth - low) / (high - low if high > low else 1)
