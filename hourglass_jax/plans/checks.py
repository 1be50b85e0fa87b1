"""Checks of the fields of plans."""

from itertools import pairwise
from typing import Any

import jax
import numpy as np


def is_integer(value: Any, least: int = 0) -> bool:
    """Whether a value is an integer of at least `least`; True and False are not."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value >= least)


def check_integer(name: str, value: Any, least: int, most: int | None = None) -> None:
    """Raises ValueError unless `value` is an integer from `least` to `most` (None: without a maximum)."""
    if not is_integer(value, least) or (most is not None and value > most):
        limit = "" if most is None else f" and at most {most}"
        raise ValueError(f"{name} must be an integer of at least {least}{limit}, got {value!r}")


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
    if not places or not all(map(is_integer, places)) or any(a >= b for a, b in pairwise(places)):
        raise ValueError(f"{name} must be blocks, increasing integers of at least 0, got {blocks!r}")
    return places


def check_among_blocks(name: str, blocks: tuple[int, ...], depth: int) -> None:
    """Raises ValueError if an index is not below `depth`."""
    if any(block >= depth for block in blocks):
        raise ValueError(f"{name} must be among the backbone's blocks 0 to {depth - 1}, got {blocks}")


def check_reconstruction(neighbors: int, temperature: float | str | jax.Array) -> None:
    """Raises ValueError unless these are a k and a tau for eq. 4."""
    check_integer("neighbors", neighbors, 1)
    if isinstance(temperature, jax.Array) or temperature == "auto":
        return
    is_number = isinstance(temperature, (int, float, np.number)) and not isinstance(temperature, bool)
    if not is_number or not 0 < float(temperature) < np.inf:
        raise ValueError(f"temperature must be a positive number or 'auto', got {temperature!r}")
