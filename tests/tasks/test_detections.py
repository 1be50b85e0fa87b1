"""What becomes of boxes and masks at the size of a photograph, against the NumPy reference."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.metrics.detections import DetectionMetric
from hourglass_jax.metrics.instances import InstanceMetric, InstanceSet, InstanceTruth
from hourglass_jax.metrics.mask_crops import MaskCrops
from hourglass_jax.metrics.run_lengths import encode_crop, encode_mask
from hourglass_jax.tasks.detections import DetectionOutputs, Detections, paste
from tests.reference import detection as reference

TASK = Detections(segment_labels("coco_instance", None), "coco_instance")
SIZE = (40, 60)
BOXES = np.array(
    [
        [3.2, 4.1, 33.3, 28.8],
        [0, 0, 60, 40],
        [50.5, -3, 63, 7.5],
        [10, 10, 10.4, 30],
        [20.25, 20.5, 21.5, 21.25],
        [-20, -20, -5, -5],
    ],
    np.float32,
)


def smooth(seed: int, side: int = 28) -> np.ndarray:
    """Probabilities of a few round things."""
    y, x = np.mgrid[:side, :side]
    random = np.random.default_rng(seed)
    waves = sum(
        np.sin(a * x / side * 6 + b) * np.cos(c * y / side * 6 + d) for a, b, c, d in random.uniform(0, 3, (4, 4))
    )
    return (1 / (1 + np.exp(-2 * waves))).astype(np.float32)


@pytest.mark.parametrize("number", range(len(BOXES)))
def test_masks_are_interpolated_inside_their_boxes(number: int) -> None:
    mask, box = smooth(number), BOXES[number]
    probabilities = reference.pasted(mask, box, SIZE)
    [found] = MaskCrops(SIZE, [paste(mask, box, SIZE)])
    sure = np.abs(probabilities - 0.5) > 1e-4
    np.testing.assert_array_equal(found[sure], (probabilities >= 0.5)[sure])
    assert found[~sure].size < 10


@pytest.mark.parametrize("box", [(5, 5, 5, 9), (5, 5, 3, 9), (np.inf, 0, np.inf, 1), (0, 0, 0, 0)])
def test_a_box_without_a_side_has_an_empty_mask(box: tuple[float, ...]) -> None:
    assert not MaskCrops(SIZE, [paste(np.ones((4, 4), np.float32), np.float32(box), SIZE)])[0].any()


def outputs(boxes: np.ndarray, scores: list[float]) -> DetectionOutputs:
    masks = np.stack([smooth(number) for number in range(len(boxes))]) if len(boxes) else np.zeros((0, 28, 28))
    return DetectionOutputs(
        boxes[None], np.array([scores], np.float32), np.arange(len(boxes), dtype=np.int32)[None], masks[None]
    )


def test_boxes_are_scaled_to_the_photograph_along_each_axis() -> None:
    result = TASK.postprocess(outputs(BOXES[:3], [0.9, 0.8, 0]), whole_layout((20, 120)), SIZE)
    assert len(result.scores) == len(result.masks) == 2
    np.testing.assert_allclose(result.boxes, BOXES[:2] * np.float32([0.5, 2, 0.5, 2]), rtol=1e-6)
    np.testing.assert_array_equal(np.asarray(result.masks)[1], result.masks[1])
    assert result.masks.shape == (2, *SIZE)


def test_nothing_that_is_found_is_a_result() -> None:
    photo = np.zeros((*SIZE, 3), np.uint8)
    result = TASK.postprocess(outputs(BOXES[:2], [0, 0]), whole_layout(SIZE), SIZE)
    rendering = TASK.render(photo, result)
    assert rendering.records == {"instances": []}
    assert rendering.documents["instances"]("7") == []
    assert np.asarray(result.masks).shape == (0, *SIZE)
    assert TASK.agreement(result, result) == 1


def test_a_lower_threshold_shows_more() -> None:
    photo = np.zeros((*SIZE, 3), np.uint8)
    result = TASK.postprocess(outputs(BOXES[:2], [0.9, 0.3]), whole_layout(SIZE), SIZE)
    assert len(TASK.render(photo, result).text) == 1
    lower = Detections(TASK.labels, TASK.dataset, shown=0.2)
    assert len(lower.render(photo, result).text) == 2
    assert len(TASK.render(photo, result).documents["instances"]("7")) == 2


@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_of_a_part_are_those_of_the_whole(seed: int) -> None:
    random = np.random.default_rng(seed)
    size, corner = (12, 9), random.integers(0, 4, 2)
    shape = [int(random.integers(0, side - at + 1)) for side, at in zip(size, corner, strict=True)]
    if seed == 0:
        corner, shape = np.array([0, 2]), [12, 7]  # from the top to the bottom, to the last pixel
    inside = random.random(shape) < (0.95 if seed == 0 else 0.6)
    whole = np.zeros(size, bool)
    whole[corner[0] : corner[0] + shape[0], corner[1] : corner[1] + shape[1]] = inside
    assert encode_crop(inside, (int(corner[0]), int(corner[1])), size) == encode_mask(whole)


def truth_of(result: InstanceSet) -> InstanceTruth:
    annotations = [
        {
            "segmentation": encode_mask(mask),
            "area": int(mask.sum()),
            "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
        }
        for mask, (x0, y0, x1, y1) in zip(result.masks, result.boxes, strict=True)
    ]
    return InstanceTruth(SIZE, tuple(result.labels.tolist()), tuple(annotations))


@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed")
def test_boxes_and_masks_are_measured_apart() -> None:
    metric = TASK.metric(InstanceMetric(80))
    assert isinstance(metric, DetectionMetric)
    result = TASK.postprocess(outputs(BOXES[:3], [0.9, 0.8, 0.7]), whole_layout(SIZE), SIZE)
    truth = truth_of(result)
    for shift, box_ap in ((0, 1), (500, 0)):
        total = metric.empty()
        record = metric.record(result._replace(boxes=result.boxes + shift), truth)
        metric.add(total, json.loads(json.dumps(record)))
        scores = metric.scores(total)
        assert (scores.box_ap, scores.mask_ap) == pytest.approx((box_ap, 1))
    shown = metric.shown(scores)
    assert (shown["box AP, %"], shown["mask AP, %"], shown["mask AP50, %"]) == ("0.00", "100.00", "100.00")
    assert scores.mask_by_class[:3].tolist() == pytest.approx([1, 1, 1])


MEMORY = """
import resource, sys
import numpy as np
from hourglass_jax.imaging.images import write_image
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.io.files import write_json
from hourglass_jax.tasks.detections import DetectionOutputs
from tests.tasks.test_detections import TASK, smooth

size = (3000, 4000)
random = np.random.default_rng(0)
corners = np.sort(random.uniform(0, (size[1], size[0]), (100, 2, 2)), axis=1).astype(np.float32)
masks = np.stack([smooth(seed) for seed in range(100)])
scores = np.linspace(1, 0.5, 100, dtype=np.float32)
outputs = DetectionOutputs(corners.reshape(1, 100, 4), scores[None], np.arange(100)[None] % 80, masks[None])
photo = random.integers(0, 256, (*size, 3), np.uint8)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
result = TASK.postprocess(outputs, whole_layout(size), size)
rendering = TASK.render(photo, result)
write_image(sys.argv[1] + "/overlay.png", rendering.overview)
write_json(sys.argv[1] + "/instances.json", rendering.documents["instances"]("7"))
print(len(rendering.text), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.slow
def test_a_hundred_masks_of_a_large_photograph_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    run = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True)
    shown, kilobytes = map(int, run.stdout.split())
    assert shown > 90
    assert kilobytes < 1_000_000
