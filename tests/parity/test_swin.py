"""Swin V1 and V2 against timm and transformers, converted from their weights in every naming."""

from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

from hourglass_jax.models.encoder import Encoder
from tests.parity.swins import (
    DEPTHS,
    HEADS,
    WIDTH,
    WINDOW,
    classification_names,
    converted,
    detection_names,
    normed,
    saved,
)
from tests.parity.vits import channels_first, random_images, randomize

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4
"""On features of order one."""
TIMM = {1: "swin_tiny_patch4_window7_224", 2: "swinv2_tiny_window8_256"}
TRANSFORMERS = {1: "Swin", 2: "Swinv2"}


@nnx.jit
def stages(model: Encoder, images: jax.Array) -> tuple[jax.Array, ...]:
    return model.backbone(images).stages


def assert_same(encoder: Encoder, images: np.ndarray, expected: list[np.ndarray]) -> None:
    found = stages(encoder, images)
    assert len(found) == len(expected) == len(DEPTHS)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=ATOL)


def timm_model(version: int, side: int, **options: object) -> torch.nn.Module:
    shape = {"embed_dim": WIDTH, "depths": DEPTHS, "num_heads": HEADS, "window_size": WINDOW}
    return randomize(timm.create_model(TIMM[version], img_size=side, **(shape | options)))


def timm_stages(model: torch.nn.Module, images: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        _, maps = model.forward_intermediates(channels_first(images), norm=True)
    return [each.permute(0, 2, 3, 1).numpy() for each in maps]


@pytest.mark.parametrize("side", [128, 64])
@pytest.mark.parametrize("version", [1, 2])
def test_classifiers_of_microsoft(tmp_path: Path, version: int, side: int) -> None:
    """The last map is as large as a window, or half as large."""
    model = timm_model(version, side)
    encoder = converted(saved(classification_names(model), tmp_path), "swin")
    assert encoder.config.preprocessing.size == side
    assert encoder.config.backbone.pretrained_windows == (4, 4, 4, side // 32)
    images = random_images(side, side)
    assert_same(encoder, images, timm_stages(model, images))


@pytest.mark.parametrize("version", [1, 2])
def test_classifiers_of_timm(tmp_path: Path, version: int) -> None:
    model = timm_model(version, 128)
    model.pretrained_cfg |= {"architecture": "swin_window4_128", "input_size": (3, 128, 128), "mean": (0.5,) * 3}
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    encoder = converted(tmp_path / "model.safetensors", "swin-timm")
    assert encoder.config.preprocessing.size == 128
    assert encoder.config.preprocessing.mean == (0.5,) * 3
    images = random_images(128, 128)
    assert_same(encoder, images, timm_stages(model, images))


@pytest.mark.parametrize("size", [(128, 128), (128, 160), (84, 118)], ids=str)
@pytest.mark.parametrize("version", [1, 2])
def test_backbones_of_detectors(tmp_path: Path, version: int, size: tuple[int, int]) -> None:
    """Maps that are larger and smaller than a window, and no multiples of one."""
    name = TRANSFORMERS[version]
    config = getattr(transformers, f"{name}Config")(
        embed_dim=WIDTH,
        depths=DEPTHS,
        num_heads=HEADS,
        window_size=WINDOW,
        image_size=256,
        out_features=[f"stage{number}" for number in range(1, 5)],
    )
    model = randomize(getattr(transformers, f"{name}Backbone")(config))
    tensors = detection_names(model)
    encoder = converted(saved(tensors, tmp_path), "swin-detectron2")
    images = random_images(*size)
    with torch.no_grad():
        maps = model(channels_first(images)).feature_maps
    expected = normed(maps, tensors) if version == 2 else [each.permute(0, 2, 3, 1).numpy() for each in maps]
    assert_same(encoder, images, expected)
