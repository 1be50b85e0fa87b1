"""Names and colours of the classes of data sets.

They are facts of four data sets: ADE20K (https://ade20k.csail.mit.edu, the 150 classes of its scene parsing
benchmark), Cityscapes (https://www.cityscapes-dataset.com, the 19 classes that are evaluated), PASCAL-Context
(https://cs.stanford.edu/~roozbeh/pascal-context, the background and the 59 most frequent classes) and ImageNet
(https://image-net.org/challenges/LSVRC/2012, the 1000 classes of 2012). Names (of synonyms the first), colours and
order of the first three are those of segm/data/config in https://github.com/rstrudel/segmenter; only the names of
PASCAL-Context are in the order of the labels that models are trained on, mmsegmentation's (upstream's list has
another). ImageNet's classes are in the order of their WordNet ids; their names are those of
torchvision/models/_meta.py in https://github.com/pytorch/vision.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from reprlib import repr as short

DATASETS = ("ade20k", "cityscapes", "pascal_context", "imagenet2012")

Color = tuple[int, int, int]


@dataclass(frozen=True)
class Labels:
    """Names and colours of the classes of a model, in the order of its outputs.

    Attributes:
        names: names of the classes.
        colors: colours of the classes: red, green and blue in 0..255; several classes may share one.

    Raises:
        ValueError: the names are no texts, the colours no colours, or there are not as many of both.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]

    def __post_init__(self) -> None:
        for field in ("names", "colors"):
            if not isinstance(getattr(self, field), list | tuple):
                raise ValueError(f"{field} of classes must be a list, got {short(getattr(self, field))}")
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "colors", tuple(map(_color, self.colors)))
        if not all(isinstance(name, str) for name in self.names):
            raise ValueError(f"names of classes must be texts, got {short(self.names)}")
        if len(self.names) != len(self.colors):
            raise ValueError(f"classes must have a colour each, got {len(self.colors)} for {len(self.names)}")

    @property
    def titles(self) -> tuple[str, ...]:
        """The names as pictures have them."""
        return self.names


def labels_of(dataset: str | None, classes: int | None) -> Labels:
    """Finds the names and colours of a data set's classes.

    Args:
        dataset: one of `DATASETS`, or None for "class 0", "class 1", ...; the colours of these and of ImageNet's
            classes are PASCAL VOC's palette.
        classes: number of the model's classes; None for that of the data set.

    Returns:
        The names and colours in the order of the model's outputs.

    Raises:
        ValueError: an unknown data set, or one with another number of classes; no classes.
    """
    if dataset is None:
        if classes is None or classes < 1:
            raise ValueError(f"classes must be positive, got {classes}")
        return _in_palette(f"class {label}" for label in range(classes))
    if dataset not in DATASETS:
        raise ValueError(f"dataset must be one of {', '.join(DATASETS)} or None, got {dataset!r}")
    labels = _read_labels()[dataset]
    if classes not in (None, len(labels.names)):
        raise ValueError(f"classes must be {len(labels.names)} for the data set {dataset}, got {classes}")
    return labels


@cache
def _read_labels() -> dict[str, Labels]:
    table = json.loads(resources.files("hourglass_jax.imaging").joinpath("labels.json").read_text("utf-8"))
    labels = {
        dataset: Labels(tuple(name for name, _ in rows), tuple(tuple(color) for _, color in rows))
        for dataset, rows in table.items()
    }
    return labels | {"imagenet2012": _in_palette(name for _, name in _read_imagenet())}


def wordnet_ids() -> tuple[str, ...]:
    """The WordNet ids of ImageNet's classes ("n01440764"), in their order."""
    return tuple(identifier for identifier, _ in _read_imagenet())


@cache
def _read_imagenet() -> list[tuple[str, str]]:
    """WordNet id and name of every class."""
    return json.loads(resources.files("hourglass_jax.imaging").joinpath("imagenet.json").read_text("utf-8"))


def _in_palette(names: Iterable[str]) -> Labels:
    names = tuple(names)
    return Labels(names, palette(len(names)))


def palette(classes: int) -> tuple[Color, ...]:
    """The first colours of PASCAL VOC's palette."""
    return tuple(map(_voc_color, range(classes)))


def _color(value: object) -> Color:
    if (
        not isinstance(value, list | tuple)
        or len(value) != 3
        or not all(type(channel) is int and 0 <= channel <= 255 for channel in value)
    ):
        raise ValueError(f"the colour of a class must be red, green and blue in 0..255, got {short(value)}")
    red, green, blue = value
    return red, green, blue


def _voc_color(label: int) -> Color:
    """PASCAL VOC's palette: the label's lowest bits are the highest of red, green and blue, in turns."""
    red, green, blue = (
        sum((label >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )
    return red, green, blue
