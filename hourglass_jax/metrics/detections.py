"""How well detections agree with the truth: average precision of their boxes and of their masks, by pycocotools."""

from typing import Any, NamedTuple

import numpy as np

from hourglass_jax.metrics.base import percent
from hourglass_jax.metrics.instances import InstanceMetric, InstanceSet, InstanceTruth, average_precision
from hourglass_jax.metrics.mask_crops import crop_of
from hourglass_jax.metrics.run_lengths import encode_crop


class DetectionPrecision(NamedTuple):
    """Figures of a whole data set, in 0..1; NaN where there is nothing to compare.

    Attributes:
        box_ap: of boxes, the mean over the thresholds 0.5, 0.55 ... 0.95 of intersection over union, and over
            classes.
        box_ap50, box_ap75: at one threshold.
        box_ap_small, box_ap_medium, box_ap_large: of instances of up to 32 x 32 pixels, up to 96 x 96, and above.
        mask_ap, mask_ap50, mask_ap75, mask_ap_small, mask_ap_medium, mask_ap_large: the same of masks.
        box_by_class, mask_by_class: float64 [classes].
    """

    box_ap: float
    box_ap50: float
    box_ap75: float
    box_ap_small: float
    box_ap_medium: float
    box_ap_large: float
    mask_ap: float
    mask_ap50: float
    mask_ap75: float
    mask_ap_small: float
    mask_ap_medium: float
    mask_ap_large: float
    box_by_class: np.ndarray
    mask_by_class: np.ndarray


class DetectionMetric(InstanceMetric):
    """Detections of `classes`; of an image, the 100 with the highest scores count."""

    def record(self, result: InstanceSet, truth: InstanceTruth) -> dict[str, Any]:
        """What was found in an image and what is there; masks as run lengths, boxes as (x, y, width, height).

        Raises:
            ValueError: another size, or a true class out of range.
        """
        found = []
        for place, ((x0, y0, x1, y1), score, label) in enumerate(
            zip(result.boxes.tolist(), result.scores.tolist(), result.labels.tolist(), strict=True)
        ):
            crop = crop_of(result.masks, place)
            mask = encode_crop(crop.inside, (crop.top, crop.left), truth.size)
            found.append(
                {"category_id": label, "score": score, "segmentation": mask, "bbox": [x0, y0, x1 - x0, y1 - y0]}
            )
        return self.compared(result, truth, [each for each in found if each["category_id"] < self.classes])

    def scores(self, total: list[dict[str, Any]]) -> DetectionPrecision:
        """The figures of a data set, from the records of its images.

        Raises:
            ValueError: pycocotools is not installed.
        """
        # Areas are those of what is compared: with both in it, a mask's would be its box's.
        boxes = average_precision(_without(total, "segmentation"), self.classes, "bbox")
        masks = average_precision(_without(total, "bbox"), self.classes, "segm")
        named = {
            f"{what}_{name}": value
            for what, found in (("box", boxes), ("mask", masks))
            for name, value in found._asdict().items()
        }
        return DetectionPrecision(**named)

    def shown(self, scores: DetectionPrecision) -> dict[str, str]:
        """See `Metric.shown`."""
        return {
            f"{what} AP{part.replace('_', ' ')}, %": percent(getattr(scores, f"{what}_ap{part}"))
            for what in ("box", "mask")
            for part in ("", "50", "75", "_small", "_medium", "_large")
        }


def _without(total: list[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    """Records whose detections have no entry of this name."""
    return [
        record | {"found": [{key: value for key, value in each.items() if key != name} for each in record["found"]]}
        for record in total
    ]
