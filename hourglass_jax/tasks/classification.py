"""Classification: the probability of every class for the whole image."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from hourglass_jax.imaging.class_pictures import class_overlay
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.tasks.base import Rendering, check_classes, only_view

SHOWN = 5
"""Number of classes that are printed and drawn."""


class Guess(NamedTuple):
    """A class: index, name and probability in 0..1."""

    label: int
    name: str
    probability: float


@dataclass(frozen=True)
class Classification:
    """Class logits to probabilities, float32 [classes].

    Attributes:
        labels: names of the classes.
        dataset: whose classes they are, or None.
    """

    labels: Labels
    dataset: str | None = None
    name = "classification"

    def postprocess(self, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; `outputs` are logits [1, classes]."""
        logits = only_view(outputs)
        weights = np.exp(logits - logits.max())
        return weights / weights.sum()

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The total variation distance of the probabilities, a scalar array."""
        return np.abs(a - b).sum(axis=-1) / 2

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """1 if the most probable classes are equal, otherwise 0."""
        return float(np.argmax(a) == np.argmax(b))

    def top(self, result: np.ndarray) -> list[Guess]:
        """The most probable classes, in descending order, of probabilities [classes]."""
        labels, names = np.argsort(-result, kind="stable")[:SHOWN].tolist(), self.labels.names
        return [Guess(label, names[label], float(result[label])) for label in labels]

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        """The photograph with its most probable classes as bars below."""
        top = self.top(result)
        return Rendering(
            {"overlay": class_overlay(photo, [(each.name, each.probability) for each in top])},
            records={"top": [each._asdict() for each in top]},
            text=tuple(f"{each.probability:6.1%}  {each.name}" for each in top),
        )

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`."""
        check_classes(name, classes, len(self.labels.names), self.dataset)

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: the data set's metric fits all classifiers."""
        return published
