"""The example of a model from outside the package: saved, loaded, expedited and predicted like any other."""

import runpy
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.encoder import EncoderConfig
from hourglass_jax.models.registry import ENTRY_POINTS, find_model, register_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLE = Path(__file__).parents[1] / "examples/own_model.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


BACKBONES = {
    "vit": ViTConfig(patch_size=16, width=16, depth=2, heads=1, position_grid=(4, 4)),
    "swin": SwinConfig(width=8, depths=(1, 2, 1, 1), head_width=4, window=4),
}


def test_it_is_under_30_lines() -> None:
    assert len(EXAMPLE.read_text("utf-8").splitlines()) < 30


@pytest.mark.parametrize("backbone", ["vit", pytest.param("swin", marks=pytest.mark.slow)])
def test_it_is_saved_loaded_expedited_and_predicted(backbone: str, example: dict, tmp_path: Path) -> None:
    config = EncoderConfig(BACKBONES[backbone], Preprocessing(size=64, multiple=16))
    model = example["Normals"](config, rngs=nnx.Rngs(0))
    loaded = hj.load(hj.save(model, tmp_path / "normals.safetensors"))
    assert (type(loaded), loaded.config) == (type(model), model.config)
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    result = hj.Predictor(hj.expedite(loaded, hj.Hourglass(1, (2, 2), beta=1)))(photo)
    np.testing.assert_allclose(np.linalg.norm(result, axis=-1), 1, rtol=1e-5)


def test_an_entry_point_offers_a_model(example: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "others"

        def load(self) -> type:
            return example["Normals"]

    def points(group: str, **wanted: str):
        assert group == ENTRY_POINTS
        return [Point()] if wanted.get("name") == "others" else type("Points", (list,), {"names": {"others"}})()

    monkeypatch.setattr("hourglass_jax.models.registry.entry_points", points)
    assert find_model("others") is example["Normals"]
    with pytest.raises(ValueError, match=r"unknown model 'absent'; this version knows saliency, .*others"):
        find_model("absent")


def test_what_is_no_model_and_what_is_taken_is_refused(example: dict) -> None:
    with pytest.raises(ValueError, match="expected a VisionModel whose config_class is a dataclass, got 3"):
        register_model("three", 3)
    with pytest.raises(ValueError, match="the name 'saliency' is taken by another model"):
        register_model("saliency", example["Normals"])
