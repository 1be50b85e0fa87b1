"""Names and colours of classes come from the checkpoint, its settings or its user, never from their number."""

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.labels import class_fields, labels_in
from checkpoints_convert.rules import Given
from hourglass_jax.imaging.labels import Labels, labels_of
from tests.convert.checkpoints import mmsegmentation_vit, segmenter, swag, write_safetensors
from tests.convert.test_dpt import of_transformers, official

NAMES = tuple(f"crop {number}" for number in range(19))
COLORS = [[10 * number, 0, 0] for number in range(19)]
CROPS = Labels(NAMES, tuple(map(tuple, COLORS)))
ARRAYS = segmenter(mmsegmentation_vit(), "decode_head.", classes=19, masks=True).arrays


def labels_of_model(model) -> Labels:
    """The classes of a model's only task."""
    [task] = model.tasks.values()
    return task.labels


def saved(folder: Path, **beside: object) -> Path:
    """A checkpoint in the layout of mmcv and mmengine; a pickle of arrays is as good as PyTorch's of tensors."""
    (folder / "iter_1.pth").write_bytes(pickle.dumps({"state_dict": ARRAYS, **beside}))
    return folder / "iter_1.pth"


@pytest.mark.parametrize(
    "beside",
    [
        {"meta": {"CLASSES": NAMES, "PALETTE": COLORS, "epoch": 1}},
        {"meta": {"dataset_meta": {"classes": NAMES, "palette": COLORS}}},
        {"dataset_meta": {"CLASSES": [*NAMES], "PALETTE": COLORS}},
    ],
)
def test_the_checkpoint_names_and_colours_its_classes(tmp_path: Path, beside: dict) -> None:
    model = hj.load(convert(saved(tmp_path, **beside)).target)
    assert (model.config.dataset, model.config.labels, labels_of_model(model)) == (None, CROPS, CROPS)


def test_names_without_colours_have_those_of_pascal_voc(tmp_path: Path) -> None:
    labels = labels_of_model(hj.load(convert(saved(tmp_path, meta={"CLASSES": NAMES})).target))
    assert labels == Labels(NAMES, labels_of(None, 19).colors)


def test_the_names_of_a_known_data_set_are_recognised(tmp_path: Path) -> None:
    """Its windows overlap, whoever else has 19 classes."""
    cityscapes = labels_of("cityscapes", 19)
    config = convert(saved(tmp_path, meta={"CLASSES": [name.title() for name in cityscapes.names]})).config
    assert (config["dataset"], config["window"]) == (
        "cityscapes",
        {"kind": "SlidingWindow", "size": 6, "stride": 4},
    )


@pytest.mark.parametrize("meta", [{}, {"CLASSES": None}, {"CLASSES": ()}, {"epoch": 3}])
def test_the_number_of_classes_names_no_data_set(tmp_path: Path, meta: dict) -> None:
    summary = convert(saved(tmp_path, meta=meta))
    assert (summary.config["dataset"], summary.config["labels"]) == (None, None)
    assert any("if they are those of cityscapes, say so with --dataset" in note for note in summary.notes)
    assert labels_of_model(hj.load(summary.target)) == labels_of(None, 19)


def test_the_user_names_the_data_set(tmp_path: Path) -> None:
    config = convert(saved(tmp_path), dataset="cityscapes").config
    assert (config["dataset"], config["window"]["stride"]) == ("cityscapes", 4)
    with pytest.raises(CheckpointError, match="classes must be 150 for the data set ade20k, got 19"):
        convert(saved(tmp_path), dataset="ade20k")


WRONG = {
    "too few names": ({"CLASSES": NAMES[:5]}, "names 5 classes, but tells 19 apart"),
    "numbers": ({"CLASSES": tuple(range(19))}, "names of the checkpoint's classes must be texts"),
    "colours of two": (
        {"CLASSES": NAMES, "PALETTE": [[1, 2]] * 19},
        "colour of a class must be red, green and blue",
    ),
    "colours beyond 255": ({"CLASSES": NAMES, "PALETTE": [[1, 2, 300]] * 19}, r"in 0\.\.255, got \(1, 2, 300\)"),
    "colours of texts": (
        {"CLASSES": NAMES, "PALETTE": ["red"] * 19},
        "colour of a class must be red, green and blue",
    ),
}


@pytest.mark.parametrize(("meta", "message"), WRONG.values(), ids=WRONG)
def test_names_and_colours_that_are_none_are_refused(tmp_path: Path, meta: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(saved(tmp_path, meta=meta))


def test_a_palette_may_be_an_array() -> None:
    assert labels_in({"meta": {"CLASSES": NAMES, "PALETTE": np.array(COLORS, np.uint8)}}) == CROPS


@pytest.mark.parametrize(
    ("id2label", "names"),
    [
        ({str(number): name for number, name in enumerate(NAMES)}, NAMES),
        ({str(number): f"LABEL_{number}" for number in range(19)}, labels_of(None, 19).names),
        (None, labels_of(None, 19).names),
    ],
)
def test_the_names_of_transformers(
    tmp_path: Path, id2label: Mapping[str, str] | None, names: tuple[str, ...]
) -> None:
    source = write_safetensors(tmp_path / "model.pth", of_transformers(classes=19))
    (tmp_path / "config.json").write_text(json.dumps({"id2label": id2label}))
    model = hj.load(convert(source).target)
    assert (model.config.dataset, labels_of_model(model).names) == (None, names)


@pytest.mark.parametrize("id2label", [{"0": "a", "2": "b"}, {"0": 1}, ["a"], "a"])
def test_names_of_transformers_that_are_none(id2label: object) -> None:
    with pytest.raises(ValueError, match=r"id2label in the settings must|names of the checkpoint's classes must"):
        class_fields(2, Given({"id2label": id2label}))


@pytest.mark.parametrize(
    ("arrays", "classes", "dataset"),
    [
        (official(classes=150), 150, "ade20k"),
        (swag("layer_", "head.layers.head", classes=1000).arrays, 1000, "imagenet2012"),
    ],
)
def test_no_family_names_a_data_set_by_itself(tmp_path: Path, arrays: dict, classes: int, dataset: str) -> None:
    source = write_safetensors(tmp_path / "model.pth", arrays)
    assert convert(source).config["dataset"] is None
    assert labels_of_model(hj.load(convert(source, dataset=dataset).target)) == labels_of(dataset, classes)
