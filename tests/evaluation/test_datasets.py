"""The data sets, in their published folders and as tensorflow-datasets builds them."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hourglass_jax.evaluation.datasets import Dataset, open_dataset
from hourglass_jax.imaging.labels import wordnet_ids
from hourglass_jax.metrics.segmentation import IGNORED

CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car",
    27: "truck", 28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip
"""Label id -> name, of the classes that count."""


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def holds(dataset: Dataset, index: int, key: str, image: Path, label: np.ndarray) -> None:
    found = dataset[index]
    assert found[0] == dataset.keys[index] == key
    np.testing.assert_array_equal(found[1], pixels(image))
    np.testing.assert_array_equal(found[2], label)
    assert found[1].dtype == np.uint8
    assert np.issubdtype(found[2].dtype, np.integer)


@pytest.mark.parametrize("inside", ["", "ADEChallengeData2016"])
def test_ade20k(inside: str, ade20k: Path) -> None:
    """Class 0 is everything else."""
    dataset = open_dataset("ade20k", ade20k / inside)
    assert (len(dataset), dataset.classes, dataset.labels.names[0], dataset.size) == (3, 150, "wall", None)
    assert dataset.keys == ("ADE_val_00000000", "ADE_val_00000001", "ADE_val_00000002")
    root = ade20k / "ADEChallengeData2016"
    for index, key in enumerate(dataset.keys):
        raw = pixels(root / f"annotations/validation/{key}.png").astype(int)
        expected = np.where(raw == 0, IGNORED, raw - 1)
        holds(dataset, index, key, root / f"images/validation/{key}.jpg", expected)


def test_cityscapes_counts_19_of_its_label_ids(cityscapes: Path) -> None:
    dataset = open_dataset("cityscapes", cityscapes)
    assert (len(dataset), dataset.classes, dataset.size) == (9, 19, 1024)
    assert dataset.keys[0] == "bonn_000000_000000"
    seen = set()
    for index, key in enumerate(dataset.keys):
        stem = f"{key.split('_')[0]}/{key}"
        raw = pixels(cityscapes / f"gtFine/val/{stem}_gtFine_labelIds.png")
        expected = np.full(raw.shape, IGNORED)
        for place in np.ndindex(raw.shape):
            if raw[place] in CITYSCAPES:
                expected[place] = dataset.labels.names.index(CITYSCAPES[raw[place]])
        holds(dataset, index, key, cityscapes / f"leftImg8bit/val/{stem}_leftImg8bit.png", expected)
        seen |= set(expected.ravel().tolist())
    assert seen == {*range(19), IGNORED}


def test_cityscapes_with_train_ids_is_the_same(cityscapes: Path, tmp_path: Path) -> None:
    dataset = open_dataset("cityscapes", cityscapes)
    shutil.copytree(cityscapes / "leftImg8bit", tmp_path / "leftImg8bit")
    for key, _, label in dataset:
        path = tmp_path / f"gtFine/val/{key.split('_')[0]}/{key}_gtFine_labelTrainIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(label.astype(np.uint8)).save(path)
    converted = open_dataset("cityscapes", tmp_path)
    assert converted.keys == dataset.keys
    for index in range(len(dataset)):
        np.testing.assert_array_equal(converted[index][2], dataset[index][2])


@pytest.mark.parametrize("inside", ["", "VOCdevkit/VOC2010"])
def test_pascal_context_is_what_its_list_says(inside: str, pascal_context: Path) -> None:
    dataset = open_dataset("pascal_context", pascal_context / inside)
    assert (len(dataset), dataset.classes, dataset.labels.names[0], dataset.size) == (2, 60, "background", 520)
    root = pascal_context / "VOCdevkit/VOC2010"
    for index, key in enumerate(("2008_000002", "2008_000000")):
        raw = pixels(root / f"SegmentationClassContext/{key}.png")
        holds(dataset, index, key, root / f"JPEGImages/{key}.jpg", raw)


IMAGENET = {"n02012849": 134, "0": 0, "Egyptian cat": 285, "999": 999, "n01440764": 0}
"""A folder's name -> its class."""


def images_of_classes(folder: Path) -> None:
    """Two images of each class in `IMAGENET`, and files that are none."""
    for seed, name in enumerate(2 * list(IMAGENET)):
        path = folder / name / f"{'ab'[seed // len(IMAGENET)]}.{['JPEG', 'png'][seed % 2]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
        Image.fromarray(pixels).save(path)
    (folder / "n01440764/notes.txt").write_text("none")
    (folder / "README.md").write_text("none")
    (folder / ".cache").mkdir()


@pytest.mark.parametrize(("inside", "split"), [("", "val"), ("val", "val"), ("train", "train")])
def test_folders_of_imagenet_are_called_by_id_number_or_name(inside: str, split: str, tmp_path: Path) -> None:
    images_of_classes(tmp_path / inside)
    dataset = open_dataset("imagenet2012", tmp_path, split)
    assert (len(dataset), dataset.classes, dataset.size, dataset.source.kind) == (10, 1000, None, "folder")
    assert list(dataset.keys) == sorted(dataset.keys)
    for key, image, label in dataset:
        name = key.split("/")[0]
        assert label == IMAGENET[name]
        np.testing.assert_array_equal(image, pixels(tmp_path / inside / key))


def test_a_folder_of_no_class_among_others_is_an_error(tmp_path: Path) -> None:
    images_of_classes(tmp_path)
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"a class of ImageNet, as 5 in .* are, got cats"):
        open_dataset("imagenet2012", tmp_path)


def test_an_unreadable_image_of_imagenet_is_named(tmp_path: Path) -> None:
    images_of_classes(tmp_path)
    (tmp_path / "0/a.png").write_bytes(b"none")
    dataset = open_dataset("imagenet2012", tmp_path)
    with pytest.raises(ValueError, match=r"^0/a\.png of imagenet2012: the image cannot be opened"):
        dataset[dataset.keys.index("0/a.png")]


def test_built_imagenet_has_the_classes_of_its_labels(tmp_path: Path) -> None:
    images_of_classes(tmp_path / "folder")
    folder = open_dataset("imagenet2012", tmp_path / "folder")
    files = [(tmp_path / "folder" / key, label) for key, _, label in folder if key.endswith("JPEG")]
    records = [{"file_name": str(path), "image": path.read_bytes(), "label": label} for path, label in files]
    build(tmp_path / "built", "imagenet2012", "validation", records)
    dataset = open_dataset("imagenet2012", tmp_path / "built")
    assert (len(dataset), dataset.source.kind, dataset.keys[0]) == (5, "tfds", "validation-00000")
    expected = {image.tobytes(): label for _, image, label in folder}
    for _, image, label in dataset:
        assert type(label) is int
        assert label == expected[image.tobytes()]


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_label_maps_with_a_palette_or_16_bits(mode: str, ade20k: Path, tmp_path: Path) -> None:
    shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.rglob("ADE_val_00000000.png"))
    raw = pixels(path)
    stored = Image.fromarray(raw.astype(np.uint16) if mode == "I;16" else raw)
    if mode == "P":
        stored.putpalette([value * 7 % 256 for value in range(768)])
    stored.save(path)
    with Image.open(path) as written:
        assert written.mode == mode
    np.testing.assert_array_equal(open_dataset("ade20k", tmp_path)[0][2], open_dataset("ade20k", ade20k)[0][2])


def test_a_grey_image_has_three_channels(ade20k: Path, tmp_path: Path) -> None:
    shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.rglob("ADE_val_00000000.jpg"))
    Image.fromarray(pixels(path)).convert("L").save(path)
    assert open_dataset("ade20k", tmp_path)[0][1].shape == (33, 36, 3)


@pytest.mark.parametrize(
    ("name", "looked_for"),
    [
        ("ade20k", ["images/{validation,training}/*.jpg", "scene_parse150/"]),
        ("cityscapes", ["leftImg8bit/{val,train}/", "cityscapes/semantic_segmentation/"]),
        ("pascal_context", ["ImageSets/SegmentationContext/{val,train}.txt"]),
        ("imagenet2012", ["CLASS/*.JPEG", "imagenet2012/"]),
    ],
)
def test_a_folder_without_the_data_set_says_what_was_looked_for(name: str, looked_for: list, tmp_path) -> None:
    with pytest.raises(ValueError, match=f"holds no val split of {name}: looked for") as raised:
        open_dataset(name, tmp_path)
    assert all(each in str(raised.value) for each in looked_for)


def test_wrong_arguments_are_refused(ade20k: Path) -> None:
    with pytest.raises(ValueError, match=r"dataset must be one of ade20k, .* got 'coco'"):
        open_dataset("coco", ade20k)
    with pytest.raises(ValueError, match="split must be 'val' or 'train', got 'test'"):
        open_dataset("ade20k", ade20k, "test")
    with pytest.raises(ValueError, match=r"must be in a folder, and .*missing is none"):
        open_dataset("ade20k", ade20k / "missing")
    with pytest.raises(ValueError, match="holds no train split"):
        open_dataset("ade20k", ade20k, "train")


def test_a_missing_label_map_or_image_is_named(ade20k: Path, pascal_context: Path, tmp_path: Path) -> None:
    shutil.copytree(ade20k, tmp_path / "ade")
    next((tmp_path / "ade").rglob("ADE_val_00000001.png")).unlink()
    with pytest.raises(ValueError, match=r"3 images .* 1 files are missing, .*validation/ADE_val_00000001.png"):
        open_dataset("ade20k", tmp_path / "ade")
    shutil.copytree(pascal_context, tmp_path / "pascal")
    next((tmp_path / "pascal").rglob("2008_000002.jpg")).unlink()
    with pytest.raises(ValueError, match=r"1 files are missing, .*JPEGImages/2008_000002.jpg"):
        open_dataset("pascal_context", tmp_path / "pascal")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.zeros((33, 35), np.uint8), r"the image's size \[33, 36\], got \[33, 35\]"),
        (np.full((33, 36), 151, np.uint8), "values of a label map must be 0..150, got 151"),
        (np.full((33, 36), 300, np.uint16), "values of a label map must be 0..150, got 300"),
        (np.zeros((33, 36, 3), np.uint8), "one channel of classes, got RGB"),
        (b"no image", "the label map cannot be opened"),
        (None, "the label map cannot be decoded"),
    ],
    ids=["size", "class", "16 bits", "colours", "no image", "truncated"],
)
def test_a_wrong_label_map_is_one_clear_error(wrong, message: str, ade20k: Path, tmp_path: Path) -> None:
    shutil.copytree(ade20k, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.rglob("ADE_val_00000000.png"))
    if isinstance(wrong, np.ndarray):
        Image.fromarray(wrong).save(path)
    else:
        path.write_bytes(wrong or path.read_bytes()[:200])
    dataset = open_dataset("ade20k", tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        dataset[0]
    assert str(raised.value).startswith("ADE_val_00000000 of ade20k: ")


def test_values_that_may_be_ignored_are_named(pascal_context: Path, tmp_path: Path) -> None:
    shutil.copytree(pascal_context, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.rglob("2008_000002.png"))
    raw = pixels(path).copy()
    raw[0, :2] = IGNORED, 60
    Image.fromarray(raw).save(path)
    with pytest.raises(ValueError, match=r"must be 0..59 or 255, got 60"):
        open_dataset("pascal_context", tmp_path)[0]


def build(folder: Path, name: str, split: str, records: Sequence[Mapping[str, object]]) -> None:
    """A data set of tensorflow-datasets with its real features, as array_record, without TensorFlow."""
    tfds = pytest.importorskip("tensorflow_datasets", reason="tensorflow-datasets is not installed: the extra eval")
    image = tfds.features.Image
    features = {
        "cityscapes": {
            "image_id": tfds.features.Text(),
            "image_left": image(shape=(1024, 2048, 3), encoding_format="png"),
            "segmentation_label": image(shape=(1024, 2048, 1), encoding_format="png", use_colormap=True),
        },
        "nyu_depth_v2": {
            "image": image(shape=(480, 640, 3), encoding_format="png"),
            "depth": tfds.features.Tensor(shape=(480, 640), dtype=np.float16),
        },
        "imagenet2012": {
            "file_name": tfds.features.Text(),
            "image": image(encoding_format="jpeg"),
            "label": tfds.features.ClassLabel(names=wordnet_ids()),
        },
        "scene_parse150": {"image": image(encoding_format="jpeg"), "annotation": image(encoding_format="png")},
    }
    title, _, config = name.partition("/")

    with tfds.core.registered.skip_registration():

        class Builder(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config, version="1.0.0")] if config else []

            def _info(self):
                return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features[title]))

            def _split_generators(self, dl_manager):
                return {split: enumerate(records)}

            def _generate_examples(self):
                raise NotImplementedError

    Builder.name = title
    Builder(data_dir=folder, file_format="array_record").download_and_prepare()
    assert "tensorflow" not in sys.modules


@pytest.fixture(scope="module")
def built(cityscapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The images of `cityscapes`, built."""
    records = []
    for image in sorted(cityscapes.glob("leftImg8bit/val/*/*.png")):
        key = image.stem.removesuffix("_leftImg8bit")
        label = cityscapes / f"gtFine/val/{image.parent.name}/{key}_gtFine_labelIds.png"
        records.append(
            {"image_id": key, "image_left": image.read_bytes(), "segmentation_label": label.read_bytes()}
        )
    folder = tmp_path_factory.mktemp("tfds")
    build(folder, "cityscapes/semantic_segmentation", "validation", records)
    return folder


def test_built_cityscapes_has_the_pairs_of_the_folder(built: Path, cityscapes: Path) -> None:
    dataset, folder = open_dataset("cityscapes", built), open_dataset("cityscapes", cityscapes)
    assert len(dataset) == len(folder)
    assert (dataset.source.kind, dataset.keys[8]) == ("tfds", "validation-00008")
    contents = {image.tobytes(): label for _, image, label in folder}
    for _, image, label in dataset:
        np.testing.assert_array_equal(label, contents.pop(image.tobytes()))


def test_built_without_the_split_or_as_another_format_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must have a split train, got validation"):
        open_dataset("cityscapes", built, "train")
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    path = next(tmp_path.rglob("dataset_info.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="must be built with file_format='array_record', got tfrecord"):
        open_dataset("cityscapes", tmp_path)


def test_built_scene_parse150_needs_one_channel(ade20k: Path, tmp_path: Path) -> None:
    """What tensorflow-datasets downloads are instances in red and green, not the 150 classes."""
    root = ade20k / "ADEChallengeData2016"
    images = sorted(root.glob("images/validation/*.jpg"))
    labels = sorted(root.glob("annotations/validation/*.png"))
    pairs = zip(images, labels, strict=True)
    records = [{"image": image.read_bytes(), "annotation": label.read_bytes()} for image, label in pairs]
    build(tmp_path / "classes", "scene_parse150", "test", records)
    expected = {image.tobytes(): label for _, image, label in open_dataset("ade20k", ade20k)}
    for _, image, label in open_dataset("ade20k", tmp_path / "classes"):
        np.testing.assert_array_equal(label, expected.pop(image.tobytes()))

    Image.new("RGB", (36, 33), (12, 3, 0)).save(tmp_path / "instances.png")
    records = [{**records[0], "annotation": (tmp_path / "instances.png").read_bytes()}]
    build(tmp_path / "instances", "scene_parse150", "test", records)
    with pytest.raises(ValueError, match=r"^test-00000 of ade20k: .* such as those of scene_parse150"):
        open_dataset("ade20k", tmp_path / "instances")[0]


def test_without_tensorflow_datasets_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "scene_parse150/1.0.0"
    folder.mkdir(parents=True)
    (folder / "features.json").write_text("{}")
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ValueError, match=r'pip install "hourglass-jax\[eval\]"'):
        open_dataset("ade20k", tmp_path)
