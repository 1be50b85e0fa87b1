"""Instance segmentation: the things of an image, each with a mask, a class and a score; masks may overlap."""

from dataclasses import dataclass

import numpy as np

from hourglass_jax.imaging.segment_labels import SegmentLabels
from hourglass_jax.imaging.segment_pictures import Region, segment_overlay
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.instances import InstanceSet
from hourglass_jax.metrics.mask_crops import crop_of
from hourglass_jax.metrics.run_lengths import encode_crop
from hourglass_jax.tasks.base import Rendering, check_classes, image_id
from hourglass_jax.tasks.queries import QueryOutputs, bands, class_scores, sigmoid

SHOWN = 0.5
"""`Instances.shown`, unless another is asked for."""


@dataclass(frozen=True)
class Instances:
    """Queries to instances: the most probable pairs of a query and a class.

    A query may appear with several classes. The score is the class's probability times the mean of the mask's
    probabilities where they exceed one half. Boxes are those around the masks; the official code leaves zeros.

    Attributes:
        labels: the classes.
        dataset: whose classes they are, or None.
        detections: pairs that are kept.
        things_only: whether those of stuff are left out, after that: of a model for panoptic maps.
        shown: the least score of an instance that is drawn, printed, and counted as a decision.

    Source: facebookresearch/Mask2Former, mask2former/maskformer_model.py (instance_inference).
    """

    labels: SegmentLabels
    dataset: str | None = None
    detections: int = 100
    things_only: bool = False
    shown: float = SHOWN
    name = "instances"

    def postprocess(self, outputs: QueryOutputs, layout: Layout, size: tuple[int, int]) -> InstanceSet:
        """See `Task.postprocess`."""
        scores = class_scores(outputs)[:, :-1]
        pairs = np.argsort(-scores, axis=None, kind="stable")[: self.detections]
        queries, labels = np.unravel_index(pairs, scores.shape)
        if self.things_only:
            kept = np.isin(labels, sorted(self.labels.things))
            queries, labels = queries[kept], labels[kept]
        used, places = np.unique(queries, return_inverse=True)
        masks, sums = np.zeros((len(used), *size), bool), np.zeros(len(used), np.float64)
        for rows, logits in bands(outputs.mask_logits[0][used], layout, size) if len(used) else ():
            masks[:, rows] = logits > 0
            sums += np.where(logits > 0, sigmoid(logits), 0).sum(axis=(1, 2))
        certainty = sums / (masks.sum(axis=(1, 2)) + 1e-6)
        found = (scores[queries, labels] * certainty[places]).astype(np.float32)
        order = np.argsort(-found, kind="stable")
        boxes = np.array([_box(mask) for mask in masks], np.float32).reshape(-1, 4)
        places = places[order]
        return InstanceSet(boxes[places], found[order], labels[order].astype(np.int32), masks[places])

    def difference(self, a: InstanceSet, b: InstanceSet) -> np.ndarray:
        """How much the score of a class's most certain instance differs, of the class where it does most."""
        labels = np.union1d(a.labels, b.labels)
        size = a.masks.shape[1:]
        apart = np.zeros(size, np.float32)
        for label in labels:
            apart = np.maximum(apart, np.abs(_certainty(a, label, size) - _certainty(b, label, size)))
        return apart

    def agreement(self, a: InstanceSet, b: InstanceSet) -> float | None:
        """The share of the pixels where the most certain instance is of one class, if its score is one half."""
        return float(np.mean(self._decide(a) == self._decide(b)))

    def _decide(self, result: InstanceSet) -> np.ndarray:
        """The class of every pixel, -1 of none, int32 [rows, columns]."""
        decided = np.full(result.masks.shape[1:], -1, np.int32)
        for place in np.flatnonzero(result.scores >= self.shown)[::-1]:
            decided[result.masks[place]] = result.labels[place]
        return decided

    def render(self, photo: np.ndarray, result: InstanceSet) -> Rendering:
        """COCO's form of the instances, and those that are certain enough on the photograph."""
        names, titles = self.labels.names, self.labels.titles
        crops = [crop_of(result.masks, place) for place in range(len(result.scores))]
        shown = [
            place for place, crop in enumerate(crops) if result.scores[place] >= self.shown and crop.inside.any()
        ]
        regions = [
            Region(
                crops[place].inside,
                f"{titles[result.labels[place]]} {result.scores[place]:.0%}",
                self.labels.colors[result.labels[place]],
                is_thing=True,
                corner=(crops[place].top, crops[place].left),
            )
            for place in shown
        ]
        return Rendering(
            {"overlay": segment_overlay(photo, regions)},
            records={
                "instances": [
                    {
                        "label": int(result.labels[place]),
                        "name": names[result.labels[place]],
                        "score": float(result.scores[place]),
                        "box": result.boxes[place].tolist(),
                        "area": int(crops[place].inside.sum()),
                    }
                    for place in range(len(result.scores))
                ]
            },
            documents={"instances": lambda name: self.detections_of(name, result)},
            text=tuple(f"{result.scores[place]:6.1%}  {titles[result.labels[place]]}" for place in shown),
        )

    def detections_of(self, name: str, result: InstanceSet) -> list[dict[str, object]]:
        """COCO's JSON of the instances of a photograph of this name."""
        crops = [crop_of(result.masks, place) for place in range(len(result.scores))]
        _, *size = result.masks.shape
        return [
            {
                "image_id": image_id(name) if isinstance(name, str) else name,
                "category_id": self.labels.ids[label],
                "bbox": [float(x0), float(y0), float(x1 - x0), float(y1 - y0)],
                "score": float(score),
                "segmentation": encode_crop(crop.inside, (crop.top, crop.left), (size[0], size[1])),
            }
            for (x0, y0, x1, y1), score, label, crop in zip(*result[:3], crops, strict=True)
        ]

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`; the things of COCO's panoptic maps are its instances' classes."""
        if (self.dataset, name) != ("coco_panoptic", "coco_instance"):
            check_classes(name, classes, len(self.labels.names), self.dataset)

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: all instances are compared alike."""
        return published


def _box(mask: np.ndarray) -> list[int]:
    """Left, top, right and bottom of a mask, the last two exclusive; zeros of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1] if len(rows) else [0, 0, 0, 0]


def _certainty(result: InstanceSet, label: int, size: tuple[int, int]) -> np.ndarray:
    """The score of the most certain instance of a class at every pixel, float32 [rows, columns]."""
    certainty = np.zeros(size, np.float32)
    for place in np.flatnonzero(result.labels == label)[::-1]:
        certainty[result.masks[place]] = result.scores[place]
    return certainty
