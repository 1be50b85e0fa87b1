"""Images with the maps of their classes: published folders, or what tensorflow-datasets made of them.

Source: open-mmlab/mmsegmentation, mmseg/datasets (the folders, and which labels count); mcordts/cityscapesScripts,
cityscapesscripts/helpers/labels.py (the 19 classes); rstrudel/segmenter, segm/config.yml (the sizes).
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image

from hourglass_jax.evaluation.metrics import IGNORED
from hourglass_jax.inference.images import read_image
from hourglass_jax.inference.labels import DATASETS, Labels, labels_of

Split = Literal["val", "train"]
File = Path | BytesIO
Files = tuple[File, File]
"""An image and its label map."""


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
        files: the pair at a place in `keys`.
        encoding: what the values of the label maps mean (see `_encoding`).
    """

    kind: str
    keys: Sequence[str]
    files: Callable[[int], Files]
    encoding: np.ndarray


@dataclass(frozen=True, eq=False)
class Dataset:
    """Pairs of an image and the map of its classes; `dataset[i]` reads one.

    Attributes:
        name: one of `labels.DATASETS`.
        split: "val" or "train".
        labels: names and colours of the classes.
        size: what the shorter side of the images is scaled to in published figures; None for the model's own.
        source: where the pairs lie.
    """

    name: str
    split: str
    labels: Labels
    size: int | None
    source: Source

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

    def __getitem__(self, index: int) -> tuple[str, np.ndarray, np.ndarray]:
        """Reads a pair.

        Returns:
            Its key, the image (uint8 [H, W, 3]) and its classes (int16 [H, W], 255 for pixels that do not count).

        Raises:
            ValueError: a file cannot be read, the two differ in size, or a label is out of range.
        """
        key = self.keys[index]
        image_file, label_file = self.source.files(index)
        try:
            image, label = read_image(_opened("image", image_file)), self._label(_opened("label map", label_file))
            if label.shape != image.shape[:2]:
                raise ValueError(
                    f"the label map must have the image's size {list(image.shape[:2])}, got {list(label.shape)}"
                )
        except ValueError as problem:
            raise ValueError(f"{key} of {self.name}: {problem}") from problem
        return key, image, label

    def _label(self, image: Image.Image) -> np.ndarray:
        if image.mode not in ("L", "P", "I", "I;16"):
            raise ValueError(
                f"a label map must have one channel of classes, got {image.mode}: colours are none, nor are masks "
                "of instances such as those of scene_parse150 in tensorflow-datasets"
            )
        try:
            values = np.asarray(image)
        except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ...
            raise ValueError(f"the label map cannot be decoded: {error}") from error
        encoding = self.source.encoding
        classes = encoding[np.minimum(values, IGNORED)]
        wrong = (classes < 0) | (values > IGNORED)
        if wrong.any():
            highest = np.flatnonzero(encoding[:IGNORED] >= 0).max()
            known = f"0..{highest}" + (f" or {IGNORED}" if encoding[IGNORED] >= 0 else "")
            raise ValueError(f"values of a label map must be {known}, got {values[wrong][0]}")
        return classes


def open_dataset(name: str, data_dir: str | os.PathLike[str], split: Split = "val") -> Dataset:
    """Finds a data set in a folder; nothing is downloaded, and only file names are read.

    Args:
        name: "ade20k" (150 classes), "cityscapes" (19) or "pascal_context" (60).
        data_dir: the folder the published archives were unpacked in, or the data_dir of tensorflow-datasets, built
            as array_record.
        split: "val" or "train".

    Returns:
        The data set.

    Raises:
        ValueError: an unknown name or split, a folder without the data set, or images without label maps.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)}, got {name!r}")
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
    return Dataset(name, split, labels_of(name, published.classes), published.size, source)


Pair = tuple[str, Path, Path]
"""Key, image and label map."""


class Built(NamedTuple):
    """What tensorflow-datasets calls a data set, its splits and its features."""

    name: str
    splits: Mapping[str, str]
    image: str
    label: str
    encoding: np.ndarray


class Published(NamedTuple):
    """A data set as it is published.

    Attributes:
        classes: number of them.
        size: see `Dataset`.
        roots: where below a user's folder it may lie.
        layout: of its files, in words.
        pairs: finds the pairs of a split below a root, and what their label maps mean.
        built: in tensorflow-datasets.
    """

    classes: int
    size: int | None
    roots: Sequence[str]
    layout: str
    pairs: Callable[[Path, str], tuple[list[Pair], np.ndarray]]
    built: Built | None = None


def _ade20k(root: Path, split: str) -> tuple[list[Pair], np.ndarray]:
    folder = {"val": "validation", "train": "training"}[split]
    images = sorted((root / "images" / folder).glob("*.jpg"))
    return [(path.stem, path, root / "annotations" / folder / f"{path.stem}.png") for path in images], ADE20K


def _cityscapes(root: Path, split: str) -> tuple[list[Pair], np.ndarray]:
    labels = root / "gtFine" / split
    kind, encoding = "labelIds", LABEL_IDS
    if not any(labels.glob(f"*/*_gtFine_{kind}.png")) and any(labels.glob("*/*_gtFine_labelTrainIds.png")):
        kind, encoding = "labelTrainIds", TRAIN_IDS
    pairs = []
    for path in sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png")):
        key = path.stem.removesuffix("_leftImg8bit")
        pairs.append((key, path, labels / path.parent.name / f"{key}_gtFine_{kind}.png"))
    return pairs, encoding


def _pascal_context(root: Path, split: str) -> tuple[list[Pair], np.ndarray]:
    listed = root / "ImageSets" / "SegmentationContext" / f"{split}.txt"
    keys = listed.read_text().split() if listed.is_file() else []
    pairs = [
        (key, root / "JPEGImages" / f"{key}.jpg", root / "SegmentationClassContext" / f"{key}.png") for key in keys
    ]
    return pairs, PASCAL_CONTEXT


_PUBLISHED = {
    "ade20k": Published(
        150,
        None,
        ("", "ADEChallengeData2016"),
        "[ADEChallengeData2016/]images/{validation,training}/*.jpg with annotations/{validation,training}/*.png",
        _ade20k,
        Built("scene_parse150", {"val": "test", "train": "train"}, "image", "annotation", ADE20K),
    ),
    "cityscapes": Published(
        19,
        1024,
        ("",),
        "leftImg8bit/{val,train}/*/*_leftImg8bit.png with gtFine/{val,train}/*/*_gtFine_labelIds.png",
        _cityscapes,
        Built(
            "cityscapes/semantic_segmentation",
            {"val": "validation", "train": "train"},
            "image_left",
            "segmentation_label",
            LABEL_IDS,
        ),
    ),
    "pascal_context": Published(
        60,
        520,
        ("", "VOC2010", "VOCdevkit/VOC2010"),
        "[VOCdevkit/VOC2010/]ImageSets/SegmentationContext/{val,train}.txt "
        "with JPEGImages/*.jpg and SegmentationClassContext/*.png",
        _pascal_context,
    ),
}


def _in_folder(published: Published, data_dir: Path, split: str) -> Source | None:
    """The published folders, if they are there."""
    for root in published.roots:
        pairs, encoding = published.pairs(data_dir / root, split)
        missing = [path for _, *files in pairs for path in files if not path.is_file()]
        if missing:
            raise ValueError(
                f"{len(pairs)} images with their label maps are expected in {data_dir / root}, "
                f"but {len(missing)} files are missing, the first of them {missing[0]}"
            )
        if pairs:
            keys, images, labels = zip(*pairs, strict=True)
            return Source("folder", keys, lambda index: (images[index], labels[index]), encoding)  # noqa: B023
    return None


def _built(published: Published, data_dir: Path, split: str) -> Source | None:
    """What tensorflow-datasets built, if it is there; TensorFlow is not needed to read it.

    Images are decoded here, like those of folders, for tensorflow-datasets uses OpenCV where that is installed.
    """
    built = published.built
    versions = sorted((data_dir / built.name).glob("*/features.json")) if built else []
    if not versions:
        return None
    folder = versions[-1].parent
    try:
        import tensorflow_datasets as tfds
    except ImportError:
        raise ValueError(
            f'{folder} is read with tensorflow-datasets, which is not installed: pip install "hourglass-jax[eval]"'
        ) from None
    builder = tfds.builder_from_directory(folder)
    if builder.info.file_format.value != "array_record":
        raise ValueError(
            f"{folder} must be built with file_format='array_record', got {builder.info.file_format.value}"
        )
    name = built.splits[split]
    if name not in builder.info.splits:
        raise ValueError(f"{folder} must have a split {name}, got {', '.join(builder.info.splits) or 'none'}")
    undecoded = dict.fromkeys((built.image, built.label), tfds.decode.SkipDecoding())
    records = builder.as_data_source(split=name, decoders=undecoded)

    def files(index: int) -> Files:
        record = records[index]
        return BytesIO(record[built.image]), BytesIO(record[built.label])

    keys = [f"{name}-{index:05d}" for index in range(len(records))]
    return Source("tfds", keys, files, built.encoding)


def _opened(what: str, file: File) -> Image.Image:
    try:
        return Image.open(file)
    except (OSError, Image.DecompressionBombError) as error:
        raise ValueError(f"the {what} cannot be opened: {error}") from error
