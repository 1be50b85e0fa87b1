"""Classes of segments, run lengths, and the size at which detectors see images."""

import numpy as np
import pytest

from hourglass_jax.imaging.labels import Labels, labels_of
from hourglass_jax.imaging.segment_labels import DATASETS, segment_labels
from hourglass_jax.imaging.shortest_edge import ShortestEdge
from hourglass_jax.metrics.run_lengths import encode_mask

CLASSES = dict(zip(DATASETS, (133, 80, 150, 100, 19, 8, 65), strict=True))
THINGS = dict(zip(DATASETS, (80, 80, 100, 100, 8, 8, 37), strict=True))


@pytest.mark.parametrize("dataset", DATASETS)
def test_data_sets_have_their_classes_and_things(dataset: str) -> None:
    labels = segment_labels(dataset, CLASSES[dataset])
    assert len(labels.things) == THINGS[dataset]
    assert len(labels.names) == len(labels.colors) == len(set(labels.ids)) == CLASSES[dataset]
    with pytest.raises(ValueError, match=f"classes must be {CLASSES[dataset]} for the data set {dataset}, got 3"):
        segment_labels(dataset, 3)


@pytest.mark.parametrize(("dataset", "classes"), [("ade20k", 150), ("cityscapes", 19)])
def test_colours_are_those_of_label_maps(dataset: str, classes: int) -> None:
    assert segment_labels(dataset, classes).colors == labels_of(dataset, classes).colors


def test_coco_numbers_its_things_with_gaps() -> None:
    labels = segment_labels("coco_panoptic", 133)
    place = labels.names.index("toothbrush")
    assert (place, labels.ids[place], labels.names[80], labels.ids[80]) == (79, 90, "banner", 92)
    assert labels.things == frozenset(range(80))
    assert (labels.names[-1], labels.titles[-1], labels.titles[0]) == ("rug-merged", "rug", "person")


def test_other_classes_are_named_or_numbered() -> None:
    assert segment_labels(None, 2).names == ("class 0", "class 1")
    labels = segment_labels(None, 2, labels=Labels(("sea", "ship"), ((0, 0, 9), (9, 9, 9))), things=[1])
    assert (labels.names, labels.things) == (("sea", "ship"), {1})
    with pytest.raises(ValueError, match="things must be classes, 0 to 1, got 5"):
        segment_labels(None, 2, things=[5])
    with pytest.raises(ValueError, match="labels must name 2 classes"):
        segment_labels(None, 2, labels=Labels(("sea",), ((0, 0, 9),)))
    with pytest.raises(ValueError, match=r"dataset must be one of coco_panoptic, .* got 'sea'"):
        segment_labels("sea", 2)


def decoded(text: str) -> list[int]:
    """COCO's text of run lengths, read a letter at a time."""
    runs, value, place = [], 0, 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << (5 * place)
        place += 1
        if not bits & 32:
            value -= (1 << (5 * place)) if bits & 16 else 0
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = place = 0
    return runs


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 1])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (90, 60)])
def test_run_lengths_are_the_mask(size: tuple[int, int], share: float) -> None:
    mask = np.random.default_rng(0).random(size) < share
    encoded = encode_mask(mask)
    runs = decoded(encoded["counts"])
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    np.testing.assert_array_equal(flat.reshape(size[::-1]).T, mask)
    assert encoded["size"] == list(size)


def test_run_lengths_are_written_as_coco_does() -> None:
    mask = np.zeros((9, 10), bool)
    mask[2:5, 3:6] = mask[7:, 8] = True
    assert encode_mask(mask)["counts"] == r"m036000g0O\O"  # by pycocotools 2.0


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        ((480, 640), (800, 1067)),
        ((640, 480), (1067, 800)),
        ((500, 500), (800, 800)),
        ((427, 640), (800, 1199)),
        ((300, 900), (444, 1333)),
        ((1000, 400), (1333, 533)),
        ((1200, 2000), (800, 1333)),
    ],
)
def test_the_shorter_side_is_scaled_unless_the_longer_one_gets_too_long(
    image: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert ShortestEdge().target_size(*image) == expected


def test_the_limit_of_the_longer_side_follows_another_size() -> None:
    half = ShortestEdge().at(400)
    assert (half.size, half.longest) == (400, 666)
    assert half.target_size(300, 900) == (222, 666)
    with pytest.raises(ValueError, match="longest must be at least size, 800, got 700"):
        ShortestEdge(longest=700)
