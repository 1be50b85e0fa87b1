"""Masks of a photograph, of each the part around what it shows: a hundred whole ones may take a gigabyte."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np


class MaskCrop(NamedTuple):
    """A part of a mask, outside of which there is nothing.

    Attributes:
        inside: bool [rows, columns].
        top, left: where it lies in the whole mask.
    """

    inside: np.ndarray
    top: int
    left: int


class MaskCrops:
    """Masks of one size; `masks[place]` and iteration give whole ones, bool [rows, columns].

    Attributes:
        crops: of the masks.
        shape: (masks, rows, columns).
    """

    def __init__(self, size: tuple[int, int], crops: Sequence[MaskCrop]) -> None:
        self.crops = tuple(crops)
        self.shape = (len(self.crops), *size)

    def __len__(self) -> int:
        return len(self.crops)

    def __getitem__(self, place: int) -> np.ndarray:
        crop = self.crops[place]
        whole = np.zeros(self.shape[1:], bool)
        rows, columns = crop.inside.shape
        whole[crop.top : crop.top + rows, crop.left : crop.left + columns] = crop.inside
        return whole

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[place] for place in range(len(self)))

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return np.array([*self], dtype or bool).reshape(self.shape)


def crop_of(masks: "np.ndarray | MaskCrops", place: int) -> MaskCrop:
    """One of several masks; the whole of it where it is not kept as a part."""
    return masks.crops[place] if isinstance(masks, MaskCrops) else MaskCrop(masks[place], 0, 0)
