"""Depth: metres, or relative inverse depth, of every pixel."""

from dataclasses import dataclass, replace

import numpy as np

from hourglass_jax.imaging.depth_pictures import depth_in_16_bits, depth_picture, sixteen_bit_unit
from hourglass_jax.imaging.images import resampled
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.depth import DepthMetric
from hourglass_jax.ops.resize import ResizeMethod
from hourglass_jax.tasks.base import Rendering, only_view


@dataclass(frozen=True)
class Depth:
    """Depth maps, float32 [rows, columns].

    Attributes:
        farthest: largest depth in metres that the model can predict; None for relative inverse depth.
        resampling: how a map is resized to its photograph.
    """

    farthest: float | None = None
    resampling: ResizeMethod = "bicubic"
    name = "depth"

    def postprocess(self, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """See `Task.postprocess`; `outputs` are depth [1, rows, columns]."""
        return resampled(only_view(outputs), size, self.resampling)

    def difference(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The difference relative to the larger value of each pixel."""
        larger = np.maximum(np.abs(a), np.abs(b))
        return np.clip(np.abs(a - b) / np.maximum(larger, np.finfo(np.float32).tiny), 0, 1)

    def agreement(self, a: np.ndarray, b: np.ndarray) -> float | None:
        """None: depth makes no decisions."""
        return None

    def render(self, photo: np.ndarray, result: np.ndarray) -> Rendering:
        """The depth in 16 bits and as floats, and a colour-coded picture with a colour bar."""
        metric = self.farthest is not None
        return Rendering(
            {"depth": depth_in_16_bits(result, self.farthest), "colors": depth_picture(result, metric)},
            arrays={"depth_metres" if metric else "inverse_depth": result},
            units={"depth": sixteen_bit_unit(self.farthest)},
        )

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`: depth has no classes."""

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`: relative inverse depth is aligned to each image by scale and shift."""
        assert isinstance(published, DepthMetric)
        return replace(published, is_relative=self.farthest is None)
