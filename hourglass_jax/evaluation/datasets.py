"""Images with their truth, a map of labels or depth or a class: published folders, or tensorflow-datasets' files.

Source: open-mmlab/mmsegmentation, mmseg/datasets (the folders, and which labels count); mcordts/cityscapesScripts,
cityscapesscripts/helpers/labels.py (the 19 classes); rstrudel/segmenter, segm/config.yml (the sizes).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from PIL import Image

from hourglass_jax.evaluation import segment_datasets as segments
from hourglass_jax.imaging.images import read_image
from hourglass_jax.imaging.labels import Labels, labels_of, wordnet_ids
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.io.files import is_hidden
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.classification import ClassificationMetric
from hourglass_jax.metrics.depth import EIGEN, EIGEN_NYU, GARG, DepthMetric
from hourglass_jax.metrics.instances import InstanceMetric
from hourglass_jax.metrics.panoptic import PanopticMetric
from hourglass_jax.metrics.segmentation import IGNORED, SegmentationMetric
from hourglass_jax.ops.grids import Grid

Split = Literal["val", "train"]
File = Path | BytesIO
Pair = tuple[File, Any]
"""An image and what its truth is read from: a label or depth map, or the number of a class."""
Read = Callable[[Any, Grid], Any]
"""Makes the truth of an image of (rows, columns) from the second of its `Pair`; ValueError if it is none."""


def _encoding(classes: Mapping[int, int]) -> np.ndarray:
    """Value in a label map -> class, `IGNORED`, or -1 for values that must not occur; int16 [256]."""
    table = np.full(256, -1, np.int16)
    table[list(classes)] = list(classes.values())
    return table


ADE20K = _encoding({0: IGNORED} | {label + 1: label for label in range(150)})
TRAIN_IDS = _encoding({IGNORED: IGNORED} | {label: label for label in range(19)})
LABEL_IDS = _encoding(
    dict.fromkeys(range(34), IGNORED)
    | {value: label for label, value in enumerate((7, 8, 11, 12, 13, 17, *range(19, 29), 31, 32, 33))}
)
PASCAL_CONTEXT = _encoding({IGNORED: IGNORED} | {label: label for label in range(60)})


class Source(NamedTuple):
    """Where the pairs of a split lie.

    Attributes:
        kind: "folder" or "tfds".
        keys: names of the images.
        pair: the pair at a place in `keys`.
        read: makes its truth.
    """

    kind: str
    keys: Sequence[str]
    pair: Callable[[int], Pair]
    read: Read


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pairs of an image and its truth; `dataset[i]` reads one.

    Attributes:
        name: one of `labels.DATASETS`.
        split: "val" or "train".
        metric: how results are compared with its truth.
        labels: names and colours of the classes.
        size: what the shorter side of the images is scaled to in published figures; None for the model's own.
        source: where the pairs lie.
        crop: (rows, columns) in the middle at the bottom of an image that are all that is seen of it, or None.
    """

    name: str
    split: str
    metric: Metric
    labels: Labels
    size: int | None
    source: Source
    crop: Grid | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.labels.names)

    @property
    def keys(self) -> Sequence[str]:
        """Names of the images, all different."""
        return self.source.keys

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, Any]:
        """Reads a pair.

        Returns:
            Its key, the image (uint8 [H, W, 3]) and its truth: a label map (int16 [H, W], 255 for pixels that do
            not count), a depth map (float32 [H, W], metres, 0 where there is none; of the whole image, also where
            that is cropped), or the number of its class.

        Raises:
            ValueError: a file cannot be read, the two differ in size, or a label is out of range.
        """
        key = self.keys[index]
        image_file, truth = self.source.pair(index)
        try:
            image = read_image(_opened("image", image_file))
            return key, self._cropped(image), self.source.read(truth, image.shape[:2])
        except ValueError as problem:
            raise ValueError(f"{key} of {self.name}: {problem}") from problem

    def _cropped(self, image: np.ndarray) -> np.ndarray:
        if self.crop is None:
            return image
        rows, columns = (min(kept, side) for kept, side in zip(self.crop, image.shape[:2], strict=True))
        left = (image.shape[1] - columns) // 2
        return image[image.shape[0] - rows :, left : left + columns]


def _read_label_map(file: File, size: Grid, *, encoding: np.ndarray) -> np.ndarray:
    """The classes of the pixels of an image, by what the values of its label map mean (`_encoding`)."""
    image = _opened("label map", file)
    if image.mode not in ("L", "P", "I", "I;16"):
        raise ValueError(
            f"a label map must have one channel of classes, got {image.mode}: colours are none, nor are masks "
            "of instances such as those of scene_parse150 in tensorflow-datasets"
        )
    try:
        values = np.asarray(image)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ...
        raise ValueError(f"the label map cannot be decoded: {error}") from error
    classes = encoding[np.minimum(values, IGNORED)]
    wrong = (classes < 0) | (values > IGNORED)
    if wrong.any():
        highest = np.flatnonzero(encoding[:IGNORED] >= 0).max()
        known = f"0..{highest}" + (f" or {IGNORED}" if encoding[IGNORED] >= 0 else "")
        raise ValueError(f"values of a label map must be {known}, got {values[wrong][0]}")
    if classes.shape != size:
        raise ValueError(f"the label map must have the image's size {list(size)}, got {list(classes.shape)}")
    return classes


def _label_maps(encoding: np.ndarray) -> Read:
    return partial(_read_label_map, encoding=encoding)


def _read_depth_map(file: File | np.ndarray, size: Grid, *, steps: int) -> np.ndarray:
    """The depth map of an image in metres: numbers as they are, or a file with so many steps to a metre."""
    if isinstance(file, np.ndarray):
        depth = file.astype(np.float32)
    else:
        image = _opened("depth map", file)
        if image.mode not in ("I", "I;16", "I;16B"):
            raise ValueError(f"a depth map must have one channel of 16 bits, got {image.mode}")
        try:
            depth = np.asarray(image).astype(np.float32) / steps
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ...
            raise ValueError(f"the depth map cannot be decoded: {error}") from error
    if depth.shape != size:
        raise ValueError(f"the depth map must have the image's size {list(size)}, got {list(depth.shape)}")
    return np.where(np.isfinite(depth), depth, 0)


def _read_class(number: int, size: Grid) -> int:
    """The class of an image, which is known without reading anything."""
    return int(number)


def open_dataset(name: str, data_dir: str | os.PathLike[str], split: Split = "val") -> Dataset:
    """Finds a data set in a folder; nothing is downloaded, and only file names are read.

    Args:
        name: "ade20k" (150 classes), "cityscapes" (19), "pascal_context" (60), "imagenet2012" (1000), "kitti" or
            "nyu_depth_v2" (depth), "coco_panoptic" (133), "ade20k_panoptic" (150), "cityscapes_panoptic" (19) or
            "coco_instance" (80).
        data_dir: the folder the published archives were unpacked in, or the data_dir of tensorflow-datasets, built
            as array_record. For ImageNet it holds a folder for each class, or val/ and train/ with those: by
            WordNet id (n01440764), by number in the order of these ids (0), or by name (tench).
        split: "val" or "train".

    Returns:
        The data set.

    Raises:
        ValueError: an unknown name or split, a folder without the data set, images without label maps, or folders
            that are called by no class.
    """
    if name not in _PUBLISHED:
        raise ValueError(f"dataset must be one of {', '.join(_PUBLISHED)}, got {name!r}")
    if split not in ("val", "train"):
        raise ValueError(f"split must be 'val' or 'train', got {split!r}")
    data_dir = Path(data_dir)
    if not data_dir.is_dir():
        raise ValueError(f"the data must be in a folder, and {data_dir} is none")
    published = _PUBLISHED[name]
    source = _in_folder(published, data_dir, split) or _built(published, data_dir, split)
    if source is None:
        raise ValueError(
            f"{data_dir} holds no {split} split of {name}: looked for {published.layout}"
            + (f", and {published.built.name}/*/features.json of tensorflow-datasets" if published.built else "")
        )
    if published.segments is not None:
        labels: Labels = segment_labels(published.segments, published.classes)
    else:
        labels = labels_of(name, published.classes) if published.classes else Labels((), ())
    return Dataset(name, split, published.metric, labels, published.size, source, published.crop)


def restrict_depth(dataset: Dataset, crop: str | None, cap: float | None) -> Dataset:
    """A data set of depth with another crop ("garg", "eigen", "none") or cap than its own, where one is given.

    Raises:
        ValueError: the data set is of something else, or has no such crop.
    """
    if crop is None and cap is None:
        return dataset
    crops = _CROPS.get(dataset.name, {})
    if not isinstance(dataset.metric, DepthMetric) or crop not in (None, *crops):
        known = ", ".join(crops) or "none, nor a cap"
        raise ValueError(f"crops of {dataset.name} are {known}; got crop {crop} and cap {cap}")
    changes = ({} if crop is None else {"crop": crops[crop]}) | ({} if cap is None else {"cap": cap})
    return replace(dataset, metric=replace(dataset.metric, **changes))


_CROPS = {
    "kitti": {"garg": GARG, "eigen": EIGEN, "none": None},
    "nyu_depth_v2": {"eigen": EIGEN_NYU, "none": None},
}


class Built(NamedTuple):
    """What tensorflow-datasets calls a data set, its splits and its features."""

    name: str
    splits: Mapping[str, str]
    image: str
    truth: str
    read: Read


Found = tuple[list[tuple[str, Path, Any]], Read]
"""The key and the pair of every image, and what makes their truths."""


class Published(NamedTuple):
    """A data set as it is published.

    Attributes:
        metric: see `Dataset`.
        size: see `Dataset`.
        roots: where below a user's folder it may lie.
        layout: of its files, in words.
        find: the images of a split below a root.
        built: in tensorflow-datasets.
        crop: see `Dataset`.
        segments: whose classes of segments they are, one of `segment_labels.DATASETS`.
    """

    metric: Metric
    size: int | None
    roots: Sequence[str]
    layout: str
    find: Callable[[Path, str], Found]
    built: Built | None = None
    crop: Grid | None = None
    segments: str | None = None

    @property
    def classes(self) -> int:
        """Number of classes; 0 of a data set without any."""
        metric = self.metric
        if isinstance(metric, SegmentationMetric | ClassificationMetric | PanopticMetric | InstanceMetric):
            return metric.classes
        return 0


def _ade20k(root: Path, split: str) -> Found:
    folder = {"val": "validation", "train": "training"}[split]
    images = sorted((root / "images" / folder).glob("*.jpg"))
    labels = root / "annotations" / folder
    return [(path.stem, path, labels / f"{path.stem}.png") for path in images], _label_maps(ADE20K)


def _cityscapes(root: Path, split: str) -> Found:
    labels = root / "gtFine" / split
    kind, encoding = "labelIds", LABEL_IDS
    if not any(labels.glob(f"*/*_gtFine_{kind}.png")) and any(labels.glob("*/*_gtFine_labelTrainIds.png")):
        kind, encoding = "labelTrainIds", TRAIN_IDS
    pairs = []
    for path in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        key = path.stem.removesuffix("_leftImg8bit")
        pairs.append((key, path, labels / path.parent.name / f"{key}_gtFine_{kind}.png"))
    return pairs, _label_maps(encoding)


def _pascal_context(root: Path, split: str) -> Found:
    listed = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    keys = listed.read_text().split() if listed.is_file() else []
    pairs = [
        (key, root / "JPEGImages" / f"{key}.jpg", root / "SegmentationClassContext" / f"{key}.png") for key in keys
    ]
    return pairs, _label_maps(PASCAL_CONTEXT)


def _imagenet(root: Path, split: str) -> Found:
    folder = root / split
    if split == "val" and not folder.is_dir():
        folder = root
    names, identifiers = labels_of("imagenet2012", 1000).names, wordnet_ids()
    classes = {
        each: label for label in range(len(names)) for each in (identifiers[label], str(label), names[label])
    }
    folders = sorted(path for path in folder.glob("*/") if not is_hidden(path.name))
    unknown = [path for path in folders if path.name not in classes]
    if 0 < len(unknown) < len(folders):
        raise ValueError(
            "folders must be called by the WordNet id, number or name of a class of ImageNet, as "
            f"{len(folders) - len(unknown)} in {folder} are, got {unknown[0].name}"
        )
    found = [
        (path.relative_to(folder).as_posix(), path, classes[each.name])
        for each in folders
        if each.name in classes
        for path in sorted(each.iterdir())
        if path.suffix.lower() in (".jpeg", ".jpg", ".png", ".webp")
    ]
    return found, _read_class


def _with_depth(root: Path, split: str, *, steps: int) -> Found:
    """images/NAME.png or .jpg with depth/NAME.png, where the split has a folder of its own in that."""
    folder = root / split if (root / split).is_dir() else root
    images = sorted(
        path for path in (folder / "images").glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg")
    )
    found = [(path.stem, path, folder / "depth" / f"{path.stem}.png") for path in images]
    return found, partial(_read_depth_map, steps=steps)


def _kitti(root: Path, split: str) -> Found:
    listed = root / KITTI_LIST
    if split != "val" or not listed.is_file():
        return _with_depth(root, split, steps=256)
    found = []
    for line in filter(None, map(str.split, listed.read_text().splitlines())):
        if len(line) < 2:
            raise ValueError(f"{listed} must hold an image and its depth map in each line, got {line}")
        image, depth = line[:2]
        if depth != "None":  # of 45 images there is none
            key = f"{Path(depth).parts[0]}/{Path(depth).stem}"
            folders = [root / each / depth for each in KITTI_DEPTH]
            image_path = root / "raw" / image if (root / "raw").is_dir() else root / image
            found.append((key, image_path, next(filter(Path.is_file, folders), folders[0])))
    return found, partial(_read_depth_map, steps=256)


def _panoptic(dataset: str, roots: Sequence[str], layout: str, find: Callable[[Path, str], Found]) -> Published:
    labels = segment_labels(dataset, None)
    metric = PanopticMetric(len(labels.names), tuple(sorted(labels.things)))
    return Published(metric, None, roots, layout, find, segments=dataset)


KITTI_LIST = "eigen_test_files_with_gt.txt"
KITTI_DEPTH = ("data_depth_annotated/val", "data_depth_annotated/train", "data_depth_annotated", "")

_PUBLISHED = {
    "ade20k": Published(
        SegmentationMetric(150),
        None,
        ("", "ADEChallengeData2016"),
        "[ADEChallengeData2016/]images/{validation,training}/*.jpg with annotations/{validation,training}/*.png",
        _ade20k,
        Built("scene_parse150", {"val": "test", "train": "train"}, "image", "annotation", _label_maps(ADE20K)),
    ),
    "cityscapes": Published(
        SegmentationMetric(19),
        1024,
        ("",),
        "leftImg8bit/{val,train}/*/*_leftImg8bit.png with gtFine/{val,train}/*/*_gtFine_labelIds.png",
        _cityscapes,
        Built(
            "cityscapes/semantic_segmentation",
            {"val": "validation", "train": "train"},
            "image_left",
            "segmentation_label",
            _label_maps(LABEL_IDS),
        ),
    ),
    "pascal_context": Published(
        SegmentationMetric(60),
        520,
        ("", "VOC2010", "VOCdevkit/VOC2010"),
        "[VOCdevkit/VOC2010/]ImageSets/SegmentationContext/{val,train}.txt "
        "with JPEGImages/*.jpg and SegmentationClassContext/*.png",
        _pascal_context,
    ),
    "imagenet2012": Published(
        ClassificationMetric(1000),
        None,
        ("",),
        "[{val,train}/]CLASS/*.JPEG (or .jpg, .png, .webp), CLASS being a WordNet id, a number or a name",
        _imagenet,
        Built("imagenet2012", {"val": "validation", "train": "train"}, "image", "label", _read_class),
    ),
    "coco_panoptic": _panoptic(
        "coco_panoptic",
        ("", "coco"),
        "[images/]{val,train}2017/*.jpg with annotations/panoptic_{val,train}2017.json and .../*.png",
        segments.coco_panoptic,
    ),
    "ade20k_panoptic": _panoptic(
        "ade20k",
        ("", "ADEChallengeData2016"),
        "images/{validation,training}/*.jpg with ade20k_panoptic_{val,train}.json and .../*.png",
        segments.ade20k_panoptic,
    ),
    "cityscapes_panoptic": _panoptic(
        "cityscapes",
        ("", "cityscapes"),
        "leftImg8bit/{val,train}/*/*.png with gtFine/cityscapes_panoptic_{val,train}.json and .../*.png",
        segments.cityscapes_panoptic,
    ),
    "coco_instance": Published(
        InstanceMetric(80),
        None,
        ("", "coco"),
        "[images/]{val,train}2017/*.jpg with annotations/instances_{val,train}2017.json",
        segments.coco_instances,
        segments="coco_instance",
    ),
    "kitti": Published(
        DepthMetric(80.0, GARG),
        None,
        ("",),
        f"{KITTI_LIST} with [raw/]2011_*/*/image_02/data/*.png and data_depth_annotated/{{val,train}}/*, or "
        "[{val,train}/]images/NAME.png with depth/NAME.png (256 steps to a metre)",
        _kitti,
        crop=(352, 1216),
    ),
    "nyu_depth_v2": Published(
        DepthMetric(10.0, EIGEN_NYU),
        None,
        ("",),
        "[{val,train}/]images/NAME.png or .jpg with depth/NAME.png (millimetres)",
        partial(_with_depth, steps=1000),
        Built(
            "nyu_depth_v2",
            {"val": "validation", "train": "train"},
            "image",
            "depth",
            partial(_read_depth_map, steps=1000),
        ),
    ),
}


def _in_folder(published: Published, data_dir: Path, split: str) -> Source | None:
    """The published folders, if they are there."""
    for root in published.roots:
        found, read = published.find(data_dir / root, split)
        found = [pair for pair in found if not any(map(is_hidden, pair[1].relative_to(data_dir).parts))]
        files = (getattr(each, "path", each) for _, *pair in found for each in pair)
        missing = [each for each in files if isinstance(each, Path) and not each.is_file()]
        if missing:
            raise ValueError(
                f"{len(found)} images with their {published.metric.task} maps are expected in {data_dir / root}, "
                f"but {len(missing)} files are missing, the first of them {missing[0]}"
            )
        if found:
            keys, images, truths = zip(*found, strict=True)
            return Source("folder", keys, lambda index: (images[index], truths[index]), read)  # noqa: B023
    return None


def _built(published: Published, data_dir: Path, split: str) -> Source | None:
    """What tensorflow-datasets built, if it is there; TensorFlow is not needed to read it.

    Images are decoded here, like those of folders, for tensorflow-datasets uses OpenCV where that is installed.
    """
    built = published.built
    versions = sorted((data_dir / built.name).glob("*/features.json")) if built else []
    if built is None or not versions:
        return None
    folder = versions[-1].parent
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            f'{folder} is read with tensorflow-datasets, which is not installed: pip install "hourglass-jax[eval]"'
        ) from None
    builder = tfds.builder_from_directory(folder)
    file_format = builder.info.file_format
    if file_format is None or file_format.value != "array_record":
        got = None if file_format is None else file_format.value
        raise ValueError(f"{folder} must be built with file_format='array_record', got {got}")
    name = built.splits[split]
    if name not in builder.info.splits:
        raise ValueError(f"{folder} must have a split {name}, got {', '.join(builder.info.splits) or 'none'}")
    undecoded = dict.fromkeys((built.image, built.truth), tfds.decode.SkipDecoding())
    records = builder.as_data_source(
        split=name,  # pyright: ignore[reportCallIssue]  its decorator hides its parameters
        decoders=undecoded,
    )

    def pair(index: int) -> Pair:
        record = records[index]
        image, truth = record[built.image], record[built.truth]
        return BytesIO(image), BytesIO(truth) if isinstance(truth, bytes) else truth

    keys = [f"{name}-{index:05d}" for index in range(len(records))]
    return Source("tfds", keys, pair, built.read)


def _opened(what: str, file: File) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"the {what} cannot be opened: {error}") from error
