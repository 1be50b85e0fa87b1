"""Rotary positions (DINOv3) of one image, in float64 and channel by channel."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class Rotary:
    """The positions of a transformer whose queries and keys are turned.

    Attributes:
        grid: (H, W) of the tokens.
        base: of the frequencies.
    """

    grid: tuple[int, int]
    base: float

    def places(self) -> Array:
        """Row and column of every token of the grid, [H*W, 2]."""
        return np.array([(y, x) for y in range(self.grid[0]) for x in range(self.grid[1])], np.float64)

    def turn(self, places: Array) -> Callable[[Array], Array]:
        """What turns queries or keys [heads, S + M, D] of which the last M are at these places [M, 2]."""

        def turned(vectors: Array) -> Array:
            result = np.array(vectors, np.float64)
            heads, count, width = vectors.shape
            for head in range(heads):
                for token, place in enumerate(places, start=count - len(places)):
                    for channel in range(width // 2):
                        angle = self.angle(place, channel, width)
                        a, b = vectors[head, token, channel], vectors[head, token, channel + width // 2]
                        result[head, token, channel] = a * np.cos(angle) - b * np.sin(angle)
                        result[head, token, channel + width // 2] = b * np.cos(angle) + a * np.sin(angle)
            return result

        return turned

    def angle(self, place: Array, channel: int, width: int) -> float:
        """By which a channel of the first half is turned: its first half by the row, the other by the column."""
        axis, number = divmod(channel, width // 4)
        period = self.base ** (2 * number / (width / 2))
        coordinate = 2 * (place[axis] + 0.5) / self.grid[axis] - 1
        return 2 * np.pi * coordinate / period
