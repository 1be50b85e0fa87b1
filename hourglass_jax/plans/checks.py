"""Checks of the fields of plans."""

from itertools import pairwise

import jax
import numpy as np


def check_share(name: str, share: float) -> None:
    """Raises ValueError unless `share` is a number above 0 and up to 1."""
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 < share <= 1:
        raise ValueError(f"{name} must be a number above 0 and up to 1, got {share!r}")


def scaled_blocks(blocks: tuple[int, ...], of: int, depth: int) -> tuple[int, ...]:
    """Scales block indices from a backbone of `of` blocks to one of `depth` blocks, without repetition."""
    return tuple(sorted({block * depth // of for block in blocks}))


def check_blocks(name: str, blocks: tuple[int, ...]) -> tuple[int, ...]:
    """Returns block indices as a tuple; raises ValueError unless they are increasing integers of at least 0."""
    places = tuple(blocks)
    whole = all(
        isinstance(place, (int, np.integer)) and not isinstance(place, bool) and place >= 0 for place in places
    )
    if not places or not whole or any(a >= b for a, b in pairwise(places)):
        raise ValueError(f"{name} must be blocks, increasing integers of at least 0, got {blocks!r}")
    return places


def check_among_blocks(name: str, blocks: tuple[int, ...], depth: int) -> None:
    """Raises ValueError if an index is not below `depth`."""
    if any(block >= depth for block in blocks):
        raise ValueError(f"{name} must be among the backbone's blocks 0 to {depth - 1}, got {blocks}")


def check_reconstruction(neighbors: int, temperature: float | str | jax.Array) -> None:
    """Raises ValueError unless these are a k and a tau for eq. 4."""
    if isinstance(neighbors, bool) or not isinstance(neighbors, (int, np.integer)) or neighbors < 1:
        raise ValueError(f"neighbors must be an integer of at least 1, got {neighbors!r}")
    if isinstance(temperature, jax.Array) or temperature == "auto":
        return
    is_number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not is_number or not 0 < float(temperature) < np.inf:
        raise ValueError(f"temperature must be a positive number or 'auto', got {temperature!r}")
