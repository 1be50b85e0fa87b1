"""Masks as run lengths, in the compressed form of COCO's files.

Source: cocodataset/cocoapi, common/maskApi.c (rleEncode, rleToString).
"""

import numpy as np

OFFSET = 48
"""Of the letters that stand for five bits and whether more follow."""


def encode_mask(mask: np.ndarray) -> dict[str, object]:
    """A mask, bool [rows, columns], as COCO's {"size": [rows, columns], "counts": text}."""
    return encode_runs(run_lengths(mask), mask.shape)


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """The lengths of the runs of a mask, bool [rows, columns], by columns; the first is outside."""
    flat = np.concatenate([[False], mask.ravel(order="F")])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return np.diff(changes, prepend=0, append=mask.size)


def decode_runs(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The mask, bool [rows, columns] = `size`, of these run lengths."""
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return flat.reshape(size, order="F")


def encode_runs(runs: np.ndarray, size: tuple[int, ...]) -> dict[str, object]:
    """Run lengths of a mask of `size` = (rows, columns) as COCO has them."""
    return {"size": list(size), "counts": _text(runs.tolist())}


def encode_crop(inside: np.ndarray, corner: tuple[int, int], size: tuple[int, int]) -> dict[str, object]:
    """What `encode_mask` says of a whole mask, from a part of it outside of which there is nothing.

    Args:
        inside: bool [rows, columns].
        corner: (row, column) of its first pixel in the whole mask.
        size: (rows, columns) of the whole mask.
    """
    padded = np.pad(inside, ((1, 1), (0, 0))).T
    begins, ends = padded[:, 1:] & ~padded[:, :-1], padded[:, :-1] & ~padded[:, 1:]
    places = [(column + corner[1]) * size[0] + row + corner[0] for column, row in map(np.nonzero, (begins, ends))]
    # Where a run ends at the bottom of a column and another begins at the top of the next one, nothing changes.
    changes, times = np.unique(np.concatenate(places), return_counts=True)
    total = size[0] * size[1]
    changes = changes[(times == 1) & (changes < total)]
    counts = np.diff(changes, prepend=0, append=total)
    return {"size": list(size), "counts": _text(counts.tolist())}


def _text(counts: list[int]) -> str:
    """Counts, from the fourth on as differences to the last but one, in five bits a letter."""
    differences = counts[:3] + [after - before for before, after in zip(counts[1:], counts[3:], strict=False)]
    return "".join(chr(letter + OFFSET) for value in differences for letter in _letters(value))


def _letters(value: int) -> list[int]:
    letters = []
    while True:
        bits, value = value & 0x1F, value >> 5
        is_last = value == (-1 if bits & 0x10 else 0)
        letters.append(bits if is_last else bits | 0x20)
        if is_last:
            return letters
