"""Saliency: the visual salience of every pixel."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from hourglass_jax.imaging.pictures import spotlight
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.tasks.base import Rendering, only_view


@dataclass(frozen=True)
class Saliency:
    """Saliency maps, float32 [rows, columns] in 0..1."""

    name = "saliency"

    def postprocess(self, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; `outputs` are saliency [1, rows, columns]."""
        resized = Image.fromarray(only_view(outputs)).resize((size[1], size[0]), Image.Resampling.BILINEAR)
        return np.clip(np.asarray(resized), 0, 1)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The absolute difference."""
        return np.abs(a - b)

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """Share of the pixels that are salient (at least 0.5) in both results or in neither."""
        return float(np.mean((a >= 0.5) == (b >= 0.5)))

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        """The saliency in 0..255, and the photograph lit by it."""
        return Rendering({"saliency": np.round(result * 255).astype(np.uint8), "overlay": spotlight(photo, result)})

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`: no data set of saliency is known."""
        raise ValueError(f"{name} is no data set of saliency: none is known")

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`."""
        raise ValueError("no metric of saliency is known")
