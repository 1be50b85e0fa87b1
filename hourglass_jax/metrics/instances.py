"""Average precision of instance masks, by pycocotools.

Source: cocodataset/cocoapi, PythonAPI/pycocotools/cocoeval.py.
"""

import contextlib
import io
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import numpy as np

from hourglass_jax.metrics.base import ImageMetric, percent
from hourglass_jax.metrics.mask_crops import MaskCrops
from hourglass_jax.metrics.run_lengths import encode_mask


class InstanceSet(NamedTuple):
    """The instances of an image, the highest score first.

    Attributes:
        boxes: float32 [N, 4]: left, top, right and bottom (x0, y0, x1, y1) in pixels, the last ones exclusive;
            zeros of an empty mask.
        scores: float32 [N], in 0..1.
        labels: int32 [N], classes.
        masks: bool [N, rows, columns], or the parts of them where there is something.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | MaskCrops


class InstanceTruth(NamedTuple):
    """The instances of an image as COCO's files have them.

    Attributes:
        size: (rows, columns) of the image.
        labels: of every instance, its class.
        annotations: COCO's of each: "segmentation", "area", "bbox" and "iscrowd" are read.
    """

    size: tuple[int, int]
    labels: tuple[int, ...]
    annotations: tuple[dict[str, Any], ...]


class AveragePrecision(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        ap: mean over the thresholds 0.5, 0.55 ... 0.95 of intersection over union, and over classes.
        ap50, ap75: at one threshold.
        ap_small, ap_medium, ap_large: of instances of up to 32 x 32 pixels, up to 96 x 96, and above.
        by_class: float64 [classes], `ap` of each.
    """

    ap: float
    ap50: float
    ap75: float
    ap_small: float
    ap_medium: float
    ap_large: float
    by_class: np.ndarray


@dataclass(frozen=True)
class InstanceMetric(ImageMetric):
    """Instances of `classes`; of an image, the 100 with the highest scores count."""

    classes: int
    task = "instances"

    def empty(self) -> list[Any]:
        """See `Metric.empty`.

        Raises:
            ValueError: pycocotools is not installed, without which there will be no figures.
        """
        _check_installed()
        return super().empty()

    def record(self, result: InstanceSet, truth: InstanceTruth) -> dict[str, Any]:
        """What was found in an image and what is there, the masks as run lengths.

        Raises:
            ValueError: another size, or a true class out of range.
        """
        found = [
            {"category_id": int(label), "score": float(score), "segmentation": encode_mask(mask)}
            for label, score, mask in zip(result.labels, result.scores, result.masks, strict=True)
            if label < self.classes and mask.any()
        ]
        return self.compared(result, truth, found)

    def compared(self, result: InstanceSet, truth: InstanceTruth, found: list[dict[str, Any]]) -> dict[str, Any]:
        """What is kept of an image: what was `found` in it, and its truth.

        Raises:
            ValueError: another size, or a true class out of range.
        """
        if result.masks.shape[1:] != tuple(truth.size):
            raise ValueError(
                f"masks of the result must have the truth's size {list(truth.size)}, got "
                f"{list(result.masks.shape[1:])}"
            )
        if any(not 0 <= label < self.classes for label in truth.labels):
            raise ValueError(f"classes of the truth must lie in 0..{self.classes - 1}, got {max(truth.labels)}")
        kept = ("segmentation", "area", "bbox", "iscrowd")
        true = [
            {"category_id": label, **{name: annotation[name] for name in kept if name in annotation}}
            for label, annotation in zip(truth.labels, truth.annotations, strict=True)
        ]
        return {"size": list(truth.size), "found": found, "true": true}

    def scores(self, total: list[dict[str, Any]]) -> AveragePrecision:
        """The figures of a data set, from the records of its images.

        Raises:
            ValueError: pycocotools is not installed.
        """
        return average_precision(total, self.classes, "segm")

    def shown(self, scores: AveragePrecision) -> dict[str, str]:
        """See `Metric.shown`."""
        return {
            "AP, %": percent(scores.ap),
            "AP50, %": percent(scores.ap50),
            "AP75, %": percent(scores.ap75),
            "AP small, %": percent(scores.ap_small),
            "AP medium, %": percent(scores.ap_medium),
            "AP large, %": percent(scores.ap_large),
        }


def average_precision(total: list[dict[str, Any]], classes: int, what: Literal["segm", "bbox"]) -> AveragePrecision:
    """The figures of a data set, from the records of its images: of masks, or of boxes.

    Raises:
        ValueError: pycocotools is not installed.
    """
    _check_installed()
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = _document(total, classes)  # pyright: ignore[reportAttributeAccessIssue]  untyped
        truth.createIndex()
        detections = [each | {"image_id": image} for image, record in enumerate(total) for each in record["found"]]
        found = truth.loadRes(detections) if detections else COCO()  # pyright: ignore[reportArgumentType]  or a list
        run = COCOeval(truth, found, what)
        run.params.imgIds, run.params.catIds = list(range(len(total))), list(range(classes))
        run.evaluate()
        run.accumulate()
    # [thresholds of the overlap, of recall, classes, areas (all, small, medium, large), most detections]
    precision = run.eval["precision"][..., -1]
    by_class = np.array([_mean(precision[:, :, label, 0]) for label in range(classes)])
    whole = [_mean(precision[:, :, :, area]) for area in range(4)]
    return AveragePrecision(
        whole[0],
        _mean(precision[0, :, :, 0]),
        _mean(precision[5, :, :, 0]),
        whole[1],
        whole[2],
        whole[3],
        by_class,
    )


def _check_installed() -> None:
    if find_spec("pycocotools") is None:
        raise ValueError(
            "average precision is computed by pycocotools, which is not installed: "
            'pip install "hourglass-jax[eval]"'
        )


def _document(total: list[dict[str, Any]], classes: int) -> dict[str, Any]:
    """All images and their truth as COCO's JSON."""
    images = [
        {"id": image, "height": record["size"][0], "width": record["size"][1]} for image, record in enumerate(total)
    ]
    true = [annotation | {"image_id": image} for image, record in enumerate(total) for annotation in record["true"]]
    annotations = [{"iscrowd": 0, **annotation, "id": number} for number, annotation in enumerate(true, start=1)]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
    }


def _mean(precision: np.ndarray) -> float:
    """The mean of what is known, -1 being nothing; NaN of nothing."""
    known = precision[precision > -1]
    return float(known.mean()) if known.size else float("nan")
