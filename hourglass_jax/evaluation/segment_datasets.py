"""Data sets of segments in the form of COCO's files: panoptic maps, and instances.

Source: cocodataset/panopticapi, panopticapi/utils.py (numbers as colours); facebookresearch/detectron2,
    detectron2/data/datasets/coco_panoptic.py and cityscapes_panoptic.py; facebookresearch/Mask2Former,
    datasets/README.md (the folders of ADE20K).
"""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hourglass_jax.imaging.segment_labels import SegmentLabels, segment_labels
from hourglass_jax.metrics.instances import InstanceTruth
from hourglass_jax.metrics.panoptic import PanopticMap, Segment

Grid = tuple[int, int]
Found = tuple[list[tuple[str, Path, Any]], Callable[[Any, Grid], Any]]
"""The key of every image, its file and what its truth is read from; and what reads that."""


class PanopticFile(NamedTuple):
    """A picture of numbers, and what its JSON says of them."""

    path: Path
    segments: tuple[Mapping[str, Any], ...]


def coco_panoptic(root: Path, split: str) -> Found:
    """COCO: images in SPLIT2017/, annotations/panoptic_SPLIT2017.json and the folder of the same name."""
    name = f"panoptic_{split}2017"
    annotations = root / "annotations"
    maps = next((each for each in (annotations / name, root / name) if each.is_dir()), annotations / name)
    return _panoptic(
        annotations / f"{name}.json",
        maps,
        lambda annotation, image: _coco_image(root, split, image),
        "coco_panoptic",
    )


def ade20k_panoptic(root: Path, split: str) -> Found:
    """ADE20K: images in images/, ade20k_panoptic_SPLIT.json and the folder of the same name."""
    folder = root / "images" / {"val": "validation", "train": "training"}[split]
    name = f"ade20k_panoptic_{split}"
    return _panoptic(
        root / f"{name}.json",
        root / name,
        lambda annotation, image: folder / f"{Path(annotation['file_name']).stem}.jpg",
        "ade20k",
    )


def cityscapes_panoptic(root: Path, split: str) -> Found:
    """Cityscapes: leftImg8bit/, gtFine/cityscapes_panoptic_SPLIT.json and the folder of the same name."""
    name = f"cityscapes_panoptic_{split}"

    def image(annotation: Mapping[str, Any], _: Mapping[str, Any]) -> Path:
        key = str(annotation["image_id"])
        return root / "leftImg8bit" / split / key.split("_")[0] / f"{key}_leftImg8bit.png"

    return _panoptic(root / "gtFine" / f"{name}.json", root / "gtFine" / name, image, "cityscapes")


def coco_instances(root: Path, split: str) -> Found:
    """COCO: images in SPLIT2017/ and annotations/instances_SPLIT2017.json."""
    labels = segment_labels("coco_instance", None)
    document = _document(root / "annotations" / f"instances_{split}2017.json", "images", "annotations")
    if document is None:
        return [], _read_instances
    by_image = defaultdict(list)
    for annotation in document["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    place = {number: label for label, number in enumerate(labels.ids)}
    found = [
        (Path(image["file_name"]).stem, _coco_image(root, split, image), (tuple(by_image[image["id"]]), place))
        for image in sorted(document["images"], key=lambda each: each["id"])
    ]
    return found, _read_instances


def _coco_image(root: Path, split: str, image: Mapping[str, Any]) -> Path:
    folder = root / f"{split}2017"
    return (folder if folder.is_dir() else root / "images" / f"{split}2017") / image["file_name"]


def _panoptic(
    file: Path, maps: Path, image_of: Callable[[Mapping[str, Any], Mapping[str, Any]], Path], dataset: str
) -> Found:
    read = partial(_read_panoptic, labels=segment_labels(dataset, None))
    document = _document(file, "images", "annotations")
    if document is None:
        return [], read
    images = {image["id"]: image for image in document["images"]}
    found = []
    for annotation in document["annotations"]:
        truth = PanopticFile(maps / annotation["file_name"], tuple(annotation["segments_info"]))
        image = image_of(annotation, images.get(annotation["image_id"], {"file_name": ""}))
        found.append((str(annotation["image_id"]), image, truth))
    return sorted(found, key=lambda each: each[0].zfill(12)), read


def _document(file: Path, *parts: str) -> Mapping[str, Any] | None:
    """A file of annotations, None if there is none; ValueError if it is something else."""
    if not file.is_file():
        return None
    try:
        document = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file} must be JSON with annotations: {error}") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(part), list) for part in parts):
        raise ValueError(f"{file} must be JSON with lists of {' and '.join(parts)}")
    return document


def _read_panoptic(file: PanopticFile, size: Grid, *, labels: SegmentLabels) -> PanopticMap:
    try:
        with Image.open(file.path) as image:
            colors = np.asarray(image.convert("RGB")).astype(np.int32)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ...
        raise ValueError(f"the panoptic map {file.path.name} cannot be read: {error}") from error
    segments = colors @ np.array((1, 256, 65536), np.int32)
    if segments.shape != size:
        raise ValueError(f"the panoptic map must have the image's size {list(size)}, got {list(segments.shape)}")
    place = {number: label for label, number in enumerate(labels.ids)}
    numbers, areas = np.unique(segments, return_counts=True)
    area = dict(zip(numbers.tolist(), areas.tolist(), strict=True))
    table = []
    for info in file.segments:
        if info["category_id"] not in place:
            raise ValueError(f"categories of panoptic maps must be the data set's, got {info['category_id']}")
        label, crowd = place[info["category_id"]], bool(info.get("iscrowd", 0))
        number = int(info["id"])
        table.append(Segment(number, label, label in labels.things, 1.0, area.get(number, 0), crowd))
    return PanopticMap(segments, tuple(table))


def _read_instances(truth: tuple[tuple[dict[str, Any], ...], Mapping[int, int]], size: Grid) -> InstanceTruth:
    annotations, place = truth
    unknown = [each["category_id"] for each in annotations if each["category_id"] not in place]
    if unknown:
        raise ValueError(f"categories of instances must be the data set's, got {unknown[0]}")
    return InstanceTruth(size, tuple(place[each["category_id"]] for each in annotations), annotations)
