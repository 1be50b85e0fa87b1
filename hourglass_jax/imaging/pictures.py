"""Visualization of results: colour maps, overlays, cluster mosaics, and sheets of panels."""

import textwrap
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from hourglass_jax.imaging.images import check_rgb

# Every 17th of the 256 colours of matplotlib's maps; straight lines between them stay within 7 of 255.
_COLOR_MAPS = {
    "inferno": "000004 0c0826 240c4f 420a68 5d126e 781c6d 932667 ae305c "
    "c73e4c dd513a ed6925 f8850f fca50a fac62d f2e661 fcffa4",
    "viridis": "440154 481a6c 472f7d 414487 39568c 31688e 2a788e 23888e "
    "1f988b 22a884 35b779 54c568 7ad151 a5db36 d2e21b fde725",
}
_ASCII = {0xD7: "x", 0x2013: "-", 0x2014: "-", 0x2212: "-"}  # the multiplication sign, dashes, the minus sign


def colorize(values: np.ndarray, name: str = "inferno") -> np.ndarray:
    """Maps numbers to a perceptually uniform colour map.

    Args:
        values: [H, W] in 0..1; other values are clipped.
        name: "inferno" (black, red, light yellow) or "viridis" (violet, green, yellow).

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: an unknown map, another shape, NaN or infinite values.
    """
    if name not in _COLOR_MAPS:
        raise ValueError(f"color map must be one of {', '.join(_COLOR_MAPS)}, got {name!r}")
    anchors = np.frombuffer(bytes.fromhex(_COLOR_MAPS[name]), np.uint8).reshape(-1, 3)
    values = _check_map("values", values)
    places = np.linspace(0, 1, len(anchors))
    return np.rint(np.stack([np.interp(values, places, channel) for channel in anchors.T], -1)).astype(np.uint8)


def spotlight(photo: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A photograph that is lit where a map is high and dark elsewhere, with a line around values over one half.

    Args:
        photo: uint8 [H, W, 3].
        values: [H, W] in 0..1; what lies outside is clipped.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another type or shape, NaN or infinite values.
    """
    check_rgb("photo", photo)
    light = np.clip(_check_map("values", values, photo.shape[:2]), 0, 1)[..., None]
    grey = photo.mean(axis=-1, keepdims=True)
    picture = photo * light + 0.35 * grey * (1 - light)
    outline(picture, (light[..., 0] >= 0.5).astype(int))
    return np.rint(picture).astype(np.uint8)


def principal_components(features: np.ndarray, *, of: np.ndarray | None = None) -> np.ndarray:
    """Maps features to colours: their first three principal components, from the 1st to the 99th percentile.

    The sign of a component is arbitrary; here its longer tail is light.

    Args:
        features: [H, W, C] with C of at least 3.
        of: [any, any, C], the features that components and percentiles are computed from, by default `features`; a
            common `of` makes colours comparable.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another shape, NaN or infinite values.
    """
    features, of = (np.asarray(values, np.float64) for values in (features, features if of is None else of))
    for values in (features, of):
        if values.ndim != 3 or values.shape[2] < 3 or not np.isfinite(values).all():
            raise ValueError(f"features must be finite and of shape [H, W, 3 or more], got {list(values.shape)}")
    mean = of.mean(axis=(0, 1))
    centred = (of - mean).reshape(-1, of.shape[2])
    axes = np.linalg.eigh(centred.T @ centred)[1][:, :-4:-1]
    components = centred @ axes
    signs = np.where((components**3).sum(axis=0) < 0, -1, 1)
    low, high = np.percentile(components * signs, (1, 99), axis=0)
    shares = np.clip(((features - mean) @ axes * signs - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.rint(255 * shares).astype(np.uint8)


def stretch(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a map: numbers [H, W] bilinearly; labels [H, W] and features [H, W, C] to the nearest.

    Arrays with fewer axes are not maps and are returned unchanged.

    Args:
        values: floats or integers.
        size: (rows, columns) of the result.
    """
    if values.ndim < 2:
        return values
    if values.ndim == 2 and np.issubdtype(values.dtype, np.floating):
        return np.asarray(Image.fromarray(values).resize((size[1], size[0]), Image.Resampling.BILINEAR))
    rows, columns = (np.arange(new) * old // new for new, old in zip(size, values.shape, strict=False))
    return values[np.ix_(rows, columns)]


def resize_photo(photo: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes a photograph, uint8 [H, W, 3], to (rows, columns) in pixels; bicubic."""
    return np.asarray(Image.fromarray(photo).resize((size[1], size[0]), Image.Resampling.BICUBIC))


def cluster_borders(photo: np.ndarray, assignment: np.ndarray, fill: float = 0.6) -> np.ndarray:
    """Draws clusters on their photograph: each is tinted with its mean colour and outlined.

    Args:
        photo: uint8 [H, W, 3].
        assignment: int [rows, columns], the cluster of every token; equal numbers are one cluster.
        fill: opacity of the cluster's mean colour, in 0..1.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another type or shape.
    """
    check_rgb("photo", photo)
    labels = _stretch_labels("assignment", assignment, photo.shape[:2])
    picture = photo * (1 - fill) + _mean_colors(photo, labels) * fill
    outline(picture, labels)
    return np.rint(picture).astype(np.uint8)


def group_mosaic(photo: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Groups of tokens on their photograph: those of several in their mean colour and outlined.

    Args:
        photo: uint8 [H, W, 3].
        groups: int [rows, columns], the group of every token; equal numbers are one, also where it lies in pieces.
            Tokens that are alone stay as they are.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another type or shape.
    """
    check_rgb("photo", photo)
    labels = _stretch_labels("groups", groups, photo.shape[:2])
    alone = (np.unique(groups, return_counts=True)[1] == 1)[labels]
    picture = np.where(alone[..., None], photo, _mean_colors(photo, labels))
    outline(picture, np.where(alone, -1, labels))
    return np.rint(picture).astype(np.uint8)


def group_overlay(photo: np.ndarray, groups: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """Draws groups of tokens on their photograph, one colour for every group of several tokens.

    Args:
        photo: uint8 [H, W, 3].
        groups: int [rows, columns], the group of every token; equal numbers are one.
        opacity: opacity of the colours, in 0..1; single tokens are not coloured.

    Returns:
        uint8 [H, W, 3].

    Raises:
        ValueError: another type or shape.
    """
    check_rgb("photo", photo)
    labels = _stretch_labels("groups", groups, photo.shape[:2])
    alone = np.unique(groups, return_counts=True)[1] == 1
    # Steps of the golden ratio give neighbouring numbers different hues.
    hues = np.arange(len(alone)) * 0.6180339887 % 1
    channels = np.abs(hues[:, None] * 6 - [3, 2, 4]) * [1, -1, -1] + [-1, 2, 2]
    colors = 255 * np.clip(channels, 0, 1)
    weight = np.where(alone, 0, opacity)[labels][..., None]
    picture = photo * (1 - weight) + colors[labels] * weight
    return np.rint(picture).astype(np.uint8)


def _mean_colors(photo: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The mean colour of its label's pixels at every pixel, [H, W, 3]."""
    flat = labels.ravel()
    sums = [np.bincount(flat, channel) for channel in photo.reshape(-1, 3).T]
    return (np.stack(sums, axis=-1) / np.maximum(1, np.bincount(flat))[:, None])[labels]


def _stretch_labels(name: str, labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resizes labels of tokens to pixels, numbered from 0; ValueError unless they are integers [rows, columns]."""
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.size == 0 or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{name} must be integers [rows, columns], got {labels.dtype} {list(labels.shape)}")
    return stretch(np.unique(labels, return_inverse=True)[1].reshape(labels.shape), size)


def outline(picture: np.ndarray, labels: np.ndarray) -> None:
    """Draws the borders between regions: a light and a dark line, visible on any colour.

    Args:
        picture: floats [H, W, 3] in 0..255, changed in place; the line width depends on its shorter side.
        labels: int [H, W], the region of every pixel.
    """
    line = max(1, round(min(labels.shape) / 500))
    rows_change, columns_change = labels[:-line] != labels[line:], labels[:, :-line] != labels[:, line:]
    before, after = np.zeros((2, *labels.shape), bool)
    before[:-line], after[line:] = rows_change, rows_change
    before[:, :-line] |= columns_change
    after[:, line:] |= columns_change
    picture[after] *= 0.7
    picture[before] = 0.5 * picture[before] + 0.5 * 255


def sheet(panels: Sequence[Sequence[tuple[str, np.ndarray]]], *, height: int = 360) -> np.ndarray:
    """A grid of titled pictures on white.

    Args:
        panels: rows of (title, picture uint8 [H, W, 3]). The first line of a title is large, the others are small
            and grey; characters that Pillow's font lacks are replaced.
        height: height of every picture in pixels; the aspect ratio is kept.

    Returns:
        uint8 [rows, columns, 3].

    Raises:
        ValueError: no panels, or a picture of another type or shape.
    """
    if not panels or not all(panels):
        raise ValueError(f"panels must be rows of at least one (title, picture), got {[*map(len, panels)]} of them")
    margin, gap = max(8, height // 15), max(6, height // 24)
    pictures = [[_scale_picture(title, picture, height) for title, picture in row] for row in panels]
    titles = [[_title_lines(title, height) for title, _ in row] for row in panels]
    widths = [0] * max(map(len, panels))
    for row, headers in zip(pictures, titles, strict=True):
        for column, (picture, lines) in enumerate(zip(row, headers, strict=True)):
            text_width = max((line.width for line in lines), default=0)
            widths[column] = max(widths[column], picture.width, text_width)
    header_heights = [max(sum(line.height for line in lines) for lines in headers) for headers in titles]
    header_heights = [header and header + gap // 3 for header in header_heights]

    width = 2 * margin + sum(widths) + gap * (len(widths) - 1)
    canvas = Image.new("RGB", (width, margin + sum(header_heights) + len(panels) * (height + margin)), "white")
    draw = ImageDraw.Draw(canvas)
    top = margin
    for row, headers, header_height in zip(pictures, titles, header_heights, strict=True):
        left = margin
        for picture, lines, column_width in zip(row, headers, widths, strict=False):
            line_top = top
            for line in lines:
                draw.text((left, line_top), line.text, fill=line.color, font=line.font)
                line_top += line.height
            canvas.paste(picture, (left, top + header_height))
            left += column_width + gap
        top += header_height + height + margin
    return np.array(canvas)


def comparison_picture(
    photo: np.ndarray,
    original: np.ndarray,
    expedited: np.ndarray,
    difference: np.ndarray,
    assignment: np.ndarray,
    speedup: float,
) -> np.ndarray:
    """Draws the photograph, both results, their difference and the clusters on a `sheet`.

    Args:
        photo: uint8 [H, W, 3].
        original: uint8 [any, any, 3], a picture of the unexpedited model's result.
        expedited: likewise, of the expedited model's.
        difference: difference of the results, [rows, columns] in 0..1; not drawn if it is a scalar array.
        assignment: int [rows, columns], the cluster of every token.
        speedup: of the expedited model, for its title.

    Returns:
        uint8 [rows, columns, 3].

    Raises:
        ValueError: see `colorize` and `cluster_borders`.
    """
    rows, columns = photo.shape[:2]
    small = np.asarray(_scale_picture("photo", photo, 360))
    clusters = len(np.unique(assignment))
    differs = []
    if np.ndim(difference) > 0:
        values = stretch(_check_map("difference", difference), small.shape[:2]) / 0.25
        differs = [("Difference\nblack: 0, lightest: 0.25 or more", colorize(values))]
    return sheet(
        [
            [
                (f"Photograph\n{columns} x {rows} pixels", small),
                ("Original\nall tokens", original),
                (f"Expedited\nspeed-up {speedup:.2f}", expedited),
                *differs,
                (f"Clusters\n{clusters}, from {np.size(assignment)} tokens", cluster_borders(small, assignment)),
            ]
        ]
    )


def plan_picture(
    photo: np.ndarray,
    original: np.ndarray,
    expedited: np.ndarray,
    difference: np.ndarray,
    groups: np.ndarray,
    lines: Sequence[str],
) -> np.ndarray:
    """What a plan does to a photograph, in two rows: the results, and what differs, what became one, and figures.

    Args:
        photo: uint8 [H, W, 3].
        original: uint8 [any, any, 3], a picture of the unexpedited model's result.
        expedited: likewise, of the expedited model's.
        difference: of the two results, [rows, columns] in 0..1; left out if it is no map, but a number.
        groups: int [rows, columns], the group of every token.
        lines: of text, the first one a heading.

    Returns:
        uint8 [rows, columns, 3].

    Raises:
        ValueError: see `colorize` and `group_mosaic`.
    """
    small = np.asarray(_scale_picture("photo", photo, 360))
    left = len(np.unique(groups))
    second = [(f"Tokens\n{left} of {np.size(groups)} are left where they are fewest", group_mosaic(small, groups))]
    if np.ndim(difference) > 0:
        values = stretch(_check_map("difference", difference), small.shape[:2])
        second.insert(
            0, ("Difference\n0 to 0.25, from dark to light", with_bar(colorize(values / 0.25, "viridis")))
        )
    return sheet(
        [
            [("Photograph", small), ("Original", original), ("Faster, same weights", expedited)],
            [*second, ("", text_panel(lines, small.shape[:2]))],
        ]
    )


def with_bar(picture: np.ndarray) -> np.ndarray:
    """A picture of `colorize(..., "viridis")` with its colours, from 0 to the largest, along the lower edge."""
    rows, columns = picture.shape[:2]
    height = max(4, rows // 40)
    bar = np.broadcast_to(np.linspace(0, 1, columns), (height, columns))
    picture = picture.copy()
    picture[-height - 2 : -height] = 255
    picture[-height:] = colorize(bar, "viridis")
    return picture


def text_panel(lines: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Lines of text on white, the first one large, long ones wrapped: a picture of `size` = (rows, columns)."""
    rows, columns = size
    canvas = Image.new("RGB", (columns, rows), "white")
    draw, top = ImageDraw.Draw(canvas), rows // 20
    for number, text in enumerate(lines):
        letters, color = (max(12, rows // 16), (30, 30, 30)) if number == 0 else (max(10, rows // 22), (80, 80, 80))
        width = max(8, int(columns / (0.55 * letters)))
        for part in textwrap.wrap(text, width) or [""]:
            line = text_line(part, letters, color)
            draw.text((0, top), line.text, fill=line.color, font=line.font)
            top += round(1.25 * line.height)
    return np.array(canvas)


class TextLine(NamedTuple):
    """A line of text in Pillow's font; width and height in pixels, including the space between lines."""

    text: str
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont
    color: tuple[int, int, int]
    width: int
    height: int


def text_line(text: str, size: int, color: tuple[int, int, int]) -> TextLine:
    """Lays out a line of text in Pillow's font, which has few characters beyond ASCII; others are replaced.

    Args:
        text: text without line breaks.
        size: font size in pixels.
        color: red, green and blue in 0..255.

    Returns:
        The text and its size.
    """
    letters = unicodedata.normalize("NFKD", text.translate(_ASCII))
    text = "".join(c if " " <= c <= "~" else "?" for c in letters if not unicodedata.combining(c))
    font = ImageFont.load_default(size)
    return TextLine(text, font, color, int(font.getlength(text)) + 1, round(1.4 * size))


def _title_lines(title: str, height: int) -> list[TextLine]:
    """The lines of a title over a picture of `height` pixels; none for an empty title."""
    if not title:
        return []
    first, *others = title.split("\n")
    return [
        text_line(first, max(12, height // 18), (30, 30, 30)),
        *(text_line(text, max(10, height // 24), (110, 110, 110)) for text in others),
    ]


def _scale_picture(title: str, picture: np.ndarray, height: int) -> Image.Image:
    check_rgb(f"picture {title!r}", picture)
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)


def _check_map(name: str, values: np.ndarray, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """`values` as float32 [H, W]; ValueError if they are anything else, not finite, or not of `shape`."""
    values = np.asarray(values, np.float32)
    if values.ndim != 2 or 0 in values.shape or (shape is not None and values.shape != shape):
        expected = "[H, W]" if shape is None else str(list(shape))
        raise ValueError(f"{name} must have shape {expected}, got {list(values.shape)}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity")
    return values
