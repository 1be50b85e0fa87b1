"""The input size of detectors: the shorter side is scaled, with a limit for the longer side."""

from dataclasses import dataclass, replace

from hourglass_jax.imaging.images import Preprocessing


@dataclass(frozen=True)
class ShortestEdge(Preprocessing):
    """A preprocessing that scales the shorter side to `size`, and the longer one to at most `longest` pixels.

    Attributes:
        longest: pixels of the longer side that are not exceeded.

    Source: facebookresearch/detectron2, detectron2/data/transforms/augmentation_impl.py (ResizeShortestEdge).
    """

    size: int = 800
    multiple: int = 1
    resize: str = "shortest"
    longest: int = 1333

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.resize != "shortest" or not isinstance(self.size, int):
            raise ValueError(f"resize must be 'shortest' to one size, got {self.resize!r} to {self.size}")
        if self.longest < self.size:
            raise ValueError(f"longest must be at least size, {self.size}, got {self.longest}")

    def target_size(self, rows: int, columns: int) -> tuple[int, int]:
        """See `Preprocessing.target_size`."""
        scale = self.size / min(rows, columns)
        sides = [scale * rows, float(self.size)] if columns <= rows else [float(self.size), scale * columns]
        if max(sides) > self.longest:
            sides = [side * (self.longest / max(sides)) for side in sides]
        height, width = (max(1, int(side / self.multiple + 0.5)) * self.multiple for side in sides)
        return height, width

    def at(self, size: int) -> "ShortestEdge":
        """The same for another `size`; the longer side's limit keeps its ratio to it."""
        if not isinstance(size, int):
            raise ValueError(f"size must be that of the shorter side, in pixels, got {size}")
        return replace(self, size=size, longest=max(size, round(self.longest * size / self.size)))
