"""Reading, preparing and writing images: every kind of file and array, and one clear sentence for every bad one."""

import io
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hourglass_jax.imaging.images import Preprocessing, center_crop_square, read_image, write_image

RGB = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]], [[0, 0, 0], [10, 128, 200], [255, 255, 255]]], np.uint8)
GREY = np.array([[0, 1, 127], [128, 254, 255]], np.uint8)
SIXTEEN_BITS = np.array([[0, 128, 129], [257, 32767, 65535]], np.uint16)
SIXTEEN_BITS_AS_8 = np.array([[0, 0, 1], [1, 127, 255]], np.uint8)
RGBA = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 128], [100, 200, 0, 51]]], np.uint8)
RGBA_ON_WHITE = np.array([[[255, 0, 0], [255, 255, 255], [127, 127, 127], [224, 244, 204]]], np.uint8)


def grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def palette_image() -> Image.Image:
    """Red, green and blue pixels, of which green is transparent."""
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    image.info["transparency"] = 1
    return image


def transparent_rgb() -> Image.Image:
    image = Image.fromarray(RGB)
    image.info["transparency"] = (0, 255, 0)
    return image


def without_green(pixels: np.ndarray) -> np.ndarray:
    return np.where((pixels == [0, 255, 0]).all(-1, keepdims=True), 255, pixels)


IMAGES = {
    "RGB": (Image.fromarray(RGB), "png", RGB),
    "RGB with a transparent colour": (transparent_rgb(), "png", without_green(RGB)),
    "grey": (Image.fromarray(GREY), "png", grey(GREY)),
    "16-bit grey": (Image.fromarray(SIXTEEN_BITS), "png", grey(SIXTEEN_BITS_AS_8)),
    "16-bit grey of PGM": (Image.fromarray(SIXTEEN_BITS), "pgm", grey(SIXTEEN_BITS_AS_8)),
    "16-bit grey, big-endian": (Image.fromarray(SIXTEEN_BITS.astype(">u2")), "tiff", grey(SIXTEEN_BITS_AS_8)),
    "32-bit integers": (Image.fromarray(SIXTEEN_BITS.astype(np.int32)), "tiff", grey(SIXTEEN_BITS_AS_8)),
    "floats": (Image.fromarray(GREY.astype(np.float32) / 255), "tiff", grey(GREY)),
    "RGBA": (Image.fromarray(RGBA), "png", RGBA_ON_WHITE),
    "grey and alpha": (
        Image.merge("LA", [Image.fromarray(RGBA[..., 2]), Image.fromarray(RGBA[..., 3])]),
        "png",
        grey(np.array([[0, 255, 127, 204]], np.uint8)),
    ),
    "palette": (
        Image.fromarray(RGB).quantize(6, method=Image.Quantize.FASTOCTREE),
        "png",
        np.asarray(Image.fromarray(RGB).quantize(6, method=Image.Quantize.FASTOCTREE).convert("RGB")),
    ),
    "palette with transparency": (
        palette_image(),
        "png",
        np.array([[[255, 0, 0], [255, 255, 255], [0, 0, 255]]], np.uint8),
    ),
    "1-bit": (Image.fromarray(GREY > 127), "png", grey(np.where(GREY > 127, 255, 0).astype(np.uint8))),
    "CMYK": (
        Image.merge("CMYK", [Image.new("L", (2, 1), value) for value in (255, 0, 0, 0)]),
        "tiff",
        np.array([[[0, 255, 255]] * 2], np.uint8),
    ),
}


@pytest.mark.parametrize(("image", "suffix", "expected"), IMAGES.values(), ids=IMAGES)
def test_files_and_pil_images_of_every_mode(image, suffix: str, expected: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    image.save(path)
    for source in (path, str(path), image):
        read = read_image(source)
        assert read.dtype == np.uint8
        np.testing.assert_array_equal(read, expected)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (RGB, RGB),
        (GREY, grey(GREY)),
        (GREY[..., None], grey(GREY)),
        (RGBA, RGBA_ON_WHITE),
        (RGB > 127, np.where(RGB > 127, 255, 0)),
        (SIXTEEN_BITS, grey(SIXTEEN_BITS_AS_8)),
        (SIXTEEN_BITS.astype(">u2"), grey(SIXTEEN_BITS_AS_8)),
        (np.stack([SIXTEEN_BITS] * 3, -1), grey(SIXTEEN_BITS_AS_8)),
        (RGB.astype(np.float64) / 255, RGB),
        (RGB.astype(np.float32) / 255, RGB),
        (np.array([[0, 0.5, 1]], np.float16), [[[0] * 3, [128] * 3, [255] * 3]]),
        (RGBA.astype(np.float32) / 255, RGBA_ON_WHITE),
    ],
    ids=lambda value: f"{value.dtype}{list(value.shape)}" if isinstance(value, np.ndarray) else "",
)
def test_arrays_of_every_kind(array: np.ndarray, expected: np.ndarray) -> None:
    read = read_image(array)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


def test_the_result_is_a_new_array() -> None:
    array = RGB.copy()
    read_image(array)[:] = 7
    np.testing.assert_array_equal(array, RGB)
    read_image(Image.fromarray(RGB))[:] = 7


# What is stored for each EXIF orientation so that `upright` is shown.
STORED = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: upright[:, ::-1].swapaxes(0, 1),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: upright[::-1].swapaxes(0, 1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("pixels", [noise(3, 5, 3), noise(3, 5).astype(np.uint16) * 257], ids=["RGB", "16-bit"])
def test_exif_orientation(orientation: int, pixels: np.ndarray, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.ascontiguousarray(STORED[orientation](pixels))
    Image.fromarray(stored).save(tmp_path / "image.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "image.png"), read_image(pixels))
    with Image.open(tmp_path / "image.png") as image:
        np.testing.assert_array_equal(read_image(image), read_image(pixels))


def test_a_broken_exif_block_does_not_matter(tmp_path: Path) -> None:
    Image.new("RGB", (8, 9), "red").save(tmp_path / "image.jpg", exif=b"Exif\0\0garbage")
    assert read_image(tmp_path / "image.jpg").shape == (9, 8, 3)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def truncated(folder: Path, suffix: str, format: str) -> Path:
    path = folder / f"truncated.{suffix}"
    Image.fromarray(noise(60, 60, 3)).save(path, format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def corrupt_png(folder: Path) -> Path:
    path = folder / "corrupt.png"
    Image.fromarray(noise(60, 60, 3)).save(path)
    content = bytearray(path.read_bytes())
    content[3000:3010] = bytes(10)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "missing.jpg", r"missing\.jpg does not exist: expected an image file"),
        (lambda folder: folder, r"is a directory: expected an image file"),
        (lambda folder: truncated(folder, "jpg", "JPEG"), r"truncated\.jpg cannot be decoded.*truncated"),
        (lambda folder: truncated(folder, "png", "PNG"), r"truncated\.png cannot be decoded"),
        (corrupt_png, r"corrupt\.png cannot be decoded"),
        (
            lambda folder: write(folder, "page.jpg", b"<html>\n<body>Not found</body></html>"),
            r"page\.jpg is not an image: .*, got a file that starts with b'<html>",
        ),
        (lambda folder: write(folder, "empty.png", b""), r"empty\.png is not an image: .*, got an empty file"),
    ],
    ids=["missing", "directory", "truncated JPEG", "truncated PNG", "corrupt PNG", "HTML", "empty file"],
)
def test_a_bad_file_is_one_clear_error(make: Callable[[Path], Path], message: str, tmp_path: Path) -> None:
    path = make(tmp_path)
    for source in (path, str(path)):
        with pytest.raises(ValueError, match=message) as raised:
            read_image(source)
        assert str(raised.value).startswith(str(path))
        assert "\n" not in str(raised.value)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (20, 20)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ValueError, match=r"bomb\.png is too large: .*400 pixels.*200 pixels"):
        read_image(tmp_path / "bomb.png")


def test_a_truncated_pil_image_is_an_error_too(tmp_path: Path) -> None:
    with (
        Image.open(truncated(tmp_path, "jpg", "JPEG")) as image,
        pytest.raises(ValueError, match=r"^image cannot be decoded.*truncated"),
    ):
        read_image(image)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.empty((0, 5, 3), np.uint8), r"array is empty: expected at least one pixel, got shape \[0, 5, 3\]"),
        (np.empty((4, 4, 0)), r"array is empty"),
        (np.zeros(7, np.uint8), r"array must have shape .*, got \[7\]"),
        (np.zeros((1, 4, 4, 3), np.uint8), r"array must have shape .*, got \[1, 4, 4, 3\]"),
        (np.zeros((4, 4, 2), np.uint8), r"array must have shape .*, got \[4, 4, 2\]"),
        (np.zeros((3, 4, 5), np.uint8), r"array must have shape .*, got \[3, 4, 5\]"),
        (np.full((2, 2), np.nan), r"array holds NaN or infinite values: expected floats in 0\.\.1, got 4 of them"),
        (np.array([[0, np.inf]]), r"array holds NaN or infinite values: .*, got 1 of them"),
        (np.array([[-0.5, 1.0]]), r"array must hold floats in 0\.\.1, got -0\.5 to 1"),
        (np.array([[0.0, 255.0]], np.float32), r"array must hold floats in 0\.\.1, got 0 to 255"),
        (np.zeros((2, 2), np.int64), r"array must hold uint8, uint16 or floats in 0\.\.1, got int64"),
        (np.array([["a"]]), r"array must hold uint8, uint16 or floats in 0\.\.1, got <U1"),
        (Image.new("RGB", (0, 5)), "image is empty: expected at least one pixel"),
        (Image.fromarray(np.array([[70000]], np.int32)), r"image must hold uint8, uint16 .*, got int32"),
        (Image.fromarray(np.array([[-1]], np.int32)), r"image must hold uint8, uint16 .*, got int32"),
        (Image.fromarray(np.array([[7.5]], np.float32)), r"image must hold floats in 0\.\.1, got 7\.5 to 7\.5"),
        (None, "image must be a path, a PIL image or an array, got NoneType"),
        ([[0, 1]], "image must be a path, a PIL image or an array, got list"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_a_bad_array_is_one_clear_error(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}") as raised:
        read_image(source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [
        (518, 518, (518, 518)),
        (100, 100, (518, 518)),
        (480, 640, (392, 518)),  # 480 / 640 * 518 = 388.5 = 27.75 patches
        (640, 480, (518, 392)),
        (74, 3, (518, 28)),  # 3 / 74 * 518 = 21 = 1.5 patches, halves upwards
        (2000, 14, (518, 14)),
        (1, 100000, (14, 518)),
    ],
)
def test_target_size_keeps_the_aspect_ratio(rows: int, columns: int, expected: tuple[int, int]) -> None:
    assert Preprocessing().target_size(rows, columns) == expected
    assert Preprocessing(resize="square").target_size(rows, columns) == (518, 518)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 500}, "size must be a positive multiple of 14, got 500"),
        ({"size": 7}, "size must be a positive multiple of 14, got 7"),
        ({"size": 0}, "size must be a positive multiple of 14, got 0"),
        ({"size": -14}, r"size must be an integer in 0\.\.1048576 or a list of 2, .* got -14"),
        ({"size": 512, "multiple": 0}, "multiple must be a positive number of pixels, got 0"),
        (
            {"resize": "pad"},
            "resize must be one of 'longest', 'shortest', 'minimal', 'square', 'crop', 'none', got 'pad'",
        ),
        (
            {"interpolation": "nearest"},
            "interpolation must be one of 'bilinear', 'bicubic', 'cubic', 'linear', got 'nearest'",
        ),
        ({"size": (28, 14, 14)}, r"size must be an integer in .* or a list of 2, .*, got \(28, 14, 14\)"),
        ({"size": (28, 15), "resize": "square"}, r"size must be a positive multiple of 14, got \(28, 15\)"),
        ({"size": (28, 14)}, "resize must be 'minimal' or 'square' for a size of rows and columns, got 'longest'"),
        ({"mean": (0.5,)}, r"mean must be a list of 3, each a finite number, got \(0\.5,\)"),
        ({"std": (1, 1, 0)}, r"std must be positive, got \(1, 1, 0\)"),
    ],
    ids=str,
)
def test_preprocessing_checks_its_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing(**fields)


def test_preprocessing_is_hashable_whatever_it_was_made_of() -> None:
    assert hash(Preprocessing(mean=[0.5, 0.5, 0.5])) == hash(Preprocessing(mean=(0.5, 0.5, 0.5)))


def test_pixels_are_normalised() -> None:
    image = np.full((14, 14, 3), (255, 0, 51), np.uint8)
    prepared = Preprocessing(size=28, mean=(0.5, 0.5, 0.1), std=(0.25, 0.5, 0.2))(image)
    assert prepared.dtype == np.float32
    assert prepared.shape == (28, 28, 3)
    np.testing.assert_allclose(prepared, np.broadcast_to([2, -1, 0.5], (28, 28, 3)), atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled() -> None:
    image = noise(28, 42, 3)
    prepared = Preprocessing(size=42, mean=(0, 0, 0), std=(1, 1, 1))(image)
    np.testing.assert_allclose(prepared * 255, image, atol=1e-4)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_shrinking_is_antialiased(interpolation: str) -> None:
    """Columns of black and white alternate: without antialiasing the result would be black or white stripes."""
    image = np.zeros((56, 56, 3), np.uint8)
    image[:, ::2] = 255
    prepared = Preprocessing(size=14, mean=(0, 0, 0), std=(1, 1, 1), interpolation=interpolation)(image)
    np.testing.assert_allclose(prepared[:, 2:-2], 0.5, atol=0.02)


def test_square_stretches() -> None:
    image = np.zeros((20, 40, 3), np.uint8)
    image[10:] = 255
    prepared = Preprocessing(size=28, resize="square", mean=(0, 0, 0), std=(1, 1, 1))(image)
    assert prepared.shape == (28, 28, 3)
    assert np.abs(prepared[:10]).max() < 0.05
    assert np.abs(prepared[18:] - 1).max() < 0.05


def reference_crop(image: np.ndarray, size: int, interpolation: Image.Resampling) -> np.ndarray:
    """torchvision's Resize(size) and CenterCrop(size), by their rules: the longer side is cut off, not rounded."""
    rows, columns = image.shape[:2]
    scaled = (int(size * columns / rows), size) if rows <= columns else (size, int(size * rows / columns))
    pixels = np.asarray(Image.fromarray(image).resize(scaled, interpolation))
    top, left = (round((side - size) / 2) for side in pixels.shape[:2])
    return pixels[top : top + size, left : left + size]


@pytest.mark.parametrize(("rows", "columns"), [(40, 40), (31, 64), (97, 45), (16, 300), (33, 34), (45, 48)])
def test_crop_keeps_the_square_in_the_middle(rows: int, columns: int) -> None:
    image = noise(rows, columns, 3)
    preprocessing = Preprocessing(
        size=32, multiple=16, resize="crop", interpolation="bicubic", mean=(0, 0, 0), std=(1, 1, 1)
    )
    prepared = preprocessing(image)
    assert prepared.shape == (32, 32, 3) == (*preprocessing.target_size(rows, columns), 3)
    expected = reference_crop(image, 32, Image.Resampling.BICUBIC)
    np.testing.assert_allclose(prepared * 255, expected, atol=1e-4)
    assert preprocessing.at(48)(image).shape == (48, 48, 3)
    np.testing.assert_array_equal(preprocessing.crop_to_view(image), center_crop_square(image))
    assert Preprocessing().crop_to_view(image) is image


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (noise(13, 40, 3), "image must be at least 14 x 14 pixels, got 13 x 40"),
        (noise(40, 13, 3), "image must be at least 14 x 14 pixels, got 40 x 13"),
        (noise(40, 40), r"image must be uint8 \[H, W, 3\], got uint8 \[40, 40\]"),
        (np.zeros((40, 40, 3)), r"image must be uint8 \[H, W, 3\], got float64 \[40, 40, 3\]"),
        ([[1]], r"image must be uint8 \[H, W, 3\], got list \[1, 1\]"),
    ],
    ids=["rows", "columns", "grey", "floats", "list"],
)
def test_preprocessing_refuses_what_it_was_not_made_for(image: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocessing()(image)


@pytest.mark.parametrize(
    ("shape", "rows", "columns"),
    [
        ((4, 4, 3), slice(0, 4), slice(0, 4)),
        ((4, 9, 3), slice(0, 4), slice(2, 6)),
        ((7, 4), slice(1, 5), slice(0, 4)),
    ],
    ids=str,
)
def test_center_crop_square(shape: tuple[int, ...], rows: slice, columns: slice) -> None:
    image = noise(*shape)
    np.testing.assert_array_equal(center_crop_square(image), image[rows, columns])


@pytest.mark.parametrize("array", [RGB, GREY], ids=["RGB", "grey"])
def test_a_written_png_reads_the_same(array: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "image.PNG"
    write_image(path, array)
    np.testing.assert_array_equal(read_image(path), read_image(array))
    assert list(path.parent.iterdir()) == [path]
    write_image(str(path), array[:1])
    assert read_image(path).shape[0] == 1


def test_labels_of_16_bits_are_written_as_they_are(tmp_path: Path) -> None:
    write_image(tmp_path / "labels.png", SIXTEEN_BITS)
    with Image.open(tmp_path / "labels.png") as image:
        np.testing.assert_array_equal(np.asarray(image), SIXTEEN_BITS)
    with pytest.raises(ValueError, match=r"array must be uint8 \[H, W, 3\], got uint16"):
        write_image(tmp_path / "labels.jpg", SIXTEEN_BITS)


@pytest.mark.parametrize("suffix", ["jpg", "jpeg", "JPG"])
def test_a_written_jpeg_is_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"image.{suffix}"
    write_image(path, np.full((16, 16, 3), (200, 100, 50), np.uint8))
    with Image.open(path) as image:
        assert image.format == "JPEG"
    np.testing.assert_allclose(read_image(path), np.broadcast_to([200, 100, 50], (16, 16, 3)), atol=2)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("step", ["save", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image.png"
    write_image(path, RGB)
    before = path.read_bytes()

    def fail(_: object, target: Path, **options: object) -> None:
        if step == "save":
            Path(target).write_bytes(b"half a fi")
        raise error

    monkeypatch.setattr(*((Image.Image, "save") if step == "save" else (Path, "replace")), fail)
    expected = ValueError if isinstance(error, OSError) else KeyboardInterrupt
    message = r"image\.png cannot be written: No space left on device" if expected is ValueError else None
    with pytest.raises(expected, match=message):
        write_image(path, RGB[:1])
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("image.gif", RGB, r"image\.gif must end in \.png, \.jpg, \.jpeg, got '\.gif'"),
        ("image", RGB, r"image must end in .*, got 'no suffix'"),
        ("image.png", RGB / 255, r"array must be uint8 \[H, W, 3\].*, got float64 \[2, 3, 3\]"),
        ("image.png", RGBA, r"array must be uint8 \[H, W, 3\].*, got uint8 \[1, 4, 4\]"),
        ("image.png", RGB[:0], r"array must be uint8 \[H, W, 3\].*, got uint8 \[0, 3, 3\]"),
        ("folder.png", RGB, r"folder\.png cannot be written: Is a directory"),
        ("file/image.png", RGB, r"image\.png cannot be written: (Not a directory|File exists)"),
    ],
    ids=["GIF", "no suffix", "floats", "RGBA", "empty", "directory", "parent is a file"],
)
def test_writing_refuses_with_one_clear_error(name: str, array: np.ndarray, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        write_image(tmp_path / name, array)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["file", "folder.png"]


def test_a_file_is_what_it_contains_and_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow would hand PostScript to Ghostscript."""
    started = tmp_path / "started"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {started}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    photo = tmp_path / "photo.jpg"
    photo.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\n(x) pop\n%%EOF\n")
    with pytest.raises(ValueError, match=r"photo.jpg is not an image: expected JPEG, .*got .*%!PS-Adobe"):
        read_image(photo)
    assert not started.exists()


def test_a_heif_image_names_its_package(tmp_path: Path) -> None:
    path = tmp_path / "photo.heic"
    path.write_bytes(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic")
    with pytest.raises(ValueError, match="is a HEIF image, which needs a package: pip install pillow-heif"):
        read_image(path)


@pytest.mark.parametrize("garbage", [b"", b"Exif\x00\x00II*\x00\xff\xff\xff\xff", b"Exif\x00\x00" + b"\xff" * 90])
def test_damaged_exif_does_not_refuse_a_picture(garbage: bytes, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", exif=garbage)
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), pixels)


def test_a_damaged_colour_profile_does_not_refuse_a_picture(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "photo.png", icc_profile=b"no profile")
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), pixels)


@pytest.mark.parametrize("resize", ["shortest", "crop"])
def test_a_strip_is_not_enlarged_without_bound(resize: str) -> None:
    strip = np.zeros((14, 100_000, 3), np.uint8)
    with pytest.raises(ValueError, match="an image of 14 x 100000 pixels would be enlarged to 518 x 37"):
        Preprocessing(resize=resize)(strip)


def test_an_image_beyond_the_limit_names_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (100, 100)).save(tmp_path / "photo.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)
    with pytest.raises(ValueError, match=r"photo.png is too large: .* raise the limit with --max-pixels"):
        read_image(tmp_path / "photo.png")


def test_transparency_is_laid_on_white_in_parts_of_any_size() -> None:
    """More rows than are done at once."""
    pixels = np.random.default_rng(0).integers(0, 256, (2500, 501, 4), np.uint8)
    color, alpha = pixels[..., :3].astype(float), pixels[..., 3:] / 255
    np.testing.assert_array_equal(read_image(pixels), np.floor(color * alpha + 255 * (1 - alpha) + 0.5 - 1e-9))


def png_with(name: bytes, content: bytes) -> bytes:
    """A PNG of `PIXELS` with another chunk before its pixels."""
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, "PNG")
    chunk = len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
    return file.getvalue()[:33] + chunk + file.getvalue()[33:]


PIXELS = np.random.default_rng(1).integers(0, 256, (8, 9, 3), np.uint8)
LARGE = zlib.compress(bytes(2 << 20))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (b"iCCP", b"large\0\0" + LARGE),
        (b"iCCP", b"other method\0\7" + LARGE),
        (b"iCCP", b"short"),
        (b"zTXt", b"workflow\0\0" + LARGE),
        (b"pHYs", b"\0"),
        (b"gAMA", b""),
        (b"acTL", b"\0"),
    ],
)
def test_what_stands_beside_the_picture_in_a_png_does_not_refuse_it(
    name: bytes, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / "photo.png").write_bytes(png_with(name, content))
    np.testing.assert_array_equal(read_image(tmp_path / "photo.png"), PIXELS)


def test_a_damaged_picture_in_a_png_is_refused_whatever_stands_beside_it(tmp_path: Path) -> None:
    damaged = bytearray(png_with(b"gAMA", b""))
    damaged[-20] ^= 1
    (tmp_path / "photo.png").write_bytes(damaged)
    with pytest.raises(ValueError, match=r"photo.png (cannot be decoded|is not an image)"):
        read_image(tmp_path / "photo.png")


def test_16_bit_colours_keep_their_upper_8_bits(tmp_path: Path) -> None:
    """Grey is scaled and rounded: 0x12ff is 0x13 there, and 0x12 in colours. Pillow writes no such file."""
    rows = b"".join(b"\0" + bytes((0x12, 0xFF, 0x80, 0x00, 0xFF, 0xFE)) * 2 for _ in range(3))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", 2, 3, 16, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    parts = [
        len(content).to_bytes(4, "big") + name + content + zlib.crc32(name + content).to_bytes(4, "big")
        for name, content in chunks
    ]
    (tmp_path / "photo.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    np.testing.assert_array_equal(
        read_image(tmp_path / "photo.png"), np.full((3, 2, 3), (0x12, 0x80, 0xFF), np.uint8)
    )


@pytest.mark.parametrize("kind", ["gif", "webp", "png", "tiff"])
def test_of_several_pictures_the_first_one_is_read(kind: str, tmp_path: Path) -> None:
    first, second = (Image.new("RGB", (5, 4), color) for color in ("white", "black"))
    options = {"lossless": True} if kind == "webp" else {}
    first.save(tmp_path / f"photo.{kind}", save_all=True, append_images=[second], **options)
    np.testing.assert_array_equal(read_image(tmp_path / f"photo.{kind}"), np.full((4, 5, 3), 255, np.uint8))


def test_a_pipe_is_no_photograph(tmp_path: Path) -> None:
    """It would be waited for."""
    os.mkfifo(tmp_path / "photo.jpg")
    with pytest.raises(ValueError, match=r"photo.jpg is a device or a pipe: expected an image file"):
        read_image(tmp_path / "photo.jpg")


def test_values_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 5), np.nan, np.float32)).save(tmp_path / "photo.tiff")
    with pytest.raises(ValueError, match=r"photo.tiff holds NaN or infinite values: .* got 20 of them"):
        read_image(tmp_path / "photo.tiff")
