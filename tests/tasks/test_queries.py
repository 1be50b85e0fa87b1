"""What becomes of queries, panoptic maps, instances and label maps, against the NumPy reference."""

import json

import numpy as np
import pytest

from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.imaging.windows import Layout, whole_layout
from hourglass_jax.tasks import queries
from hourglass_jax.tasks.instances import Instances
from hourglass_jax.tasks.panoptic import Panoptic
from hourglass_jax.tasks.queries import QueryOutputs
from hourglass_jax.tasks.query_segmentation import QuerySegmentation
from tests.reference import mask2former as reference

CLASSES, THINGS = 4, (0, 2)
LABELS = segment_labels(None, CLASSES, things=THINGS)
CASES = [((28, 30), (28, 30)), ((28, 30), (41, 23)), ((20, 32), (13, 17))]
"""(rows, columns) of the image, which is padded to 32 x 32, and of the photograph."""
cases = pytest.mark.parametrize(("image", "size"), CASES)
seeds = pytest.mark.parametrize("seed", range(3))


@pytest.fixture(autouse=True)
def small_bands(monkeypatch: pytest.MonkeyPatch) -> None:
    """A photograph is made in several parts."""
    monkeypatch.setattr(queries, "BAND", 500)


def random_outputs(seed: int, count: int = 7) -> QueryOutputs:
    """Queries of round masks that overlap, some of them sure of a class."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:8, :8]
    centres, radii = random.uniform(0, 8, (count, 2, 1, 1)), random.uniform(1, 4, (count, 1, 1))
    masks = radii - np.hypot(rows - centres[:, 0], columns - centres[:, 1])
    logits = random.normal(0, 1, (count, CLASSES + 1))
    logits[np.arange(count), random.integers(0, CLASSES + 1, count)] += 4
    return QueryOutputs(logits[None].astype(np.float32), 2 * masks[None].astype(np.float32))


def layout_of(image: tuple[int, int]) -> Layout:
    return whole_layout(image)


@cases
@seeds
def test_panoptic_maps_are_those_of_the_reference(image: tuple[int, int], size: tuple[int, int], seed: int) -> None:
    outputs, task = random_outputs(seed), Panoptic(LABELS, None, 0.6, 0.5)
    found = task.postprocess(outputs, layout_of(image), size)
    segments, table = reference.panoptic(
        outputs.class_logits[0],
        outputs.mask_logits[0],
        image,
        size,
        things=set(THINGS),
        object_threshold=0.6,
        overlap_threshold=0.5,
    )
    np.testing.assert_array_equal(found.segments, segments)
    assert found.segments.dtype == np.int32
    assert [(each.id, each.label, each.is_thing) for each in found.table] == table
    assert table
    for each in found.table:
        assert each.area == (segments == each.id).sum()
        assert 0.6 < each.score <= 1


def test_stuff_of_one_class_is_one_segment_and_things_are_several() -> None:
    logits = np.zeros((1, 4, CLASSES + 1), np.float32)
    logits[0, [0, 1], 1] = logits[0, [2, 3], 2] = 9
    masks = np.full((1, 4, 8, 8), -5, np.float32)
    for query in range(4):
        masks[0, query, 2 * query : 2 * query + 2] = 5
    found = Panoptic(LABELS).postprocess(QueryOutputs(logits, masks), layout_of((32, 32)), (32, 32))
    assert [(each.id, each.label, each.is_thing) for each in found.table] == [
        (1, 1, False),
        (2, 2, True),
        (3, 2, True),
    ]
    assert found.table[0].area == (found.segments == 1).sum() > 300


def test_a_map_without_certain_queries_is_empty() -> None:
    outputs = random_outputs(0)
    found = Panoptic(LABELS, None, 1.0).postprocess(outputs, layout_of((32, 32)), (20, 20))
    assert (found.table, found.segments.max(), found.segments.shape) == ((), 0, (20, 20))


@cases
@seeds
@pytest.mark.parametrize("things_only", [False, True])
def test_instances_are_those_of_the_reference(
    image: tuple[int, int], size: tuple[int, int], seed: int, things_only: bool
) -> None:
    outputs, task = random_outputs(seed), Instances(LABELS, None, 12, things_only=things_only)
    found = task.postprocess(outputs, layout_of(image), size)
    expected = reference.instances(
        outputs.class_logits[0],
        outputs.mask_logits[0],
        image,
        size,
        detections=12,
        things=set(THINGS) if things_only else None,
    )
    expected.sort(key=lambda each: -each[1])
    assert found.labels.tolist() == [label for label, _, _ in expected]
    np.testing.assert_allclose(found.scores, [score for _, score, _ in expected], rtol=1e-4)
    np.testing.assert_array_equal(found.masks, [mask for _, _, mask in expected])
    assert len(expected) == 12 or things_only
    for (x0, y0, x1, y1), mask in zip(found.boxes.astype(int), found.masks, strict=True):
        assert mask[y0:y1, x0:x1].sum() == mask.sum()
        if mask.any():
            assert mask[y0].any() and mask[y1 - 1].any() and mask[:, x0].any() and mask[:, x1 - 1].any()


@cases
@seeds
@pytest.mark.parametrize("alone", [False, True])
def test_label_maps_are_those_of_the_reference(
    image: tuple[int, int], size: tuple[int, int], seed: int, alone: bool
) -> None:
    outputs = random_outputs(seed)
    found = QuerySegmentation(LABELS, alone=alone).postprocess(outputs, layout_of(image), size)
    expected = reference.semantic(outputs.class_logits[0], outputs.mask_logits[0], image, size, alone=alone)
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == np.uint8


@seeds
def test_label_maps_of_several_views_are_the_mean_where_they_overlap(seed: int) -> None:
    """Three views of 32 x 32 pixels of an image of 32 x 70, which is enlarged."""
    layout, size = Layout((32, 70), (32, 32), (0,), (0, 19, 38)), (45, 98)
    views = [random_outputs(3 * seed + number) for number in range(3)]
    outputs = QueryOutputs(*(np.concatenate(parts) for parts in zip(*views, strict=True)))
    total, counts = np.zeros((CLASSES, 32, 70)), np.zeros(70)
    for left, (logits, masks) in zip(layout.lefts, views, strict=True):
        scores = reference.probabilities(logits[0])[:, :-1]
        votes = np.einsum("qk,qhw->khw", scores, reference.sigmoid(reference.padded_masks(masks[0])))
        total[..., left : left + 32] += votes
        counts[left : left + 32] += 1
    expected = np.stack([reference.resized(each, size) for each in total / counts]).argmax(axis=0)
    np.testing.assert_array_equal(QuerySegmentation(LABELS).postprocess(outputs, layout, size), expected)


def test_the_two_orders_of_resizing_differ() -> None:
    outputs = random_outputs(1, count=30)
    outputs = outputs._replace(mask_logits=8 * outputs.mask_logits)
    alone, beside = (
        QuerySegmentation(LABELS, alone=alone).postprocess(outputs, layout_of((28, 30)), (90, 70))
        for alone in (True, False)
    )
    assert 0 < (alone != beside).mean() < 0.1


@pytest.mark.parametrize("task", [Panoptic(LABELS, None, 0.6, 0.5), Instances(LABELS, None, 12)], ids=type)
def test_results_are_drawn_and_written_in_the_forms_of_coco(task: Panoptic | Instances) -> None:
    photo = np.full((60, 80, 3), 200, np.uint8)
    result = task.postprocess(random_outputs(2), layout_of((28, 30)), (60, 80))
    rendering = task.render(photo, result)
    assert rendering.overview.shape[0] >= 60
    json.dumps(rendering.records)
    [document] = rendering.documents.values()
    written = json.loads(json.dumps(document("000000000139")))
    if task.name == "instances":
        assert {each["image_id"] for each in written} == {139}
        assert len(written) == len(result.scores)
        return
    [annotation] = written["annotations"]
    assert (annotation["image_id"], annotation["file_name"]) == (139, "000000000139_panoptic.png")
    numbers = rendering.pictures["panoptic"].astype(int) @ (1, 256, 65536)
    np.testing.assert_array_equal(numbers, result.segments)
    for info, segment in zip(annotation["segments_info"], result.table, strict=True):
        left, top, width, height = info["bbox"]
        assert (numbers[top : top + height, left : left + width] == info["id"]).sum() == info["area"]
        assert info["category_id"] == LABELS.ids[segment.label]


def test_segments_that_change_their_number_are_the_same() -> None:
    task = Panoptic(LABELS, None, 0.6, 0.5)
    result = task.postprocess(random_outputs(2), layout_of((28, 30)), (60, 80))
    shifted = result._replace(
        segments=np.where(result.segments, result.segments + 10, 0),
        table=tuple(each._replace(id=each.id + 10) for each in result.table),
    )
    assert task.agreement(result, shifted) == 1
    other = result._replace(table=tuple(each._replace(label=(each.label + 1) % 4) for each in result.table))
    assert task.agreement(result, other) == pytest.approx((result.segments == 0).mean())
