"""Conversion as data: a family of checkpoints is a table that says what every parameter is made of."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import isqrt
from typing import NamedTuple

import jax
import numpy as np

Tensors = Mapping[str, np.ndarray]
Settings = Mapping[str, object]
Build = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        target: our dotted name; a "*" stands for a number, such as a block's.
        sources: the checkpoint's names that it is made of. Each "*" is the number of the target's, in their order;
            "a|b" is whichever of the two the checkpoint has, and what ends in "?" is left out where it has none.
        build: makes the target from the arrays of `sources`, in this order.
    """

    target: str
    sources: tuple[str, ...]
    build: Build


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        name: of the family: the system, and whose names its tensors have.
        model: the name in `hourglass_jax.models.registry.MODELS`.
        fits: whether a checkpoint with these tensors and settings is of this family; settings only rule it out.
        configure: the model's config, read off the tensors' shapes and the settings, as plain values.
        table: rows for all parameters of the model.
        ignored: patterns of tensors that are dropped on purpose, and why.
        settings_file: the name of a file with settings, YAML or JSON, that lies beside such a checkpoint.
    """

    name: str
    model: str
    fits: Callable[[Tensors, Settings], bool]
    configure: Callable[[Tensors, Settings], dict[str, object]]
    table: tuple[Row, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    settings_file: str | None = None


class Recipe(NamedTuple):
    """What one parameter is made of."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    build: Build


def row(target: str, sources: str | tuple[str, ...], build: Build) -> Row:
    """A `Row`; a single source may stand alone."""
    return Row(target, (sources,) if isinstance(sources, str) else sources, build)


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def linear(*weights: np.ndarray) -> np.ndarray:
    """PyTorch's linear weights [out, in], one below the other, as one kernel [in, out]."""
    return concatenated(*weights).T


def concatenated(*tensors: np.ndarray) -> np.ndarray:
    """Tensors one after the other, along the first axis."""
    return tensors[0] if len(tensors) == 1 else np.concatenate(tensors, axis=0)


def without_batch(tensor: np.ndarray) -> np.ndarray:
    """A tensor without its first axis, which must be of length one."""
    [only] = tensor
    return only


def patch_kernel(weight: np.ndarray) -> np.ndarray:
    """The patch embedding's convolution [C, 3, p, p] as the kernel [p * p * 3, C] of flattened patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def pointwise(weight: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution [out, in, 1, 1] as a linear kernel [in, out]."""
    return weight[:, :, 0, 0].T


def convolution(weight: np.ndarray) -> np.ndarray:
    """PyTorch's convolution [out, in, rows, columns] as [rows, columns, in, out]."""
    return weight.transpose(2, 3, 1, 0)


def transposed_convolution(weight: np.ndarray) -> np.ndarray:
    """PyTorch's transposed convolution [in, out, rows, columns] as [rows, columns, in, out]."""
    return weight.transpose(2, 3, 0, 1)


def special_tokens(positions: np.ndarray, *tokens: np.ndarray) -> np.ndarray:
    """Class, distillation and register tokens [1, n, C], with the position embeddings that they have, as [S, C].

    Positions [1, P, C] are those of special tokens, in the tokens' order, then those of a square grid. Tokens
    beyond them have none.
    """
    special = np.concatenate(tokens, axis=1)[0].astype(np.float32)
    own = positions[0, : positions.shape[1] - square_side(positions.shape[1]) ** 2]
    special[: len(own)] += own
    return special


def square_grid(positions: np.ndarray) -> np.ndarray:
    """Position embeddings [1, P, C] as [side, side, C], without those of special tokens, which come first."""
    side = square_side(positions.shape[1])
    return positions[0, -side * side :].reshape(side, side, -1)


def square_side(positions: int) -> int:
    """The side of the square grid among this many positions, of which up to two are special tokens'.

    Raises:
        ValueError: there are more others.
    """
    side = isqrt(positions)
    if side < 1 or positions - side * side > 2:
        raise ValueError(
            f"expected position embeddings of a square grid and up to two special tokens, got {positions} positions"
        )
    return side


def shape_of(tensors: Tensors, name: str, *, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the config is read off.

    Raises:
        ValueError: there is no such tensor, or it has another number of axes.
    """
    if name not in tensors:
        raise ValueError(f"the checkpoint has no tensor {name!r}, which the config is read off")
    shape = tensors[name].shape
    if len(shape) != axes:
        raise ValueError(f"{name} must have {axes} axes, got shape {shape}")
    return shape


def recipes(family: Family, tensors: Tensors, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, Recipe]:
    """What every parameter is made of, by name.

    Args:
        family: whose table to use.
        tensors: the checkpoint.
        wanted: the model's parameters by name; only their shapes are used.

    Raises:
        ValueError: a parameter has no row or no source.
    """
    found = {}
    for name, expected in wanted.items():
        sources, build = _sources(family, name)
        present = []
        for source in sources:
            alternatives = source.removesuffix("?").split("|")
            there = [each for each in alternatives if each in tensors]
            if not there and not source.endswith("?"):
                absent = " or ".join(map(repr, alternatives))
                raise ValueError(f"the checkpoint has no tensor {absent}, which {name!r} is made of")
            present += there[:1]
        found[name] = Recipe(expected.shape, tuple(present), build)
    return found


def dropped(family: Family, tensors: Tensors, found: Mapping[str, Recipe]) -> dict[str, str]:
    """The tensors that no recipe uses, each with the reason why it is dropped.

    Raises:
        ValueError: one of them is not known to be superfluous.
    """
    used = {source for recipe in found.values() for source in recipe.sources}
    reasons = {
        name: next((why for pattern, why in family.ignored.items() if re.fullmatch(pattern, name)), None)
        for name in tensors
        if name not in used
    }
    left_over = sorted(name for name, why in reasons.items() if why is None)
    if left_over:
        raise ValueError(
            f"the checkpoint holds {len(left_over)} tensors that the {family.model} model has no place for: "
            + ", ".join(left_over[:3])
        )
    return reasons


def made(name: str, recipe: Recipe, tensors: Tensors) -> np.ndarray:
    """Makes the parameter `name`.

    Raises:
        ValueError: its shape does not fit; the message names both sides.
    """
    shape, sources, build = recipe
    shapes = ", ".join(f"{source} {tensors[source].shape}" for source in sources)
    if any(np.iscomplexobj(tensors[source]) for source in sources):
        raise ValueError(f"{name} must be made from real numbers, got complex ones in {shapes}")
    try:
        array = build(*(tensors[source] for source in sources))
    except (ValueError, IndexError) as error:
        raise ValueError(f"{name} of shape {shape} cannot be made from {shapes}: {error}") from None
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape} from {shapes}")
    return array


def _sources(family: Family, name: str) -> tuple[tuple[str, ...], Build]:
    for candidate in family.table:
        match = re.fullmatch(re.escape(candidate.target).replace(r"\*", r"(\d+)"), name)
        if match:
            return tuple(_numbered(source, match.groups()) for source in candidate.sources), candidate.build
    raise ValueError(f"no rule says what {name!r} is made of in a checkpoint of the {family.name} family")


def _numbered(source: str, numbers: tuple[str, ...]) -> str:
    """Every alternative of a source with numbers for its "*"."""
    alternatives = source.split("|")
    for number in numbers:
        alternatives = [each.replace("*", number, 1) for each in alternatives]
    return "|".join(alternatives)
