"""Conversion rules as data: a family of checkpoints is a table with the sources of every parameter."""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import ml_dtypes
import numpy as np

from hourglass_jax.io.safetensors import Shaped
from hourglass_jax.models.base import Config
from hourglass_jax.ops.grids import Grid

Tensors = Mapping[str, np.ndarray]
Settings = Mapping[str, object]
Fields = dict[str, Any]
"""Fields of a config as plain values; the config checks them when it is built."""
Build = Callable[..., np.ndarray]


class HasGrid(Protocol):
    """The config of a backbone with a position embedding."""

    @property
    def position_grid(self) -> Grid: ...


class HasBackbone(Protocol):
    """The config of a model with such a backbone."""

    @property
    def backbone(self) -> HasGrid: ...


@dataclass(frozen=True)
class OfModel:
    """A build function that receives the model's config before the arrays."""

    build: Callable[..., np.ndarray]


@dataclass(frozen=True)
class Given:
    """Information about a checkpoint besides its tensors.

    Attributes:
        settings: the settings of the checkpoint.
        heads: number of heads of its ViT, from the user.
        grid: (rows, columns) of its position embedding, from the user.
        dataset: data set of its classes, from the user.
        saved: the whole content of the checkpoint, in mappings.
        notes: notes for the user about the conversion; `say` adds one.
    """

    settings: Settings = field(default_factory=dict)
    heads: int | None = None
    grid: Grid | None = None
    dataset: str | None = None
    saved: Mapping[object, object] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def say(self, note: str) -> None:
        """Adds a note, once."""
        if note not in self.notes:
            self.notes.append(note)


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        target: our dotted name; "*" stands for a number, such as that of a block.
        sources: the checkpoint's names of the source tensors. Each "*" is the number in the target, in order;
            "a|b" is the one of the two that the checkpoint has, and a source that ends in "?" is optional.
        build: computes the target from the arrays of `sources`, in this order.
    """

    target: str
    sources: tuple[str, ...]
    build: Build | OfModel


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        name: name of the family: the system, and the code base that its tensor names are from.
        model: name of the model in `hourglass_jax.models.registry.MODELS`.
        fits: whether tensors and settings are of this family; settings can only exclude it.
        configure: the model's config as plain values, from the shapes of the tensors and further information.
        table: rows for all parameters of the model.
        ignored: patterns of tensors that are dropped on purpose, and why.
        settings_files: names of files with settings that lie beside such a checkpoint, the first one that is there
            counting. "*.py" is one with whose name the checkpoint's begins, or that is called like their folder.
        further_settings: the name of one file more, for what that one does not say.
        rest: a pattern of the tensors of the system that the family takes a part of; where there are any, the part
            must be asked for by name.
    """

    name: str
    model: str
    fits: Callable[[Tensors, Settings], bool]
    configure: Callable[[Tensors, Given], Fields]
    table: tuple[Row, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)
    settings_files: tuple[str, ...] = ()
    further_settings: str | None = None
    rest: str | None = None


class Recipe(NamedTuple):
    """The sources and the build function of one parameter."""

    shape: tuple[int, ...]
    sources: tuple[str, ...]
    build: Build


def row(target: str, sources: str | tuple[str, ...], build: Build | OfModel) -> Row:
    """Builds a `Row`; a single source may be given as a string."""
    return Row(target, (sources,) if isinstance(sources, str) else sources, build)


def same(tensor: np.ndarray) -> np.ndarray:
    """The unchanged tensor."""
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


def special_tokens(config: HasBackbone, positions: np.ndarray, *tokens: np.ndarray) -> np.ndarray:
    """Class, distillation and register tokens [1, n, C], with the position embeddings that they have, as [S, C].

    Positions [1, P, C] are those of special tokens, in the tokens' order, then those of the grid. Tokens beyond
    them have none.
    """
    rows, columns = config.backbone.position_grid
    special = np.concatenate(tokens, axis=1)[0].astype(np.float32)
    own = positions[0, : positions.shape[1] - rows * columns]
    special[: len(own)] += own
    return special


def position_grid(config: HasBackbone, positions: np.ndarray) -> np.ndarray:
    """Position embeddings [1, P, C] as [rows, columns, C], without those of special tokens, which come first."""
    rows, columns = config.backbone.position_grid
    return positions[0, -rows * columns :].reshape(rows, columns, -1)


def shape_of(tensors: Tensors, name: str, *, axes: int) -> tuple[int, ...]:
    """The shape of a tensor that the config is read off.

    Raises:
        ValueError: there is no such tensor, it is empty, or it has another number of axes.
    """
    if name not in tensors:
        raise ValueError(f"the checkpoint has no tensor {name!r}, which the config is read off")
    shape = tensors[name].shape
    if len(shape) != axes:
        raise ValueError(f"{name} must have {axes} axes, got shape {shape}")
    if 0 in shape:
        raise ValueError(f"{name} must not be empty, got shape {shape}")
    return shape


def recipes(
    family: Family,
    tensors: Tensors,
    wanted: Mapping[str, Shaped],
    config: Config | None = None,
) -> dict[str, Recipe]:
    """Name of a parameter -> its recipe.

    Args:
        family: whose table to use.
        tensors: the checkpoint.
        wanted: the model's parameters by name; only their shapes are used.
        config: of the model, for the builds that need it.

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
        bound = partial(build.build, config) if isinstance(build, OfModel) else build
        found[name] = Recipe(expected.shape, tuple(present), bound)
    return found


def find_unused(family: Family, tensors: Tensors, found: Mapping[str, Recipe]) -> dict[str, str]:
    """Tensors that no recipe uses -> the reason for dropping them.

    Raises:
        ValueError: there is no reason for dropping one of them.
    """
    used = {source for recipe in found.values() for source in recipe.sources}
    reasons: dict[str, str] = {}
    left_over: list[str] = []
    for name in tensors:
        if name in used:
            continue
        why = next((why for pattern, why in family.ignored.items() if re.fullmatch(pattern, name)), None)
        if why is None:
            left_over.append(name)
        else:
            reasons[name] = why
    if left_over:
        raise ValueError(
            f"the checkpoint holds {len(left_over)} tensors that the {family.model} model has no place for: "
            + ", ".join(name[:200] or "one without a name" for name in sorted(left_over)[:3])
        )
    return reasons


def build_parameter(name: str, recipe: Recipe, tensors: Tensors) -> np.ndarray:
    """Builds the parameter `name`.

    Raises:
        ValueError: its shape does not fit, or its sources are not real numbers; the message names both sides.
    """
    shape, sources, build = recipe
    for source in sources:
        if not _is_real(tensors[source].dtype):
            raise ValueError(f"{source} must hold floating-point numbers, got {tensors[source].dtype}")
    shapes = ", ".join(f"{source} {tensors[source].shape}" for source in sources)
    try:
        array = build(*(tensors[source] for source in sources))
    except (ValueError, IndexError, TypeError) as error:
        raise ValueError(f"{name} of shape {shape} cannot be made from {shapes}: {error}") from None
    if array.shape != shape:
        raise ValueError(f"{name} must have shape {shape}, got {array.shape} from {shapes}")
    return array


def _is_real(dtype: np.dtype) -> bool:
    """Whether a dtype is one of floating-point numbers, NumPy's or another's."""
    try:
        ml_dtypes.finfo(dtype)
    except (ValueError, KeyError):
        return False
    return dtype.kind != "c"


def same_kind(name: str) -> str:
    """A tensor's name with "*" for every number in it."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def closeness(family: Family, tensors: Tensors) -> tuple[int, int]:
    """Closeness of a family to tensors: the number of tensors it uses, and minus the number of missing kinds.

    Names are compared with "*" for their numbers.
    """
    kinds = Counter(map(same_kind, tensors))
    known, absent = set(), 0
    for line in family.table:
        for source in line.sources:
            alternatives = {same_kind(each) for each in source.removesuffix("?").split("|")}
            known |= alternatives
            absent += not source.endswith("?") and kinds.keys().isdisjoint(alternatives)
    return sum(count for kind, count in kinds.items() if kind in known), -absent


def _sources(family: Family, name: str) -> tuple[tuple[str, ...], Build | OfModel]:
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
