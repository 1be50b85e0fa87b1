"""The example of a model from outside the package: saved, loaded, expedited and predicted like any other."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.models.registry import ENTRY_POINTS, find_model, register_model

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLE = Path(__file__).parents[1] / "examples/own_model.py"


@pytest.fixture(scope="module")
def example() -> dict:
    return runpy.run_path(str(EXAMPLE))


def test_it_runs_as_it_stands() -> None:
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "(1, 64, 96, 3)\n"), done.stderr


def test_it_is_saved_loaded_expedited_and_predicted(example: dict, tmp_path: Path) -> None:
    model = example["Normals"](rngs=nnx.Rngs(0))
    loaded = hj.load(hj.save(model, tmp_path / "normals.safetensors"))
    assert (type(loaded), loaded.config) == (type(model), model.config)
    photo = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    result = hj.Predictor(hj.expedite(loaded, hj.Hourglass(1, (2, 2))))(photo)
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
