"""Average precision of masks: cases whose figures are known, and without pycocotools."""

import importlib.util
import json

import numpy as np
import pytest

from hourglass_jax.metrics import instances
from hourglass_jax.metrics.instances import InstanceMetric, InstanceSet, InstanceTruth
from hourglass_jax.metrics.run_lengths import encode_mask

METRIC = InstanceMetric(3)
needs_pycocotools = pytest.mark.skipif(
    importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed"
)


def square(left: int, width: int = 40) -> np.ndarray:
    mask = np.zeros((100, 200), bool)
    mask[20:80, left : left + width] = True
    return mask


def found(*instances: tuple[int, float, np.ndarray]) -> InstanceSet:
    labels, scores, masks = zip(*instances, strict=True)
    return InstanceSet(
        np.zeros((len(masks), 4), np.float32), np.array(scores, np.float32), np.array(labels), np.stack(masks)
    )


def truth(*instances: tuple[int, np.ndarray], crowd: bool = False) -> InstanceTruth:
    annotations = [
        {
            "segmentation": encode_mask(mask),
            "area": int(mask.sum()),
            "bbox": [0, 0, 1, 1],
            "iscrowd": int(crowd),
            "image_id": 77,
        }
        for _, mask in instances
    ]
    return InstanceTruth((100, 200), tuple(label for label, _ in instances), tuple(annotations))


def record(result: InstanceSet, true: InstanceTruth) -> dict:
    return json.loads(json.dumps(METRIC.record(result, true)))


@needs_pycocotools
def test_perfect_instances_have_an_average_precision_of_one() -> None:
    masks = square(0), square(100)
    total = [record(found((0, 0.9, masks[0]), (1, 0.8, masks[1])), truth((0, masks[0]), (1, masks[1])))]
    scores = METRIC.scores(total)
    assert (scores.ap, scores.ap50, scores.ap75) == pytest.approx((1, 1, 1))
    assert scores.by_class.tolist() == pytest.approx([1, 1, np.nan], nan_ok=True)
    assert np.isnan(scores.ap_small)
    assert METRIC.shown(scores)["AP, %"] == "100.00"


@needs_pycocotools
def test_half_of_the_instances_and_a_mask_that_is_partly_right() -> None:
    """Image 1 has an instance that nothing finds; in image 2 a mask overlaps by 30 of 50 columns, 0.6."""
    total = [
        record(found((0, 0.9, square(0))), truth((0, square(0)), (0, square(120)))),
        record(found((1, 0.9, square(10))), truth((1, square(0, 40)))),
    ]
    scores = METRIC.scores(total)
    assert scores.by_class[0] == pytest.approx(51 / 101)
    assert scores.by_class[1] == pytest.approx(0.3)  # of the thresholds 0.5 to 0.95, it passes three
    assert scores.ap50 == pytest.approx((51 / 101 + 1) / 2)


@needs_pycocotools
def test_images_where_nothing_is_found_count() -> None:
    nothing = found((0, 0.9, np.zeros((100, 200), bool)))
    assert METRIC.scores([record(nothing, truth((0, square(0))))]).ap == 0


@needs_pycocotools
def test_crowds_are_not_missed() -> None:
    total = [record(found((0, 0.9, square(0))), truth((0, square(0))))]
    total.append(record(found((1, 0.9, square(0))), truth((0, square(0)), crowd=True)))
    assert METRIC.scores(total).by_class[0] == pytest.approx(1)


def test_without_pycocotools_it_says_so_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instances, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"computed by pycocotools, which is not installed: pip install"):
        METRIC.empty()


def test_another_size_or_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"must have the truth's size \[5, 5\], got \[100, 200\]"):
        METRIC.record(found((0, 0.9, square(0))), truth((0, square(0)))._replace(size=(5, 5)))
    with pytest.raises(ValueError, match=r"classes of the truth must lie in 0\.\.2, got 8"):
        METRIC.record(found((0, 0.9, square(0))), truth((8, square(0))))
