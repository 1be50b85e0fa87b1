"""Names and colours of classes: counts, well-known entries, the numbering without a data set."""

import pytest

from hourglass_jax.imaging.labels import DATASETS, Labels, labels_of, wordnet_ids

SEGMENTED = {"ade20k": 150, "cityscapes": 19, "pascal_context": 60}
CLASSES = {**SEGMENTED, "imagenet2012": 1000}


def test_every_data_set_is_tested() -> None:
    assert tuple(CLASSES) == DATASETS


@pytest.mark.parametrize("dataset", SEGMENTED)
def test_every_class_has_a_plain_name_of_its_own_and_a_color(dataset: str) -> None:
    labels = labels_of(dataset, CLASSES[dataset])
    assert len(labels.names) == len(labels.colors) == len(set(labels.names)) == CLASSES[dataset]
    assert all(name and name.isascii() and name == name.strip().lower() for name in labels.names)
    assert not any(mark in name for name in labels.names for mark in ",;")
    assert all(len(color) == 3 for color in labels.colors)
    assert all(type(value) is int and 0 <= value <= 255 for color in labels.colors for value in color)


@pytest.mark.parametrize(
    ("dataset", "repeated"),
    [("ade20k", {"road", "skyscraper"}), ("cityscapes", set()), ("pascal_context", {"bicycle", "snow"})],
)
def test_few_classes_share_a_color(dataset: str, repeated: set[str]) -> None:
    labels = labels_of(dataset, CLASSES[dataset])
    entries = zip(labels.names, labels.colors, strict=True)
    assert {name for name, color in entries if labels.colors.count(color) > 1} == repeated


@pytest.mark.parametrize(
    ("dataset", "label", "name", "color"),
    [
        ("ade20k", 0, "wall", (120, 120, 120)),
        ("ade20k", 1, "building", (180, 120, 120)),
        ("ade20k", 2, "sky", (6, 230, 230)),
        ("ade20k", 12, "person", (150, 5, 61)),
        ("ade20k", 44, "chest of drawers", (6, 51, 255)),
        ("ade20k", 149, "flag", (92, 0, 255)),
        ("cityscapes", 0, "road", (128, 64, 128)),
        ("cityscapes", 10, "sky", (70, 130, 180)),
        ("cityscapes", 13, "car", (0, 0, 142)),
        ("cityscapes", 18, "bicycle", (119, 11, 32)),
        ("pascal_context", 0, "background", (120, 120, 120)),
        ("pascal_context", 15, "cat", (255, 6, 82)),
        ("pascal_context", 50, "table", (20, 255, 0)),
        ("pascal_context", 59, "wood", (31, 0, 255)),
    ],
)
def test_known_classes(dataset: str, label: int, name: str, color: tuple[int, int, int]) -> None:
    labels = labels_of(dataset, CLASSES[dataset])
    assert (labels.names[label], labels.colors[label]) == (name, color)


@pytest.mark.parametrize(
    ("label", "identifier", "name"),
    [
        (0, "n01440764", "tench"),
        (1, "n01443537", "goldfish"),
        (134, "n02012849", "crane bird"),
        (207, "n02099601", "golden retriever"),
        (285, "n02124075", "Egyptian cat"),
        (517, "n03126707", "crane"),
        (999, "n15075141", "toilet tissue"),
    ],
)
def test_known_classes_of_imagenet(label: int, identifier: str, name: str) -> None:
    assert wordnet_ids()[label] == identifier
    assert labels_of("imagenet2012", 1000).names[label] == name


def test_the_classes_of_imagenet_are_in_the_order_of_their_wordnet_ids() -> None:
    identifiers, labels = wordnet_ids(), labels_of("imagenet2012", 1000)
    assert len(identifiers) == len(labels.names) == len(set(labels.names)) == len(labels.colors) == 1000
    assert list(identifiers) == sorted(set(identifiers))
    assert all(len(each) == 9 and each[0] == "n" and each[1:].isdigit() for each in identifiers)
    assert all(name and name.isascii() and name == name.strip() and "," not in name for name in labels.names)


def test_without_a_data_set_classes_are_numbered() -> None:
    """1 = 0b1 is dark red, 6 = 0b110 green and blue, 8 = 0b1000 a quarter of red, 15 = 0b1111."""
    labels = labels_of(None, 1000)
    assert labels.names[:2] == ("class 0", "class 1")
    assert labels.names[-1] == "class 999"
    expected = {0: (0, 0, 0), 1: (128, 0, 0), 6: (0, 128, 128), 8: (64, 0, 0), 15: (192, 128, 128)}
    assert {label: labels.colors[label] for label in expected} == expected
    assert len(set(labels.colors)) == 1000


def test_one_class() -> None:
    assert labels_of(None, 1) == Labels(("class 0",), ((0, 0, 0),))


@pytest.mark.parametrize(
    ("dataset", "classes", "message"),
    [
        ("coco", 80, "dataset must be one of ade20k, cityscapes, pascal_context, imagenet2012 or None, got 'coco'"),
        ("ade20k", 151, "classes must be 150 for the data set ade20k, got 151"),
        ("pascal_context", 59, "classes must be 60 for the data set pascal_context, got 59"),
        (None, 0, "classes must be positive, got 0"),
    ],
)
def test_bad_input_is_one_clear_error(dataset: str | None, classes: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        labels_of(dataset, classes)
