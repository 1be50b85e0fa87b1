"""The size at which mmdetection's models see images: as large as fits into a box of either orientation."""

from dataclasses import dataclass
from typing import Literal

from hourglass_jax.imaging.shortest_edge import ShortestEdge


@dataclass(frozen=True)
class KeepRatio(ShortestEdge):
    """A preprocessing that scales an image until one side is `size` (the shorter) or `longest` pixels (the longer).

    Source: open-mmlab/mmcv 1.7, mmcv/image/geometric.py (`rescale_size`, `imrescale`).
    """

    interpolation: Literal["bilinear", "bicubic", "cubic", "linear"] = "linear"

    def target_size(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Preprocessing.target_size`."""
        scale = min(self.longest / max(rows, columns), self.size / min(rows, columns))
        multiples = (max(1, int(side * scale / self.multiple + 0.5)) for side in (rows, columns))
        height, width = (count * self.multiple for count in multiples)
        return height, width
