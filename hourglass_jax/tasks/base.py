"""What a task is: how a model's outputs become a photograph's result, and what can be done with results."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric


@dataclass(frozen=True)
class Rendering:
    """A result in forms that can be written and shown.

    Attributes:
        pictures: uint8 [rows, columns, 3] or [rows, columns], or uint16 [rows, columns], by what they show; the
            last one is made to be looked at.
        arrays: values as they are, by a name that tells their unit.
        records: further values for machines, as JSON.
        documents: further files for machines: what their JSON is for a photograph of a name, by what they hold.
        text: lines for people.
        units: what the numbers in a picture are, by the picture's name.
    """

    pictures: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, Callable[[str], Any]] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)

    @property
    def overview(self) -> np.ndarray:
        """The picture that is made to be looked at, uint8 [rows, columns, 3]."""
        return [*self.pictures.values()][-1]


class Task(Protocol):
    """What a model's outputs mean. Tasks are frozen dataclasses without parameters, on the host.

    Attributes:
        name: "segmentation", "depth", ...
    """

    @property
    def name(self) -> str: ...

    def postprocess(self, outputs: Any, layout: Layout, size: tuple[int, int]) -> Any:
        """The result of one photograph.

        Args:
            outputs: the model's outputs of its views, a pytree of arrays [views, ...].
            layout: of the views.
            size: (rows, columns) of the result in pixels.
        """
        ...

    def difference(self, a: Any, b: Any) -> np.ndarray:
        """How far two results of one size are apart, in 0..1: [rows, columns], or a number if they are no maps."""
        ...

    def agreement(self, a: Any, b: Any) -> float | None:
        """The share of an image for which two results decide the same; None for a task that decides nothing."""
        ...

    def render(self, photo: np.ndarray, result: Any) -> Rendering:
        """What is written and shown of a result of the size of its photograph, uint8 [rows, columns, 3]."""
        ...

    def check_dataset(self, name: str, classes: int) -> None:
        """Raises ValueError if results cannot be compared with a data set of this name and number of classes."""
        ...

    def metric(self, published: Metric) -> Metric:
        """How results are compared with a ground truth: the data set's own metric, adapted to what results are."""
        ...


def check_classes(name: str, classes: int, own: int, dataset: str | None) -> None:
    """Raises ValueError unless a model's `own` classes (of `dataset`, if that is known) are those of a data set."""
    if own != classes or dataset not in (None, name):
        raise ValueError(
            f"the model must tell the {classes} classes of {name} apart, "
            f"got one for {own} classes" + (f" of {dataset}" if dataset else "")
        )


def only_view(outputs: np.ndarray) -> np.ndarray:
    """The output of a photograph's only view, [1, ...] -> [...]."""
    [output] = outputs
    return np.asarray(output)


def image_id(name: str) -> int | str:
    """What COCO's files call an image: the number that its file's name is, or the name."""
    stem = name.rsplit("/", 1)[-1]
    return int(stem) if stem.isascii() and stem.isdigit() else stem
