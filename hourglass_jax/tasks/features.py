"""Features: a backbone's last feature map, for downstream use."""

from dataclasses import dataclass

import numpy as np

from hourglass_jax.imaging.pictures import principal_components, stretch
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.tasks.base import Rendering, only_view


@dataclass(frozen=True)
class Features:
    """Feature maps, float32 [H, W, C], of the backbone's own resolution."""

    name = "features"

    def postprocess(self, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; `outputs` are features [1, H, W, C], and `size` plays no part."""
        return only_view(outputs)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """1 - cosine similarity of two feature maps, [H, W]."""
        return 1 - (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """None: features make no decisions."""
        return None

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        """The first three principal components of the features as red, green and blue, and their overlay."""
        features = stretch(principal_components(result), photo.shape[:2])
        return Rendering({"features": features, "overlay": photo // 2 + features // 2})

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`: features have no ground truth."""
        raise ValueError(f"{name} has no ground truth for features")

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`."""
        raise ValueError("features have no ground truth")
