"""Small data sets in their published folders, and a small model that labels their pixels."""

from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig

CONFIG = SegmenterConfig(
    ViTConfig(
        patch_size=8,
        width=64,
        depth=2,
        heads=1,
        position_grid=(4, 4),
        position_resize="bilinear",
        norm_epsilon=1e-5,
    ),
    classes=19,
    decoder="linear",
    window=SlidingWindow(32, 24),
    dataset="cityscapes",
    preprocessing=Preprocessing(size=32, multiple=1, resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
)


def write(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def image(seed: int) -> np.ndarray:
    """Noise in 2 sizes."""
    size = (24, 40, 3) if seed % 2 else (33, 36, 3)
    return np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)


def label(seed: int, values: int) -> np.ndarray:
    """Values below `values`, for `image(seed)`."""
    return np.random.default_rng(seed).integers(0, values, image(seed).shape[:2], dtype=np.uint8)


@pytest.fixture(scope="session")
def cityscapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine images of two cities, with label ids."""
    root = tmp_path_factory.mktemp("cityscapes")
    for seed in range(9):
        city = "bonn" if seed < 4 else "ulm"
        stem = f"{city}/{city}_000000_{seed:06d}"
        write(root / f"leftImg8bit/val/{stem}_leftImg8bit.png", image(seed))
        write(root / f"gtFine/val/{stem}_gtFine_labelIds.png", label(seed, 34))
    return root


@pytest.fixture(scope="session")
def ade20k(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images, as the archive unpacks."""
    root = tmp_path_factory.mktemp("ade")
    for seed in range(3):
        write(root / f"ADEChallengeData2016/images/validation/ADE_val_{seed:08d}.jpg", image(seed))
        write(root / f"ADEChallengeData2016/annotations/validation/ADE_val_{seed:08d}.png", label(seed, 151))
    return root


@pytest.fixture(scope="session")
def pascal_context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of which two are listed."""
    root = tmp_path_factory.mktemp("pascal")
    voc = root / "VOCdevkit/VOC2010"
    for seed in range(3):
        write(voc / f"JPEGImages/2008_{seed:06d}.jpg", image(seed))
        write(voc / f"SegmentationClassContext/2008_{seed:06d}.png", label(seed, 60))
    listed = voc / "ImageSets/SegmentationContext/val.txt"
    listed.parent.mkdir(parents=True)
    listed.write_text("2008_000002\n2008_000000\n")
    return root


@pytest.fixture(scope="session")
def model() -> Segmenter:
    """Random parameters; what would make all pixels alike is left out, so that most of the 19 classes are found."""
    made = nnx.eval_shape(lambda: Segmenter(CONFIG, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        made, jax.tree.map(lambda each: random.normal(0, 0.1, each.shape).astype(np.float32), nnx.state(made))
    )
    made.backbone.norm.scale[...] = np.ones(64, np.float32)
    for each in (made.backbone.norm, made.decoder):
        each.bias[...] = np.zeros(each.bias.shape, np.float32)
    return made


@pytest.fixture(scope="session")
def model_file(model: Segmenter, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` as a converted file."""
    return hj.save(model, tmp_path_factory.mktemp("model") / "segmenter.safetensors")
