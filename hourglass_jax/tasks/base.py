"""The protocol of tasks: postprocessing of outputs, and comparison and rendering of results."""

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
        pictures: name -> uint8 [rows, columns, 3] or [rows, columns], or uint16 [rows, columns]; the last one is
            the visualization.
        arrays: name, which includes the unit -> values.
        records: further values for JSON.
        documents: name -> function of a photograph's name that returns the content of a JSON file.
        text: lines to print.
        units: name of a picture -> the unit of its values.
    """

    pictures: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    documents: dict[str, Callable[[str], Any]] = field(default_factory=dict)
    text: tuple[str, ...] = ()
    units: dict[str, str] = field(default_factory=dict)

    @property
    def overview(self) -> np.ndarray:
        """The visualization, uint8 [rows, columns, 3]."""
        return [*self.pictures.values()][-1]


class Task(Protocol):
    """The meaning of a model's outputs. Tasks are frozen dataclasses without parameters, on the host.

    Attributes:
        name: "segmentation", "depth", ...
    """

    @property
    def name(self) -> str: ...

    def postprocess(self, outputs: Any, layout: Layout, size: tuple[int, int]) -> Any:
        """Computes the result of one photograph.

        Args:
            outputs: the model's outputs for its views, a pytree of arrays [views, ...].
            layout: layout of the views.
            size: (rows, columns) of the result in pixels.
        """
        ...

    def difference(self, a: Any, b: Any) -> np.ndarray:
        """Difference of two results in 0..1: [rows, columns], or a scalar array if they are not maps."""
        ...

    def agreement(self, a: Any, b: Any) -> float | None:
        """Share of an image with equal decisions in two results; None for a task without decisions."""
        ...

    def render(self, photo: np.ndarray, result: Any) -> Rendering:
        """Renders a result; the photograph, uint8 [rows, columns, 3], has the same size."""
        ...

    def check_dataset(self, name: str, classes: int) -> None:
        """Raises ValueError if results cannot be compared with a data set of this name and number of classes."""
        ...

    def metric(self, published: Metric) -> Metric:
        """The metric for comparing results with a ground truth: the data set's, adapted to the results."""
        ...


def check_classes(name: str, classes: int, own: int, dataset: str | None) -> None:
    """Raises ValueError unless a model's `own` classes (of `dataset`, if it is known) are those of a data set."""
    if own != classes or dataset not in (None, name):
        raise ValueError(
            f"the model must tell the {classes} classes of {name} apart, "
            f"got one for {own} classes" + (f" of {dataset}" if dataset else "")
        )


def only_view(outputs: np.ndarray) -> np.ndarray:
    """The output for a photograph with a single view, [1, ...] -> [...]."""
    [output] = outputs
    return np.asarray(output)


def image_id(name: str) -> int | str:
    """The id of an image in COCO's files: the file's name as a number if it is one, otherwise the name."""
    stem = name.rsplit("/", 1)[-1]
    return int(stem) if stem.isascii() and stem.isdigit() else stem
