"""The predictor: any picture in, the model's result at the picture's own size out."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.tasks.queries import QueryOutputs
from tests.models.tiny import MODELS

pytestmark = pytest.mark.usefixtures("quick_compilation")


def picture(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Smooth colours, so that resizing changes little."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((columns, rows), Image.Resampling.BICUBIC))


@pytest.fixture(scope="module")
def predictor(tiny_model: Saliency) -> hj.Predictor:
    return hj.Predictor(tiny_model, batch_size=2)


def test_one_image_gives_an_array_and_a_list_gives_a_list(predictor: hj.Predictor) -> None:
    image = picture(50, 60)
    result = predictor(image)
    assert result.dtype == np.float32
    assert result.shape == (50, 60)
    assert 0 <= result.min() < result.max() <= 1
    [same] = predictor([image])
    np.testing.assert_array_equal(same, result)
    np.testing.assert_array_equal(predictor((image,))[0], result)
    assert predictor([]) == []


def test_results_have_the_sizes_of_their_images_and_their_order(predictor: hj.Predictor) -> None:
    sizes = [(50, 60), (300, 40), (100, 120), (14, 17), (53, 60)]
    results = predictor([picture(*size) for size in sizes])
    assert [result.shape for result in results] == sizes


def test_images_together_give_what_each_gives_alone(tiny_model: Saliency, tiny_plan: hj.Hourglass) -> None:
    """Two shapes in mixed order; the last batch of each is filled up or smaller."""
    predictor = hj.Predictor(hj.expedite(tiny_model, tiny_plan), batch_size=2)
    sizes = [(70, 70), (56, 70), (80, 80), (42, 42)]
    images = [picture(*size, seed=seed) for seed, size in enumerate(sizes)]
    together = predictor(images)
    for image, result in zip(images, together, strict=True):
        np.testing.assert_allclose(result, predictor(image), atol=1e-6)
    assert np.abs(together[0][:42, :42] - together[3]).max() > 0.01


def test_a_function_is_compiled_once_for_an_input_shape(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    traced, features = [], Saliency.features
    monkeypatch.setattr(
        Saliency, "features", lambda self, images: traced.append(images.shape) or features(self, images)
    )
    predictor = hj.Predictor(tiny_model, batch_size=2)
    jax.clear_caches()
    squares = [picture(side, side, seed=side) for side in (70, 75, 80, 85, 90)]
    for _ in range(2):
        predictor(squares)
    assert traced == [(2, 70, 70, 3)]
    predictor([picture(56, 70), *squares, picture(112, 140)])
    assert traced == [(2, 70, 70, 3), (2, 56, 70, 3)]


def test_the_plan_changes_the_result_and_the_model_keeps_its_own(tiny_model, tiny_plan, predictor) -> None:
    image = picture(50, 60)
    before = predictor(image)
    fast = hj.Predictor(hj.expedite(tiny_model, tiny_plan))(image)
    assert np.abs(fast - before).max() > 1e-4
    np.testing.assert_array_equal(predictor(image), before)


def test_preprocessing_can_be_replaced(tiny_model: Saliency, predictor: hj.Predictor) -> None:
    image = picture(50, 60)
    coarse = hj.Predictor(tiny_model, preprocessing=Preprocessing(size=28))(image)
    assert coarse.shape == (50, 60)
    assert np.abs(coarse - predictor(image)).max() > 1e-3


def grey(image: Image.Image) -> Image.Image:
    return image.convert("L")


def sixteen_bits(image: Image.Image) -> Image.Image:
    return Image.fromarray(np.asarray(grey(image)).astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("variant", "plain"),
    [
        (grey, lambda image: grey(image).convert("RGB")),
        (sixteen_bits, lambda image: grey(image).convert("RGB")),
        (lambda image: image.convert("RGBA"), lambda image: image),
        (lambda image: image.quantize(16), lambda image: image.quantize(16).convert("RGB")),
    ],
    ids=["greyscale", "16-bit", "RGBA", "palette"],
)
def test_every_mode_is_read_as_the_colours_it_shows(variant, plain, predictor, tmp_path: Path) -> None:
    image = Image.fromarray(picture(50, 60))
    path = tmp_path / "image.png"
    variant(image).save(path)
    expected = predictor(np.asarray(plain(image)))
    for source in (path, str(path), variant(image)):
        np.testing.assert_allclose(predictor(source), expected, atol=1e-6)


def test_an_exif_rotated_photo_is_turned_upright(predictor: hj.Predictor, tmp_path: Path) -> None:
    upright = Image.fromarray(picture(50, 60))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    upright.rotate(90, expand=True).save(tmp_path / "rotated.png", exif=exif)
    np.testing.assert_array_equal(predictor(tmp_path / "rotated.png"), predictor(upright))


def corrupt(folder: Path) -> Path:
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 60, 3), dtype=np.uint8)).save(whole)
    path = folder / "corrupt.png"
    path.write_bytes(whole.read_bytes()[:2000])
    return path


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (corrupt, "corrupt.png cannot be decoded"),
        (lambda folder: folder / "missing.png", "missing.png does not exist"),
        (lambda folder: np.empty((0, 60, 3), np.uint8), "at least one pixel"),
        (lambda folder: np.full((60, 60, 3), np.nan, np.float32), "NaN"),
        (lambda folder: picture(13, 60), "at least 14 x 14 pixels, got 13 x 60"),
        (lambda folder: np.zeros((2, 60, 60, 3), np.uint8), "shape"),
        (lambda folder: 3, "got int"),
    ],
    ids=["corrupt", "missing", "empty", "NaN", "under one patch", "batch array", "number"],
)
def test_a_bad_image_is_one_clear_error(source, message: str, predictor: hj.Predictor, tmp_path: Path) -> None:
    bad = source(tmp_path)
    for images in (bad, [picture(60, 60), bad]):
        with pytest.raises(ValueError, match=message) as raised:
            predictor(images)
        assert "\n" not in str(raised.value)


def test_a_plan_that_does_not_fit_the_image_says_so(tiny_model: Saliency) -> None:
    predictor = hj.Predictor(hj.expedite(tiny_model, hj.Hourglass(1, (5, 5))))
    with pytest.raises(ValueError, match="5 x 5 clusters for 4 x 5 tokens"):
        predictor(picture(56, 70))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_holds_at_least_one_image(tiny_model: Saliency, batch_size: int) -> None:
    with pytest.raises(ValueError, match=f"batch_size must be at least 1, got {batch_size}"):
        hj.Predictor(tiny_model, batch_size=batch_size)


def test_two_devices_share_a_batch_and_do_not_wait_for_each_other(tiny_file: Path) -> None:
    """Three images, of which one is alone; in a process of its own, as JAX starts once."""
    code = """
import json, sys
import hourglass_jax as hj
import jax, numpy as np
jax.config.update("jax_disable_most_optimizations", True)
from hourglass_jax.predictor import run_shared
fast = hj.expedite(hj.load(sys.argv[1]), hj.StagedMerging(0.8))
photos = list(np.random.default_rng(0).integers(0, 256, (3, 70, 70, 3), np.uint8))
both = hj.Predictor(fast, batch_size=3)
one = hj.Predictor(fast, batch_size=3, mesh=jax.sharding.Mesh(jax.devices()[:1], ("images",)))
error = max(np.abs(a - b).max() for a, b in zip(both(photos), one(photos), strict=True))
images = jax.ShapeDtypeStruct((4, 70, 70, 3), "float32")
text = run_shared.lower(both._on_all_devices, images, mesh=both.mesh).compile().as_text()
collectives = [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
shared = both._run(np.zeros((3, 70, 70, 3), np.float32), [(70, 70)] * 3)
print(json.dumps([float(error), collectives, len(shared.sharding.device_set)]))
"""
    flags = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", code, str(tiny_file)]
    printed = subprocess.check_output(command, text=True, env={**os.environ, "XLA_FLAGS": flags})
    error, collectives, devices = json.loads(printed)
    assert error < 1e-6
    assert collectives == []
    assert devices == 2


def test_photographs_of_like_sizes_are_filled_up_to_one_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """So one function is compiled for them; every result has its own photograph's size."""
    shapes = []

    def run(model: object, images: np.ndarray, sizes: object) -> QueryOutputs:
        shapes.append(images.shape)
        return QueryOutputs(
            np.zeros((len(images), 6, 6), np.float32), np.zeros((len(images), 6, 8, 16), np.float32)
        )

    monkeypatch.setattr("hourglass_jax.predictor.run", run)
    monkeypatch.setattr("hourglass_jax.predictor.check_memory", lambda *_: None)
    cls, config = MODELS["mask2former, Swin"]
    predictor = hj.Predictor(nnx.eval_shape(lambda: cls(config, rngs=nnx.Rngs(0))))
    for columns in (64, 60, 80):
        result = predictor(np.zeros((50, columns, 3), np.uint8))
        assert result.segments.shape == (50, columns)
    assert set(shapes) == {(1, 32, 64, 3)}
