"""Semantic segmentation: a class for every pixel."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.imaging.label_pictures import colorize_labels, label_overlay
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.windows import Layout, merge
from hourglass_jax.metrics.base import Metric
from hourglass_jax.tasks.base import Rendering, check_classes


@dataclass(frozen=True)
class Segmentation:
    """Class logits to a label map, uint8 [rows, columns] (uint16 for more than 256 classes).

    Attributes:
        labels: names and colours of the classes.
        dataset: the data set of the classes, or None.
        cell: stride of the logits in pixels of a view.
        resampling: how a merged map is resized to its photograph.
        average: the values that are averaged where views overlap and resized: "logits" or "probabilities".
    """

    labels: Labels
    dataset: str | None = None
    cell: int = 1
    resampling: Literal["bilinear", "bicubic"] = "bilinear"
    average: Literal["logits", "probabilities"] = "logits"
    name = "segmentation"

    def postprocess(self, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; `outputs` are logits [views, h, w, classes]."""
        maps = jnp.asarray(outputs)
        if self.average == "probabilities":
            maps = jax.nn.softmax(maps)
        return merge(maps, layout, size, cell=self.cell, resampling=self.resampling, decide=most_likely)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """1 where two label maps differ, 0 elsewhere."""
        return (a != b).astype(np.float32)

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """Share of the pixels with equal classes."""
        return float(np.mean(a == b))

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        """The raw labels, their colours, and an overlay with a legend."""
        names, colors = self.labels.titles, self.labels.colors
        return Rendering(
            {
                "labels": result,
                "colors": colorize_labels(result, colors),
                "overlay": label_overlay(photo, result, names, colors),
            }
        )

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`."""
        check_classes(name, classes, len(self.labels.names), self.dataset)

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: the data set's metric fits all label maps."""
        return published


def most_likely(logits: jax.Array) -> jax.Array:
    """[..., classes] -> the labels [...], uint8, or uint16 for more than 256 classes."""
    return jnp.argmax(logits, axis=-1).astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.uint16)
