"""Data sets of panoptic maps and instances in their real formats, evaluated, stopped and resumed."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.evaluation.datasets import open_dataset
from hourglass_jax.evaluation.evaluate import evaluate
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.imaging.segment_pictures import encode_ids
from hourglass_jax.metrics.run_lengths import encode_mask
from hourglass_jax.models.mask2former import Mask2Former
from tests.models import tiny

pytestmark = pytest.mark.usefixtures("quick_compilation")

SIZE, COUNT = (40, 48), 3
LAYOUTS = {
    "coco_panoptic": (
        "val2017/00000000000{n}.jpg",
        "annotations/panoptic_val2017.json",
        "annotations/panoptic_val2017/00000000000{n}.png",
    ),
    "ade20k_panoptic": (
        "ADEChallengeData2016/images/validation/ADE_val_0000000{n}.jpg",
        "ADEChallengeData2016/ade20k_panoptic_val.json",
        "ADEChallengeData2016/ade20k_panoptic_val/ADE_val_0000000{n}.png",
    ),
    "cityscapes_panoptic": (
        "leftImg8bit/val/ulm/ulm_00000{n}_000019_leftImg8bit.png",
        "gtFine/cityscapes_panoptic_val.json",
        "gtFine/cityscapes_panoptic_val/ulm_00000{n}_000019_gtFine_panoptic.png",
    ),
}
CLASSES = {"coco_panoptic": "coco_panoptic", "ade20k_panoptic": "ade20k", "cityscapes_panoptic": "cityscapes"}


def numbers(place: int) -> np.ndarray:
    """A map of three segments and a part that belongs to none."""
    segments = np.full(SIZE, 70000 + place, np.int32)
    segments[:20, :20], segments[20:, 30:], segments[:5] = 300, 5, 0
    return segments


def write_panoptic(root: Path, name: str) -> None:
    labels = segment_labels(CLASSES[name], None)
    image, document, truth = LAYOUTS[name]
    stuff = next(label for label in range(len(labels.names)) if label not in labels.things)
    thing = min(labels.things)
    images, annotations = [], []
    for place in range(1, COUNT + 1):
        for path, array in (
            (image, np.full((*SIZE, 3), 60 * place, np.uint8)),
            (truth, encode_ids(numbers(place))),
        ):
            file = root / path.format(n=place)
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
        key = Path(image.format(n=place)).stem.removesuffix("_leftImg8bit")
        number = place if name == "coco_panoptic" else key
        infos = [(70000 + place, stuff, 0), (300, thing, 0), (5, thing, 1)]
        images.append({"id": number, "file_name": Path(image.format(n=place)).name})
        annotations.append(
            {
                "image_id": number,
                "file_name": Path(truth.format(n=place)).name,
                "segments_info": [
                    {"id": each, "category_id": labels.ids[label], "iscrowd": crowd} for each, label, crowd in infos
                ],
            }
        )
    (root / document).write_text(json.dumps({"images": images, "annotations": annotations, "categories": []}))


@pytest.mark.parametrize("name", LAYOUTS)
def test_panoptic_maps_are_read_as_they_are_published(tmp_path: Path, name: str) -> None:
    write_panoptic(tmp_path, name)
    dataset = open_dataset(name, tmp_path)
    assert (len(dataset), dataset.classes) == (COUNT, len(segment_labels(CLASSES[name], None).names))
    _, image, truth = dataset[1]
    np.testing.assert_array_equal(truth.segments, numbers(2))
    assert image.shape == (*SIZE, 3)
    labels = segment_labels(CLASSES[name], None)
    assert [each.is_thing for each in truth.table] == [False, True, True]
    assert [each.is_crowd for each in truth.table] == [False, False, True]
    assert truth.table[1].label == min(labels.things)
    assert dataset.metric.scores(dataset.metric.count(truth, truth)).pq == 1


def model_for(dataset: str, tasks: tuple[str, ...]) -> Mask2Former:
    cls, config = tiny.MODELS["mask2former, Swin"]
    labels = segment_labels(dataset, None)
    config = replace(config, dataset=dataset, classes=len(labels.names), things=None, tasks=tasks)
    return tiny.randomize(tiny.nnx.eval_shape(lambda: cls(config, rngs=tiny.nnx.Rngs(0))))


def test_a_panoptic_evaluation_that_is_stopped_goes_on_to_the_same_figures(tmp_path: Path) -> None:
    write_panoptic(tmp_path / "data", "coco_panoptic")
    dataset = open_dataset("coco_panoptic", tmp_path / "data")
    model = model_for("coco_panoptic", ("instances", "panoptic"))

    def run(folder: str, **options: object) -> object:
        return evaluate(model, dataset, tmp_path / folder, weights="w", batch_size=1, **options)

    whole = run("whole")
    run("parts", limit=2)
    np.testing.assert_array_equal(
        np.concatenate([*map(np.atleast_1d, run("parts"))]), np.concatenate([*map(np.atleast_1d, whole)])
    )
    assert len((tmp_path / "parts" / "journal.0.jsonl").read_text().splitlines()) == COUNT + 1


def test_models_of_other_classes_or_tasks_are_refused(tmp_path: Path) -> None:
    write_panoptic(tmp_path, "ade20k_panoptic")
    dataset = open_dataset("ade20k_panoptic", tmp_path)
    with pytest.raises(ValueError, match="must tell the 150 classes of ade20k apart, got one for 133"):
        evaluate(model_for("coco_panoptic", ("panoptic",)), dataset, tmp_path / "run", weights="w")
    with pytest.raises(ValueError, match="ade20k_panoptic needs a model for panoptic, got Mask2Former"):
        evaluate(model_for("ade20k", ("segmentation",)), dataset, tmp_path / "run", weights="w")


def write_instances(root: Path) -> None:
    labels = segment_labels("coco_instance", None)
    (root / "annotations").mkdir(parents=True)
    (root / "images" / "val2017").mkdir(parents=True)
    images, annotations = [], []
    for place in (2, 1):
        Image.fromarray(np.full((*SIZE, 3), 99, np.uint8)).save(root / f"images/val2017/00{place}.jpg")
        images.append({"id": place, "file_name": f"00{place}.jpg", "height": SIZE[0], "width": SIZE[1]})
        mask = numbers(place) == 300
        annotations.append(
            {
                "id": place,
                "image_id": place,
                "category_id": labels.ids[79],
                "iscrowd": 0,
                "area": float(mask.sum()),
                "bbox": [0, 5, 20, 15],
                "segmentation": [[0, 5, 20, 5, 20, 20, 0, 20]] if place == 1 else encode_mask(mask),
            }
        )
    document = {"images": images, "annotations": annotations}
    (root / "annotations" / "instances_val2017.json").write_text(json.dumps(document))


def test_instances_are_read_as_they_are_published(tmp_path: Path) -> None:
    write_instances(tmp_path)
    dataset = open_dataset("coco_instance", tmp_path)
    assert (dataset.keys, dataset.classes) == (("001", "002"), 80)
    _, _, truth = dataset[0]
    assert (truth.size, truth.labels) == (SIZE, (79,))


@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed")
@pytest.mark.parametrize("classes", ["coco_instance", "coco_panoptic"])
def test_instances_are_evaluated_under_a_plan(tmp_path: Path, classes: str) -> None:
    """The things of COCO's panoptic classes are its instances' classes."""
    write_instances(tmp_path / "data")
    dataset = open_dataset("coco_instance", tmp_path / "data")
    tasks = ("panoptic", "instances") if classes == "coco_panoptic" else ("instances",)
    model = hj.expedite(model_for(classes, tasks), hj.Hourglass(1, (2, 2)))
    scores = evaluate(model, dataset, tmp_path / "run", weights="w")
    assert 0 <= scores.ap <= 1
    assert np.isfinite(scores.by_class[79])


def test_files_that_are_no_annotations_are_named(tmp_path: Path) -> None:
    write_panoptic(tmp_path, "coco_panoptic")
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text("{}")
    with pytest.raises(ValueError, match=r"must be JSON with lists of images and annotations"):
        open_dataset("coco_panoptic", tmp_path)
    (tmp_path / "annotations" / "panoptic_val2017.json").write_text("{")
    with pytest.raises(ValueError, match=r"panoptic_val2017\.json must be JSON with annotations"):
        open_dataset("coco_panoptic", tmp_path)
