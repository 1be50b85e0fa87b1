"""Panoptic segmentation: every pixel belongs to one thing, which is counted, to stuff, which is not, or to none."""

from dataclasses import dataclass

import numpy as np

from hourglass_jax.imaging.segment_labels import SegmentLabels
from hourglass_jax.imaging.segment_pictures import Region, encode_ids, segment_overlay
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.panoptic import PanopticMap, Segment, match_segments
from hourglass_jax.tasks.base import Rendering, check_classes, image_id
from hourglass_jax.tasks.queries import QueryOutputs, bands, class_scores, sigmoid


@dataclass(frozen=True)
class Panoptic:
    """Queries to a panoptic map.

    A pixel goes to the query whose mask is the most probable there, weighted by the query's score, and only where
    that mask is at least one half. All stuff of a class is one segment, whose score is its first query's.

    Attributes:
        labels: the classes.
        dataset: whose classes they are, or None.
        object_threshold: what a query's score must exceed.
        overlap_threshold: the least share of its own mask that the pixels that a query wins must be as many as.

    Source: facebookresearch/Mask2Former, mask2former/maskformer_model.py (panoptic_inference).
    """

    labels: SegmentLabels
    dataset: str | None = None
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    name = "panoptic"

    def postprocess(self, outputs: QueryOutputs, layout: Layout, size: tuple[int, int]) -> PanopticMap:
        """See `Task.postprocess`."""
        scores = class_scores(outputs)
        classes, best = scores.argmax(axis=-1), scores.max(axis=-1)
        kept = np.flatnonzero((classes < scores.shape[1] - 1) & (best > self.object_threshold))
        winners, inside = np.zeros(size, np.int32), np.zeros(size, bool)
        originals = np.zeros(len(kept), np.int64)
        if len(kept):
            for rows, logits in bands(outputs.mask_logits[0][kept], layout, size):
                masks = sigmoid(logits)
                originals += (masks >= 0.5).sum(axis=(1, 2))
                winners[rows] = (best[kept, None, None] * masks).argmax(axis=0)
                inside[rows] = np.take_along_axis(masks, winners[rows][None], axis=0)[0] >= 0.5
        areas = np.bincount(winners.ravel(), minlength=len(kept)) if len(kept) else originals
        finals = np.bincount(winners[inside], minlength=len(kept)) if len(kept) else originals
        numbers, table, stuff = np.zeros(max(1, len(kept)), np.int32), [], {}
        for place, query in enumerate(kept):
            if not (areas[place] and originals[place] and finals[place]):
                continue
            if areas[place] / originals[place] < self.overlap_threshold:
                continue
            label = int(classes[query])
            is_thing, known = label in self.labels.things, stuff.get(label)
            if known is None:
                table.append(Segment(len(table) + 1, label, is_thing, float(best[query]), int(finals[place])))
                known = len(table)
                if not is_thing:
                    stuff[label] = known
            else:
                table[known - 1] = table[known - 1]._replace(area=table[known - 1].area + int(finals[place]))
            numbers[place] = known
        return PanopticMap(np.where(inside, numbers[winners], 0), tuple(table))

    def difference(self, a: PanopticMap, b: PanopticMap) -> np.ndarray:
        """1 where the segments of two maps are no match (of one class, and mostly the same), 0 elsewhere."""
        labels = [{each.id: each.label for each in result.table} for result in (a, b)]
        matched = {pair[:2] for pair in match_segments(a.segments, labels[0], b.segments, labels[1])} | {(0, 0)}
        width = int(max(a.segments.max(), b.segments.max())) + 1
        same = np.zeros((width, width), bool)
        for pair in matched:
            same[pair] = True
        return 1 - same[a.segments, b.segments].astype(np.float32)

    def agreement(self, a: PanopticMap, b: PanopticMap) -> float | None:
        """The share of the pixels whose segments match."""
        return float(1 - self.difference(a, b).mean())

    def render(self, photo: np.ndarray, result: PanopticMap) -> Rendering:
        """COCO's form of the map, a PNG of numbers and its JSON, and the segments on the photograph."""
        names, titles, regions = self.labels.names, self.labels.titles, []
        for segment in result.table:
            mask = result.segments == segment.id
            text = f"{titles[segment.label]} {segment.score:.0%}" if segment.is_thing else titles[segment.label]
            color = self.labels.colors[segment.label]
            regions.append(Region(mask, text, color, segment.is_thing))
        return Rendering(
            {"panoptic": encode_ids(result.segments), "overlay": segment_overlay(photo, regions)},
            records={"segments": [each._asdict() | {"name": names[each.label]} for each in result.table]},
            documents={"panoptic": lambda name: self._document(name, result)},
            text=tuple(
                f"{each.area / result.segments.size:6.1%}  {titles[each.label]} ({each.score:.0%})"
                for each in sorted(result.table, key=lambda each: -each.area)
            ),
        )

    def _document(self, name: str, result: PanopticMap) -> dict[str, object]:
        """COCO's JSON of the map of a photograph of this name."""
        infos = [
            {
                "id": segment.id,
                "category_id": self.labels.ids[segment.label],
                "isthing": int(segment.is_thing),
                "area": segment.area,
                "bbox": _box(result.segments == segment.id),
                "score": segment.score,
            }
            for segment in result.table
        ]
        categories = [
            {"id": number, "name": called, "isthing": int(label in self.labels.things)}
            for label, (number, called) in enumerate(zip(self.labels.ids, self.labels.names, strict=True))
        ]
        annotation = {"image_id": image_id(name), "file_name": f"{name}_panoptic.png", "segments_info": infos}
        return {"annotations": [annotation], "categories": categories}

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`; data sets of panoptic maps are called by their classes' with "_panoptic"."""
        name = name if name == self.dataset else name.removesuffix("_panoptic")
        check_classes(name, classes, len(self.labels.names), self.dataset)

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: all panoptic maps are compared alike."""
        return published


def _box(mask: np.ndarray) -> list[int]:
    """The box around a mask as COCO has it: left, top, width and height."""
    (rows,), (columns,) = np.nonzero(mask.any(axis=1)), np.nonzero(mask.any(axis=0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) + 1 - left, int(rows[-1]) + 1 - top]
