"""Mask2Former from detectron2's pickle to pictures on the command line, and one line for every wrong input."""

import json
import pickle
import shutil
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.cli import main
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.imaging.segment_labels import segment_labels
from tests.convert.test_mask2former import official
from tests.models.tiny import build

pytestmark = pytest.mark.usefixtures("quick_compilation")

LABELS = segment_labels("cityscapes", None)
TESTED = {"SEMANTIC_ON": True, "INSTANCE_ON": True, "PANOPTIC_ON": True, "OBJECT_MASK_THRESHOLD": 0.0}
SETTINGS = {
    "MODEL": {
        "SEM_SEG_HEAD": {"NUM_CLASSES": 19},
        "MASK_FORMER": {"NUM_OBJECT_QUERIES": 10, "TEST": {**TESTED, "OVERLAP_THRESHOLD": 0.1}},
    },
    "INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128},
    "TEST": {"DETECTIONS_PER_IMAGE": 100},
    "DATASETS": {"TEST": ["cityscapes_fine_panoptic_val"]},
}
PHOTOS = ("chelsea", "coffee")


def write_pickle(folder: Path, test: dict | None = None) -> Path:
    """What detectron2 saves of a model, sure of no class, and the settings beside it."""
    arrays = official(19, queries=10)
    sure = {name: 0.1 * array for name, array in arrays.items() if "class_embed" in name}
    model = OrderedDict(arrays | sure)
    model._metadata = OrderedDict({"": {"version": 1}})
    path = folder / "model_final.pkl"
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Third-Party Model"}))
    settings = {**SETTINGS, "MODEL": {**SETTINGS["MODEL"], "MASK_FORMER": {"TEST": test}}} if test else SETTINGS
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mask2former")
    main(["convert", str(write_pickle(folder)), "-o", str(folder / "model.safetensors")])
    return folder / "model.safetensors"


def predict(model: Path, output: Path, task: str, capsys: pytest.CaptureFixture[str]) -> dict[str, dict]:
    """What the command reports of every photograph."""
    paths = [str(photographs()[name]) for name in PHOTOS]
    main(["predict", *paths, "--model", str(model), "--task", task, "-o", str(output), "--json"])
    images = json.loads(capsys.readouterr().out)["images"]
    return dict(zip(PHOTOS, images, strict=True))


def picture(path: str) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def size_of(name: str) -> tuple[int, int]:
    return picture(str(photographs()[name])).shape[:2]


def test_panoptic_maps_are_a_png_of_numbers_and_a_json(model: Path, tmp_path: Path, capsys) -> None:
    found = predict(model, tmp_path, "panoptic", capsys)
    for name, row in found.items():
        numbers = picture(row["files"]["panoptic"]) @ np.array([1, 256, 65536])
        document = json.loads(Path(row["files"]["panoptic_json"]).read_text())
        [annotation] = document["annotations"]
        assert numbers.shape == size_of(name)
        assert annotation["file_name"] == Path(row["files"]["panoptic"]).name
        infos = annotation["segments_info"]
        assert {each["id"] for each in infos} == set(np.unique(numbers)) - {0}
        for each in infos:
            assert each["area"] == (numbers == each["id"]).sum()
            assert each["category_id"] in LABELS.ids
            assert each["isthing"] == (LABELS.ids.index(each["category_id"]) in LABELS.things)
        assert [each["id"] for each in row["segments"]] == [each["id"] for each in infos]
        assert picture(row["files"]["overlay"]).shape[1] > size_of(name)[1]
    assert any(row["segments"] for row in found.values())


def test_instances_are_a_json_of_results_with_run_lengths(model: Path, tmp_path: Path, capsys) -> None:
    for name, row in predict(model, tmp_path, "instances", capsys).items():
        results = json.loads(Path(row["files"]["instances_json"]).read_text())
        assert 0 < len(results) <= 100
        for result, record in zip(results, row["instances"], strict=True):
            assert (result["image_id"], result["score"]) == (name, pytest.approx(record["score"]))
            assert LABELS.ids.index(result["category_id"]) in LABELS.things
            assert tuple(result["segmentation"]["size"]) == size_of(name)
            left, top, width, height = result["bbox"]
            assert (left, top, left + width, top + height) == tuple(record["box"])
        assert picture(row["files"]["overlay"]).shape[0] >= size_of(name)[0]


def test_label_maps_are_as_large_as_the_photographs(model: Path, tmp_path: Path, capsys) -> None:
    for name, row in predict(model, tmp_path, "segmentation", capsys).items():
        labels = picture(row["files"]["labels"])
        assert (labels.shape, labels.dtype) == (size_of(name), np.uint8)
        assert labels.max() < 19


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a command says before it exits with 2."""
    with pytest.raises(SystemExit) as exit_:
        main(arguments)
    assert exit_.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    return line


def test_a_task_that_the_checkpoint_was_not_trained_for(tmp_path: Path, capsys) -> None:
    source = write_pickle(tmp_path, {"SEMANTIC_ON": True, "INSTANCE_ON": False, "PANOPTIC_ON": False})
    main(["convert", str(source), "-o", str(tmp_path / "model.safetensors")])
    capsys.readouterr()
    photo = str(photographs()["chelsea"])
    line = fails(["predict", photo, "--model", str(tmp_path / "model.safetensors"), "--task", "panoptic"], capsys)
    assert line == "error: Mask2Former has the tasks segmentation, and not 'panoptic'"


def test_settings_of_other_classes_and_files_that_were_cut_off(tmp_path: Path, capsys) -> None:
    source = write_pickle(tmp_path)
    line = fails(["convert", str(source), "--dataset", "coco_panoptic"], capsys)
    assert "classes must be 133 for the data set coco_panoptic, got 19" in line
    settings = {**SETTINGS, "MODEL": {"SEM_SEG_HEAD": {"NUM_CLASSES": 133}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    line = fails(["convert", str(source), "--config", str(tmp_path / "other.yaml")], capsys)
    assert "the settings are of another model: they say MODEL.SEM_SEG_HEAD.NUM_CLASSES 133" in line
    source.write_bytes(source.read_bytes()[:-5000])
    assert str(source) in fails(["convert", str(source)], capsys)
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return hj.save(build("mask2former, Swin"), tmp_path / "tiny.safetensors")


@pytest.mark.slow
def test_every_analysis_takes_the_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Costs, speed, features, what differs in a task, and what a plan does inside."""
    photo, plan = str(photographs()["chelsea"]), ["--alpha", "1", "--clusters", "2", "2", "--model", str(tiny)]

    def run(command: str, *arguments: str) -> dict:
        main([command, *arguments, *plan, "--json"])
        return json.loads(capsys.readouterr().out)

    costs = run("flops", "--size", "64")
    assert costs["expedited"]["blocks"] < costs["original"]["blocks"]
    assert costs["expedited"]["head"] == costs["original"]["head"] > 0
    assert run("bench", "--repeats", "1")["speedup"] > 0
    compared = run("compare", photo, "-o", str(tmp_path), "--task", "instances", "--repeats", "1")
    assert 0 < compared["mean"]["cosine"] < 1
    [image] = run("features", photo, "-o", str(tmp_path))["images"]
    assert [*image["maps"]] == ["res2", "res3", "res4", "res5"]
    [image] = run("visualize", photo, "-o", str(tmp_path), "--rows", "3", "1", "--task", "segmentation")["images"]
    assert [*image["files"]] == ["predictions", "features", "attention"]
    for path in (compared["images"][0]["picture"], *image["files"].values()):
        assert picture(path).std() > 10


@pytest.mark.slow
def test_a_plan_is_tuned_for_the_model(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in PHOTOS:
        shutil.copy(photographs()[name], tmp_path)
    options = ["--images", str(tmp_path), "-o", str(tmp_path / "out"), "--model", str(tiny), "--gflops", "0.97"]
    main(["tune", *options, "--method", "Hourglass", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["plan"]["method"] == "Hourglass" and 0.5 < found["share"] <= 0.97
    assert 0 < found["held_out_cosine"] < 1
    main(["tune", *options, "--json"])
    assert json.loads(capsys.readouterr().out)["plan"] == found["plan"]
