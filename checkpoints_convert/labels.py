"""Names and colours of classes: from the checkpoint, or from the data set in its settings or given by the user.

The number of classes alone does not identify a data set.
"""

import re
from collections.abc import Mapping, Sequence
from reprlib import repr as short

import numpy as np

from checkpoints_convert.rules import Fields, Given, Settings
from checkpoints_convert.settings import section
from hourglass_jax.imaging.labels import DATASETS, Labels, labels_of, palette
from hourglass_jax.imaging.segment_labels import DATASETS as SEGMENTS
from hourglass_jax.imaging.segment_labels import segment_labels

MOST_CLASSES = 100_000


def class_fields(classes: int, given: Given, dataset: str | None = None) -> Fields:
    """The fields `classes`, `dataset` and `labels` of a model's config.

    Args:
        classes: how many the model tells apart.
        given: what is known of the checkpoint.
        dataset: that its settings name; one that is unknown here, or has other numbers of classes, plays no part.

    Raises:
        ValueError: the user names a data set, or the checkpoint names classes, and their number is another.
    """
    fields: Fields = {"classes": classes, "dataset": None, "labels": None}
    if given.dataset is not None:
        labels_of(given.dataset, classes)
        return fields | {"dataset": given.dataset}
    labels = labels_in(given.saved) or transformers_labels(given.settings)
    if labels is not None:
        if len(labels.names) != classes:
            raise ValueError(f"the checkpoint names {len(labels.names)} classes, but tells {classes} apart")
        dataset = _same_names(labels)
        return fields | {"dataset": dataset, "labels": {"names": labels.names, "colors": labels.colors}}
    if dataset in DATASETS and _fits(dataset, classes):
        return fields | {"dataset": dataset}
    possible = [name for name in DATASETS if _fits(name, classes)]
    hint = f"; if they are those of {' or '.join(possible)}, say so with --dataset" if possible else ""
    given.say(f"{classes} classes without names: the checkpoint and its settings have none{hint}")
    return fields


def labels_in(tree: Mapping[object, object]) -> Labels | None:
    """The names and colours of classes that mmsegmentation's and mmdetection's checkpoints hold.

    Source: open-mmlab/mmcv, mmcv/runner/checkpoint.py and mmseg/apis/train.py (meta.CLASSES and PALETTE);
        open-mmlab/mmengine, mmengine/runner/runner.py (meta.dataset_meta, its names in small letters).

    Raises:
        ValueError: they are no names or colours.
    """
    meta = tree.get("meta")
    meta = meta if isinstance(meta, Mapping) else {}
    dataset_metas = [each.get("dataset_meta") for each in (meta, tree)]
    inner = next((each for each in dataset_metas if isinstance(each, Mapping)), {})
    for place in (inner, meta, tree):
        for names, colors in (("classes", "palette"), ("CLASSES", "PALETTE")):
            if place.get(names) is not None and not hasattr(place[names], "dtype"):
                return _labels(place[names], place.get(colors))
    return None


def transformers_labels(settings: Settings) -> Labels | None:
    """The names of transformers' id2label, where they are more than LABEL_0, LABEL_1, ..."""
    table = section(settings, "id2label")
    if not table:
        return None
    by_number = {str(number): name for number, name in table.items()}
    names = [by_number.get(str(number)) for number in range(min(len(table), MOST_CLASSES + 1))]
    if None in names:
        raise ValueError(
            f"id2label in the settings must name the classes 0 to {len(table) - 1}, got {short(dict(table))}"
        )
    if all(name == f"LABEL_{number}" for number, name in enumerate(names)):
        return None
    return _labels(names, None)


def _labels(names: object, colors: object) -> Labels | None:
    """Names, and colours or those of PASCAL VOC's palette."""
    if isinstance(names, str):
        names = [names]
    if isinstance(colors, np.ndarray):
        colors = colors.tolist()
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"the names of the checkpoint's classes must be texts, got {short(names)}")
    if not names:
        return None
    if len(names) > MOST_CLASSES:
        raise ValueError(f"expected at most {MOST_CLASSES} names of classes, got {len(names)}")
    if not isinstance(colors, Sequence) or isinstance(colors, str) or len(colors) != len(names):
        return Labels(tuple(names), palette(len(names)))
    return Labels(tuple(names), tuple(tuple(color) if isinstance(color, Sequence) else color for color in colors))


def _fits(dataset: str, classes: int) -> bool:
    return len(labels_of(dataset, None).names) == classes


def _same_names(labels: Labels) -> str | None:
    """The data set whose classes have these names, in this order."""
    names = [name.strip().casefold() for name in labels.names]
    return next(
        (each for each in DATASETS if [name.casefold() for name in labels_of(each, None).names] == names), None
    )


def same_segments(labels: Labels) -> str | None:
    """The data set of segments whose classes have these names, in this order; of synonyms the first counts."""
    names = [_plain(name) for name in labels.names]
    known = ((dataset, segment_labels(dataset, None).names) for dataset in SEGMENTS)
    return next((dataset for dataset, theirs in known if [*map(_plain, theirs)] == names), None)


def _plain(name: str) -> str:
    return re.split(r"[,;]", name)[0].strip().casefold().replace("-merged", "").replace("-other", "")
