"""Segmenter: shapes, padding, both places of the reconstruction, and what the predictor makes of it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

PREPROCESSING = Preprocessing(size=32, multiple=1, resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
CONFIG = SegmenterConfig(
    ViTConfig(
        patch_size=8,
        width=64,
        depth=3,
        heads=2,
        position_grid=(4, 4),
        position_resize="bilinear",
        norm_epsilon=1e-5,
    ),
    classes=5,
    decoder_depth=1,
    window=SlidingWindow(32, 24),
    preprocessing=PREPROCESSING,
)
CLUSTERS = hj.Hourglass(1, (2, 3), temperature=5.0, neighbors=3, reconstruct="logits")


def segmenter(config: SegmenterConfig = CONFIG) -> Segmenter:
    """As initialised, with noise on everything: no bias is zero, no scale one."""
    model = Segmenter(config, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    noise = jax.tree.map(lambda each: each + random.normal(0, 0.1, each.shape), nnx.state(model))
    nnx.update(model, jax.tree.map(lambda each: each.astype(np.float32), noise))
    return model


@pytest.fixture(scope="module")
def model() -> Segmenter:
    return segmenter()


run = nnx.jit(lambda model, images: model(images))


def images(rows: int, columns: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, rows, columns, 3)).astype(np.float32)


def photo(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize("plan", [None, CLUSTERS, replace(CLUSTERS, reconstruct="tokens")], ids=repr)
@pytest.mark.parametrize("decoder", ["linear", "mask_transformer"])
def test_logits_have_the_images_size_and_those_of_one_image_are_its_own(decoder: str, plan) -> None:
    model = hj.expedite(segmenter(replace(CONFIG, decoder=decoder)), plan)
    batch = images(30, 43)
    logits = run(model, batch)
    assert (logits.shape, logits.dtype) == ((2, 30, 43, 5), np.float32)
    np.testing.assert_allclose(run(model, batch[1:]), logits[1:], atol=1e-4)
    assert np.ptp(logits, axis=(1, 2)).min() > 0.05


def test_padding_is_zeros_at_the_bottom_and_on_the_right(model: Segmenter) -> None:
    image = images(30, 43)
    padded = np.pad(image, ((0, 0), (0, 2), (0, 5), (0, 0)))
    np.testing.assert_allclose(run(model, image), run(model, padded)[:, :30, :43], atol=1e-5)


@pytest.mark.slow
def test_the_two_places_of_reconstruction_differ_but_not_for_a_linear_decoder(model: Segmenter) -> None:
    """Weights of a token sum to one, so they pass through whatever is affine; the final norm is none."""
    image = images(32, 32, batch=1)
    tokens, logits = (
        run(hj.expedite(model, replace(CLUSTERS, reconstruct=place)), image) for place in ("tokens", "logits")
    )
    assert np.abs(tokens - logits).max() > 0.01
    linear = segmenter(replace(CONFIG, decoder="linear"))
    features = hj.expedite(linear, CLUSTERS).features(image).tokens
    restored = linear.decoder(features.restore(features.values))
    np.testing.assert_allclose(restored, features.restore(linear.decoder(features.values)), atol=1e-5)


def test_as_many_clusters_as_tokens_change_nothing(model: Segmenter) -> None:
    lossless = hj.Hourglass(1, (4, 4), window=1, temperature=1.0, neighbors=1, reconstruct="logits")
    image = images(32, 32)
    np.testing.assert_allclose(run(hj.expedite(model, lossless), image), run(model, image), atol=1e-4)


def test_the_decoder_on_clusters_costs_less(model: Segmenter) -> None:
    heads = {
        place: count_macs(hj.expedite(model, replace(CLUSTERS, reconstruct=place)), (64, 64))["head"]
        for place in ("tokens", "logits")
    }
    assert heads["logits"] < heads["tokens"] == count_macs(model, (64, 64))["head"]


def test_windows_and_whole_images(model: Segmenter, monkeypatch: pytest.MonkeyPatch) -> None:
    image = photo(40, 70)
    prepared = PREPROCESSING(image)
    logits = np.asarray(run(model, prepared[None]))[0]
    whole = hj.Predictor(model, whole=True)(image)
    assert (whole.shape, whole.dtype) == ((40, 70), np.uint8)
    np.testing.assert_array_equal(whole, logits.argmax(axis=-1))

    views, layout = CONFIG.window.cut(prepared)
    total, count = np.zeros((40, 70, 5)), np.zeros((40, 70, 1))
    places = [(y, x) for y in layout.tops for x in layout.lefts]
    for window, (y, x) in zip(np.asarray(run(model, views)), places, strict=True):
        total[y : y + 32, x : x + 32] += window
        count[y : y + 32, x : x + 32] += 1
    predictor = hj.Predictor(model, batch_size=2)
    traced, features = [], Segmenter.features
    monkeypatch.setattr(
        Segmenter, "features", lambda self, images: traced.append(images.shape) or features(self, images)
    )
    jax.clear_caches()
    np.testing.assert_array_equal(predictor(image), (total / count).argmax(axis=-1))
    assert (predictor(image) != whole).any()

    other = photo(20, 50)
    together = predictor([other, image])
    np.testing.assert_array_equal(together[1], predictor(image))
    assert together[0].shape == (20, 50)
    assert traced == [(2, 32, 32, 3)]


def test_pictures_and_labels(model: Segmenter) -> None:
    image, labels = photo(40, 50), np.random.default_rng(0).integers(0, 5, (40, 50)).astype(np.uint8)
    task = model.tasks["segmentation"]
    pictures = task.render(image, labels).pictures
    assert list(pictures) == ["labels", "colors", "overlay"]
    np.testing.assert_array_equal(pictures["labels"], labels)
    assert pictures["colors"].shape == (40, 50, 3)
    assert pictures["overlay"].shape[1] > 50
    assert task.labels.names[0] == "class 0"
    cityscapes = segmenter(replace(CONFIG, classes=19, dataset="cityscapes"))
    assert cityscapes.tasks["segmentation"].labels.names[0] == "road"


def test_more_than_256_classes_have_16_bit_labels() -> None:
    model = segmenter(replace(CONFIG, classes=300, decoder="linear"))
    assert hj.Predictor(model)(photo(40, 40)).dtype == np.uint16


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"decoder": "deeplab"}, "decoder must be 'linear' or 'mask_transformer', got 'deeplab'"),
        ({"classes": 0}, "classes must be at least 1, got 0"),
    ],
)
def test_config_checks_its_fields(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(CONFIG, **fields)
