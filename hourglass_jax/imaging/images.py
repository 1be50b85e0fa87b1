"""Reading images of any kind as uint8 RGB, preprocessing for models, atomic writing."""

import importlib
import importlib.util
import io
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from hourglass_jax.checks import check_config
from hourglass_jax.io.files import replacing
from hourglass_jax.ops.resize import ResizeMethod, resize_matrix

ImageSource = str | os.PathLike[str] | Image.Image | np.ndarray

FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "TIFF", "WEBP")
"""Supported formats, by Pillow's names; also HEIF if the package pillow-heif is installed."""
LARGEST_ENLARGED = 2**25
"""Maximum number of pixels of an enlarged image; extreme aspect ratios would require arbitrarily many."""

_WRITERS = {
    ".png": {"format": "PNG"},
    ".jpg": {"format": "JPEG", "quality": 95},
    ".jpeg": {"format": "JPEG", "quality": 95},
}


def read_image(source: ImageSource) -> np.ndarray:
    """Reads an image as 8-bit RGB.

    EXIF orientation is applied, transparency is composited on white, grey is repeated over the channels, 16-bit
    grey is scaled to 8 bits (v / 65535 * 255, rounded; of 16-bit colours Pillow keeps the upper 8 bits), CMYK and
    other colour spaces are converted without their profiles. The format is detected by the content, not the name;
    only the formats in `FORMATS` are read, none of which starts another program.

    Args:
        source: path of a file, PIL image, or array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4] of uint8, uint16, bool
            or floats in 0..1. PIL's 32-bit modes "I" and "F" count as 16 bits and as floats in 0..1.

    Returns:
        uint8 [H, W, 3], a new array.

    Raises:
        ValueError: the file is missing, a folder, not an image, corrupt or too large; the array has an unsupported
            shape or type, is empty, not finite or outside 0..1.
    """
    if isinstance(source, str | os.PathLike):
        return _as_rgb(_read(Path(source), str(source)), str(source))
    if isinstance(source, Image.Image):
        return _as_rgb(_read(source, "image"), "image")
    if hasattr(source, "__array__"):
        return _as_rgb(np.asarray(source), "array")
    raise ValueError(f"image must be a path, a PIL image or an array, got {type(source).__name__}")


def check_rgb(name: str, image: np.ndarray) -> None:
    """Raises ValueError unless `image` is uint8 [H, W, 3] with at least one pixel; `name` begins the message."""
    shape, dtype = np.shape(image), getattr(image, "dtype", type(image).__name__)
    if len(shape) != 3 or shape[2] != 3 or 0 in shape or dtype != np.uint8:
        raise ValueError(f"{name} must be uint8 [H, W, 3], got {dtype} {list(shape)}")


@dataclass(frozen=True)
class Preprocessing:
    """The preparation of a model's input: its size and its normalisation.

    Attributes:
        size: side of the input in pixels, a multiple of `multiple`, or its (rows, columns); with resize="none" only
            what the model was trained at.
        multiple: the sides of the input are multiples of this number of pixels: the patch size, or 1 for a model
            that pads.
        resize: "longest" and "shortest" scale that side to `size` and keep the aspect ratio, as does "minimal" with
            the side that changes less (DPT); "square" stretches both, "crop" scales the shorter side and keeps the
            square in the middle (torchvision's Resize and CenterCrop), "none" keeps the image as it is. Only
            "minimal" and "square" take rows and columns.
        mean: of red, green and blue in 0..1, subtracted.
        std: of red, green and blue in 0..1, divided by.
        interpolation: "bilinear" or "bicubic", antialiased when shrinking, on 8-bit values (Pillow's); "cubic" is
            not antialiased, and on real numbers (OpenCV's INTER_CUBIC); "linear" is not antialiased, and rounded to
            8 bits (OpenCV's INTER_LINEAR, but for a unit).

    Raises:
        ValueError: a field is out of range.
    """

    size: int | tuple[int, int] = 518
    multiple: int = 14
    resize: Literal["longest", "shortest", "minimal", "square", "crop", "none"] = "longest"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: Literal["bilinear", "bicubic", "cubic", "linear"] = "bilinear"

    def __post_init__(self) -> None:
        def require(field: str, holds: bool, expected: str) -> None:
            if not holds:
                raise ValueError(f"{field} must be {expected}, got {getattr(self, field)!r}")

        check_config(self, zero=("size", "multiple"))
        require("std", min(self.std) > 0, "positive")
        require("multiple", self.multiple >= 1, "a positive number of pixels")
        require(
            "size",
            all(side >= self.multiple and side % self.multiple == 0 for side in self.shape),
            f"a positive multiple of {self.multiple}",
        )
        fits = isinstance(self.size, int) or self.resize in ("minimal", "square")
        require("resize", fits, "'minimal' or 'square' for a size of rows and columns")

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, columns) of an input that is neither scaled nor cropped."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def side(self) -> int:
        """Side of a square input with about the same number of pixels."""
        return round(math.prod(self.shape) ** 0.5 / self.multiple) * self.multiple

    def target_size(self, rows: int, columns: int) -> tuple[int, int]:
        """The size of the model's input for an image.

        Args:
            rows: of the image, in pixels, at least 1.
            columns: of the image, in pixels, at least 1.

        Returns:
            (rows, columns) in pixels. Unless the image is kept as it is, both are multiples of `multiple`: the
            nearest, halves upwards ("minimal": to even multiples), at least one.
        """
        if self.resize == "none":
            return rows, columns
        if self.resize in ("square", "crop"):
            return self.shape
        if self.resize == "minimal":
            by_rows, by_columns = (new / old for new, old in zip(self.shape, (rows, columns), strict=True))
            scale = by_columns if abs(1 - by_columns) < abs(1 - by_rows) else by_rows
            # Halves are rounded to even numbers, as in the official code.
            height, width = (max(1, round(scale * side / self.multiple)) for side in (rows, columns))
            return height * self.multiple, width * self.multiple
        unit = self.multiple * (min if self.resize == "shortest" else max)(rows, columns)
        multiples = ((2 * side * self.shape[0] + unit) // (2 * unit) for side in (rows, columns))
        height, width = (max(1, count) * self.multiple for count in multiples)
        return height, width

    def at(self, size: int | tuple[int, int]) -> "Preprocessing":
        """The same preparation for another `size`; resize="none" becomes "shortest"."""
        return replace(self, size=size, resize="shortest" if self.resize == "none" else self.resize)

    def whole_patches(self, *units: int) -> "Preprocessing":
        """The same with an input of whole units, also for a model that fills them up itself; never as it is.

        Args:
            units: pixels to multiples of which the model fills up the sides of images, such as its patches.
        """
        return replace(self.at(self.size), multiple=math.lcm(self.multiple, *units))

    def crop_to_view(self, image: np.ndarray) -> np.ndarray:
        """Crops an image, uint8 [H, W, 3], to the part that is in the model's input."""
        return center_crop_square(image) if self.resize == "crop" else image

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Prepares an image for the model.

        Args:
            image: uint8 [H, W, 3], as `read_image` returns it.

        Returns:
            float32 [rows, columns, 3] of `target_size`, (value / 255 - mean) / std.

        Raises:
            ValueError: the type or shape is not supported, or a side has fewer than `multiple` pixels.
        """
        check_rgb("image", image)
        rows, columns = image.shape[:2]
        if min(rows, columns) < self.multiple:
            raise ValueError(
                f"image must be at least {self.multiple} x {self.multiple} pixels, got {rows} x {columns}"
            )
        height, width = target = self.target_size(rows, columns)
        if self.resize == "crop":
            height, width = (self.shape[0] * side // min(rows, columns) for side in (rows, columns))
        check_enlargement((rows, columns), (height, width))
        if self.interpolation == "cubic":
            resized = resampled(image.astype(np.float32), (height, width), "bicubic")
        elif self.interpolation == "linear":
            resized = np.rint(resampled(image.astype(np.float32), (height, width), "bilinear"))
        else:
            method = Image.Resampling[self.interpolation.upper()]
            resized = np.asarray(Image.fromarray(image).resize((width, height), method), np.float32)
        top, left = (round((side - kept) / 2) for side, kept in zip((height, width), target, strict=True))
        resized = resized[top : top + target[0], left : left + target[1]]
        return (resized / 255 - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)


def check_enlargement(size: tuple[int, int], target: tuple[int, int]) -> None:
    """Raises ValueError if enlarging an image of `size` = (rows, columns) would exceed `LARGEST_ENLARGED`."""
    if math.prod(target) > max(LARGEST_ENLARGED, math.prod(size)):
        raise ValueError(
            f"an image of {size[0]} x {size[1]} pixels would be enlarged to {target[0]} x {target[1]}: expected at "
            f"most {LARGEST_ENLARGED} pixels; crop it first"
        )


def resampled(image: np.ndarray, size: tuple[int, int], method: ResizeMethod) -> np.ndarray:
    """Resizes an image or a map without compiling a function for its size.

    Args:
        image: float32 [H, W] or [H, W, C].
        size: (rows, columns) of the result.
        method: see `ops.resize.resize_matrix`.

    Returns:
        float32 [rows, columns] or [rows, columns, C].
    """
    for axis, length in enumerate(size):
        if image.shape[axis] != length:
            lines = np.moveaxis(image, axis, 0)
            weights = resize_matrix(len(lines), length, method).astype(np.float32)
            taps = ((row, np.flatnonzero(row)) for row in weights)
            image = np.moveaxis(np.stack([np.tensordot(row[at], lines[at], 1) for row, at in taps]), 0, axis)
    return np.ascontiguousarray(image)


def center_crop_square(image: np.ndarray) -> np.ndarray:
    """The largest square in the middle of an image, [H, W, ...] -> [S, S, ...] with S = min(H, W); a view."""
    rows, columns = image.shape[:2]
    side = min(rows, columns)
    top, left = (rows - side) // 2, (columns - side) // 2
    return image[top : top + side, left : left + side]


def write_image(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes a PNG or JPEG file atomically: after a failure, an older file is unchanged.

    Args:
        path: path of the file, with the suffix .png, .jpg or .jpeg; missing folders are created.
        array: uint8 [H, W, 3] or [H, W]; for PNG also uint16 [H, W].

    Raises:
        ValueError: the suffix, the type or the shape is not supported, or the file cannot be written.
    """
    path = Path(path)
    options = _WRITERS.get(path.suffix.lower())
    if options is None:
        raise ValueError(f"{path} must end in {', '.join(_WRITERS)}, got {path.suffix or 'no suffix'!r}")
    if not (options["format"] == "PNG" and np.ndim(array) == 2 and array.dtype == np.uint16 and array.size):
        check_rgb("array", array[..., None].repeat(3, axis=2) if np.ndim(array) == 2 else array)
    try:
        with replacing(path) as temporary:
            Image.fromarray(array).save(temporary, **options)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def write_array(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Writes a .npy file atomically.

    Raises:
        ValueError: the file cannot be written.
    """
    try:
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.save(file, array, allow_pickle=False)
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def _read(source: Path | Image.Image, name: str) -> np.ndarray:
    """The pixels of a file or PIL image as `_as_rgb` takes them; every failure is a ValueError with `name`."""
    if isinstance(source, Path) and source.exists() and not (source.is_file() or source.is_dir()):
        raise ValueError(f"{name} is a device or a pipe: expected an image file")
    try:
        return _pixels(source) if isinstance(source, Image.Image) else _decoded(source)
    except FileNotFoundError:
        raise ValueError(f"{name} does not exist: expected an image file") from None
    except IsADirectoryError:
        raise ValueError(f"{name} is a directory: expected an image file") from None
    except UnidentifiedImageError as error:
        if isinstance(source, Image.Image):
            raise ValueError(f"{name} cannot be decoded: expected an intact image, got {error!r}") from error
        with source.open("rb") as file:
            start = file.read(16)
        if start[4:8] == b"ftyp" and start[8:12] in HEIF_BRANDS:
            raise ValueError(f"{name} is a HEIF image, which needs a package: pip install pillow-heif") from None
        content = f"a file that starts with {start!r}" if start else "an empty file"
        raise ValueError(f"{name} is not an image: expected JPEG, PNG, WebP or the like, got {content}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"{name} is too large: {error}; raise the limit with --max-pixels, or with PIL.Image.MAX_IMAGE_PIXELS"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, RuntimeError, ...
        raise ValueError(f"{name} cannot be decoded: expected an intact image, got {error!r}") from error


def _decoded(path: Path) -> np.ndarray:
    """The pixels of a file. What stands in a PNG beside the picture is left out if it cannot be read with it."""
    try:
        with _open(path) as image:
            return _pixels(image)
    except (FileNotFoundError, IsADirectoryError, Image.DecompressionBombError, MemoryError):
        raise
    except Exception as error:
        plain = _plain_png(path)
        if plain is None:
            raise
        try:
            with _open(plain) as image:
                return _pixels(image)
        except Exception:
            raise error from None


_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURE = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
"""The chunks of a PNG that its pixels are made of; others hold texts, profiles and times."""
_LARGEST_PNG = 1 << 30
"""Bytes of a damaged PNG that are read once more."""


def _plain_png(path: Path) -> io.BytesIO | None:
    """A PNG without all that is no picture, if there was anything."""
    with path.open("rb") as file:
        if file.read(8) != _PNG or path.stat().st_size > _LARGEST_PNG:
            return None
        data = file.read()
    kept, place, left_out = [_PNG], 0, False
    while place + 12 <= len(data):
        end = place + 12 + int.from_bytes(data[place : place + 4], "big")
        is_picture = data[place + 4 : place + 8] in _PICTURE
        kept += [data[place:end]] if is_picture else []
        left_out |= not is_picture
        place = end
    return io.BytesIO(b"".join(kept)) if left_out else None


HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")


def _open(source: Path | io.BytesIO) -> Image.Image:
    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    if importlib.util.find_spec("pillow_heif"):
        importlib.import_module("pillow_heif").register_heif_opener()
        formats.append("HEIF")
    return Image.open(source, formats=formats)


def _pixels(image: Image.Image) -> np.ndarray:
    image.load()
    try:
        upright = ImageOps.exif_transpose(image)
    except Exception:  # damaged EXIF data: the image itself is intact
        upright = image
    if upright.mode[0] not in "IF":
        return np.asarray(upright.convert("RGBA" if upright.has_transparency_data else "RGB"))
    values = np.asarray(upright)
    in_16_bits = upright.mode == "I" and values.min(initial=0) >= 0 and values.max(initial=0) < 2**16
    return values.astype(np.uint16) if in_16_bits else values


def _as_rgb(array: np.ndarray, name: str) -> np.ndarray:
    if array.size == 0:
        raise ValueError(f"{name} is empty: expected at least one pixel, got shape {list(array.shape)}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(
            f"{name} must have shape [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], got {list(array.shape)}"
        )
    values = _as_uint8(array, name)
    values = values.reshape(*array.shape[:2], -1)
    if values.shape[2] == 1:
        return values.repeat(3, axis=2)
    if values.shape[2] == 3:
        return values.copy()
    opaque = np.empty((*values.shape[:2], 3), np.uint8)
    rows = max(1, 2**20 // values.shape[1])
    for top in range(0, len(values), rows):  # in parts: the products take twelve times the memory of the picture
        part = values[top : top + rows]
        alpha = part[..., 3:].astype(np.uint32)
        opaque[top : top + rows] = (part[..., :3] * alpha + 255 * (255 - alpha) + 127) // 255
    return opaque


def _as_uint8(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool:
        return array.astype(np.uint8) * 255
    if array.dtype.name == "uint16":
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must hold uint8, uint16 or floats in 0..1, got {array.dtype}")
    invalid = array.size - np.count_nonzero(np.isfinite(array))
    if invalid:
        raise ValueError(f"{name} holds NaN or infinite values: expected floats in 0..1, got {invalid} of them")
    if array.min() < 0 or array.max() > 1:
        raise ValueError(f"{name} must hold floats in 0..1, got {array.min():g} to {array.max():g}")
    return np.rint(array * np.float32(255)).astype(np.uint8)
