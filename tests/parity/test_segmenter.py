"""Segmenter from the official file to the label map, against PyTorch, with random weights.

Files are written as the official training writes them, converted and loaded; nothing is copied by hand.
"""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import cache, partial
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.segmenter import Segmenter
from tests.parity.segmenters import Net, TorchSegmenter, inference, prepare, save_mmseg, save_upstream
from tests.parity.vits import channels_first, random_images, randomize

ATOL = 2e-5
"""On logits of order one; another epsilon (1e-6 for 1e-5) of the encoder's or decoder's norms is 1e-3 away."""
SMALL = {"d_model": 128, "n_layers": 3, "n_cls": 11, "image_size": (64, 64), "patch_size": 8}
RESIDUAL = re.compile(r"_token$|pos_embed|patch_embed|cls_emb|proj_dec|attn\.proj|fc2")
"""Parameters that make up what the blocks add to."""
SIZES = [(64, 64), (61, 90)]
"""Of images: as in training, and with another grid than the position embedding's and sides that are padded."""
OBLONG = (80, 56)
WINDOW = (64, 40)
PLAN = hj.Hourglass(1, (5, 4), window=3, temperature=0.08, neighbors=4, reconstruct="logits")
"""At this temperature, a token is near to three of the twenty clusters (the exponential of the entropy, median)."""

Pair = Callable[..., tuple[TorchSegmenter, Segmenter]]

pytestmark = pytest.mark.usefixtures("quick_compilation")


def random_segmenter(**net: object) -> TorchSegmenter:
    """Weights that hide nothing: features small enough for epsilons to show, and no class that wins everywhere."""
    model = randomize(TorchSegmenter(Net(**SMALL, **net)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if RESIDUAL.search(name):
                parameter *= 0.05
        bias = model.decoder.head.bias if model.net.decoder == "linear" else model.decoder.mask_norm.bias
        bias -= model.token_logits(prepare(PHOTOS[2], "vit")).mean(dim=(0, 2, 3))
    return model


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Makes a Segmenter of PyTorch and ours, by way of the official file."""

    @cache
    def build(*, normalization: str = "vit", **net: object) -> tuple[TorchSegmenter, Segmenter]:
        model = random_segmenter(n_heads=4, **net)
        folder = tmp_path_factory.mktemp("segmenter")
        checkpoint = save_upstream(model, folder / "segm", window=WINDOW, normalization=normalization)
        return model, converted(checkpoint, folder)

    return build


def converted(checkpoint: Path, folder: Path, heads: int | None = None) -> Segmenter:
    return hj.load(convert(checkpoint, folder / "converted.safetensors", heads=heads).target)


@nnx.jit
def logits(model: Segmenter, images: jax.Array) -> jax.Array:
    return model(images)


@nnx.jit
def run_forward(model: Segmenter, images: jax.Array) -> jax.Array:
    return model.decode(model.features(images), None)


@torch.inference_mode()
def torch_logits(model: TorchSegmenter, images: np.ndarray, **options: object) -> np.ndarray:
    """[B, rows, columns, classes], computed in float64."""
    return deepcopy(model).double()(channels_first(images).double(), **options).permute(0, 2, 3, 1).numpy()


@torch.inference_mode()
def torch_coarse(model: TorchSegmenter, images: np.ndarray, **options: object) -> np.ndarray:
    """[B, H, W, classes], computed in float64."""
    found = deepcopy(model).double().token_logits(channels_first(images).double(), **options)
    return found.permute(0, 2, 3, 1).numpy()


def photo(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Soft patches of colour and some noise, uint8 [rows, columns, 3]."""
    random = np.random.default_rng(seed)
    patches = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8))
    smooth = np.asarray(patches.resize((columns, rows), Image.Resampling.BICUBIC), float)
    return np.clip(smooth + random.normal(0, 20, smooth.shape), 0, 255).astype(np.uint8)


PHOTOS = [photo(*size, seed) for seed, size in enumerate([(40, 55), (64, 64), (100, 150), (170, 90), (50, 130)])]
"""Smaller than a window, as large, larger in landscape and portrait, and with one shorter side."""


def assert_same_labels(ours: np.ndarray, theirs: torch.Tensor) -> None:
    """Of two label maps, all but one pixel in a thousand."""
    assert ours.dtype == np.uint8
    assert ours.shape == theirs.shape
    assert np.mean(ours == theirs.numpy()) >= 0.999


@pytest.mark.parametrize("decoder", ["mask_transformer", "linear"])
@pytest.mark.parametrize("distilled", [False, True])
def test_official_file(decoder: str, distilled: bool, pair: Pair) -> None:
    theirs, ours = pair(decoder=decoder, distilled=distilled)
    assert ours.config.backbone.special_tokens == 1 + distilled
    for size in SIZES:
        images = random_images(*size)
        found, expected = logits(ours, images), torch_logits(theirs, images)
        assert len(np.unique(expected.argmax(axis=-1))) >= 5
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_file_of_mmsegmentation(tmp_path: Path) -> None:
    theirs = random_segmenter(n_heads=2)
    ours = converted(save_mmseg(theirs, tmp_path / "model.pth"), tmp_path, heads=2)
    images = random_images(*SIZES[0])
    np.testing.assert_allclose(logits(ours, images), torch_logits(theirs, images), rtol=0, atol=ATOL)


@pytest.mark.parametrize(
    ("decoder", "reconstruct", "beta"),
    [
        ("mask_transformer", "logits", None),
        ("linear", "logits", None),
        ("mask_transformer", "tokens", None),
        ("mask_transformer", "tokens", 1),
    ],
)
def test_hourglass(decoder: str, reconstruct: str, beta: int | None, pair: Pair) -> None:
    """Weights that sum to one, as in the paper."""
    plan = hj.Hourglass(**{**vars(PLAN), "reconstruct": reconstruct, "beta": beta})
    theirs, ours = pair(decoder=decoder, distilled=decoder == "linear")
    images = random_images(*OBLONG)
    found, expected = logits(hj.expedite(ours, plan), images), torch_logits(theirs, images, plan=plan)
    np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL)


def test_official_weights_rescale_the_logits_of_a_token(pair: Pair) -> None:
    """Their Euclidean norm is one: other logits of a token by a factor that its classes share, the same label."""
    theirs, ours = pair()
    images = random_images(*OBLONG)
    found, official = run_forward(hj.expedite(ours, PLAN), images), torch_coarse(theirs, images, plan=PLAN, norm=2)
    factor = (found * official).sum(axis=-1, keepdims=True) / (found**2).sum(axis=-1, keepdims=True)
    assert np.quantile(factor, 0.5) > 1.1
    np.testing.assert_allclose(factor * found, official, rtol=0, atol=ATOL)
    np.testing.assert_array_equal(found.argmax(axis=-1), official.argmax(axis=-1))


@pytest.mark.parametrize(("plan", "normalization"), [(None, "vit"), (PLAN, "deit")])
def test_sliding_windows(plan: hj.Hourglass | None, normalization: str, pair: Pair) -> None:
    theirs, ours = pair(normalization=normalization)
    found = hj.Predictor(hj.expedite(ours, plan), batch_size=4)(PHOTOS)
    for image, labels in zip(PHOTOS, found, strict=True):
        expected = inference(partial(theirs, plan=plan), prepare(image, normalization), WINDOW).argmax(dim=0)
        assert len(expected.unique()) >= 3
        assert_same_labels(labels, expected)


def test_whole_photographs(pair: Pair) -> None:
    theirs, ours = pair()
    predict = hj.Predictor(ours, whole=True)
    for image in PHOTOS[2:4]:
        with torch.inference_mode():
            expected = theirs(prepare(image, "vit"))[0].argmax(dim=0)
        assert_same_labels(predict(image), expected)
