"""The size at which SAM sees images: the longer side is scaled, and zeros fill the square."""

import math
from dataclasses import dataclass, replace

import numpy as np

from hourglass_jax.imaging.images import Preprocessing


@dataclass(frozen=True)
class PaddedSquare(Preprocessing):
    """A preprocessing that scales the longer side to `size`, and fills up below and on the right to a square.

    The padding comes after the normalisation: it is of the mean colour.

    Source: facebookresearch/segment-anything, segment_anything/utils/transforms.py (ResizeLongestSide) and
        modeling/sam.py (preprocess).
    """

    size: int = 1024
    multiple: int = 1
    resize: str = "longest"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize != "longest" or not isinstance(self.size, int):
            raise ValueError(f"resize must be 'longest' to one size, got {self.resize!r} to {self.size}")

    def target_size(self, rows: int, columns: int) -> tuple[int, int]:
        """The size of the scaled image inside the square; see `Preprocessing.target_size`."""
        scale = self.size / max(rows, columns)
        height, width = (max(1, int(side * scale + 0.5)) for side in (rows, columns))
        return height, width

    def at(self, size: int | tuple[int, int]) -> "PaddedSquare":
        """The same for another side of the square."""
        if not isinstance(size, int):
            raise ValueError(f"size must be the side of a square, in pixels, got {size[0]} x {size[1]}")
        return replace(self, size=size)

    def whole_patches(self, *units: int) -> "PaddedSquare":
        """The same, whose square must be of whole units already; see `Preprocessing.whole_patches`."""
        unit = math.lcm(*units)
        if self.size % unit:
            raise ValueError(f"size must be a multiple of the patch size, {unit}, got {self.size}")
        return self

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """The model's input, float32 [size, size, 3]; see `Preprocessing.__call__`."""
        scaled = super().__call__(image)
        return np.pad(scaled, [(0, self.size - side) for side in scaled.shape[:2]] + [(0, 0)])
