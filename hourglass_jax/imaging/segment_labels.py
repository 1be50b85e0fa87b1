"""Classes of data sets of segments: names, colours, which can be counted, and their numbers in the files.

They are facts of COCO (https://cocodataset.org: 80 classes of things, and 53 more of stuff for panoptic maps),
ADE20K (150 classes of scenes, of which 100 are things; and those 100 alone), Cityscapes (19 classes, of which 8
are things; and those 8 alone) and Mapillary Vistas 1.2 (https://www.mapillary.com/dataset/vistas, 65 classes, of
which 37 are things), in the order of the outputs of models that are trained with detectron2.

Source: facebookresearch/detectron2, detectron2/data/datasets/builtin_meta.py; facebookresearch/Mask2Former,
    mask2former/data/datasets.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from hourglass_jax.imaging.labels import Labels, labels_of

DATASETS = (
    *("coco_panoptic", "coco_instance", "ade20k", "ade20k_instance", "cityscapes", "cityscapes_instance"),
    "mapillary_vistas",
)


@dataclass(frozen=True)
class SegmentLabels(Labels):
    """What the classes of segments are called and drawn with, in the order of a model's outputs.

    Attributes:
        things: the classes that can be counted; the others are stuff.
        ids: the number of every class in the files of its data set.
    """

    things: frozenset[int]
    ids: tuple[int, ...]

    @property
    def titles(self) -> tuple[str, ...]:
        """See `Labels.titles`: without what COCO says of how a class of stuff came about."""
        return tuple(name.removesuffix("-merged").removesuffix("-other") for name in self.names)


def segment_labels(
    dataset: str | None,
    classes: int | None,
    *,
    labels: Labels | None = None,
    things: Sequence[int] | None = None,
) -> SegmentLabels:
    """The classes of a data set, or others.

    Args:
        dataset: one of `DATASETS`, or None.
        classes: how many the model tells apart; None, for a data set, is as many as it has.
        labels: of classes without a data set; None for "class 0", "class 1", ...
        things: the classes that can be counted; by default those of the data set, all without one.

    Raises:
        ValueError: an unknown data set or one with another number of classes, other labels than classes, or things
            that are no classes.
    """
    if labels is not None and (dataset is not None or len(labels.names) != classes):
        raise ValueError(f"labels must name {classes} classes, of no known data set, got {len(labels.names)}")
    if dataset is None:
        plain = labels or labels_of(None, classes)
        classes = len(plain.names)
        _check_things(things, classes)
        counted = range(classes) if things is None else things
        return SegmentLabels(plain.names, plain.colors, frozenset(counted), tuple(range(classes)))
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)} or None, got {dataset!r}")
    known = _read()[dataset]
    if classes not in (None, len(known.names)):
        raise ValueError(f"classes must be {len(known.names)} for the data set {dataset}, got {classes}")
    _check_things(things, len(known.names))
    return known if things is None else SegmentLabels(known.names, known.colors, frozenset(things), known.ids)


def _check_things(things: Sequence[int] | None, classes: int) -> None:
    if things is not None and not set(things) <= set(range(classes)):
        raise ValueError(f"things must be classes, 0 to {classes - 1}, got {max(things)}")


@cache
def _read() -> dict[str, SegmentLabels]:
    table = json.loads(resources.files("hourglass_jax.imaging").joinpath("segments.json").read_text("utf-8"))
    labels = {}
    for dataset, rows in table.items():
        names, colors, counted, ids = zip(*rows, strict=True)
        things = frozenset(label for label, is_thing in enumerate(counted) if is_thing)
        labels[dataset] = SegmentLabels(names, tuple(map(tuple, colors)), things, ids)
    return labels
