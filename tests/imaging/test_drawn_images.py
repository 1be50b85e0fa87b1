"""A thousand random image files, most of them damaged: an image, or one sentence."""

import io
import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hourglass_jax.imaging.images import read_image

COUNT = 1000
FORMATS = {
    "PNG": ("RGB", "RGBA", "L", "LA", "P", "I;16", "1"),
    "JPEG": ("RGB", "L", "CMYK"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P", "L"),
    "TIFF": ("RGB", "L", "CMYK", "I;16", "F", "1"),
    "BMP": ("RGB", "L", "1"),
    "PPM": ("RGB", "L", "1"),
}


def draw(rng: random.Random) -> bytes:
    """A small picture in a drawn format and mode, two of three with a few bytes changed, cut or repeated."""
    name = rng.choice(list(FORMATS))
    rows, columns = rng.randint(1, 40), rng.randint(1, 40)
    pixels = np.random.default_rng(rng.getrandbits(32)).integers(0, 256, (rows, columns, 3), np.uint8)
    mode = rng.choice(FORMATS[name])
    image = Image.fromarray(pixels)
    image = image.convert("L").convert("I").convert("I;16") if mode == "I;16" else image.convert(mode)
    options = {"exif": bytes(rng.randbytes(rng.randint(0, 40)))} if name in ("PNG", "JPEG", "WEBP") else {}
    stream = io.BytesIO()
    image.save(stream, name, **options)
    content = bytearray(stream.getvalue())
    kind = rng.randrange(6)
    if kind < 3:
        for _ in range(rng.randint(1, 8)):
            place = rng.randrange(min(len(content), rng.choice((60, len(content)))))
            content[place] = rng.choice((0, 1, 0x7F, 0xFF, rng.randrange(256)))
    elif kind == 3:
        del content[rng.randrange(len(content)) :]
    elif kind == 4:
        start = rng.randrange(len(content))
        content[start:start] = content[start : start + rng.randint(1, 200)]
    return bytes(content)


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata, and of large images
def test_every_drawn_image_is_a_picture_or_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2_000_000)  # a damaged header may ask for any size
    rng, read, path = random.Random(19), 0, tmp_path / "drawn.jpg"
    for _ in range(COUNT):
        path.write_bytes(draw(rng))
        try:
            picture = read_image(path)
        except ValueError as problem:
            assert str(path) in str(problem) and "\n" not in str(problem)
        else:
            assert (picture.dtype, picture.ndim, picture.shape[2]) == (np.uint8, 3, 3)
            read += 1
    assert COUNT // 4 < read < COUNT
