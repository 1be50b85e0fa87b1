"""Conversion as data: a family of checkpoints is a table that says what every parameter is made of."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import jax
import numpy as np

Tensors = Mapping[str, np.ndarray]
Build = Callable[..., np.ndarray]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        target: our dotted name; "*" stands for a number, such as a block's.
        sources: the checkpoint's names that it is made of; a "*" is the number of the target's.
        build: makes the target from the arrays of `sources`, in this order.
    """

    target: str
    sources: tuple[str, ...]
    build: Build


@dataclass(frozen=True)
class Family:
    """A family of checkpoints.

    Attributes:
        model: the name in `hourglass_jax.models.registry.MODELS`.
        fits: whether a checkpoint with these tensors is of this family.
        configure: the model's config, read off the tensors' shapes, as plain values.
        table: rows for all parameters of the model.
        ignored: patterns of tensors that are dropped on purpose, and why.
    """

    model: str
    fits: Callable[[Tensors], bool]
    configure: Callable[[Tensors], dict[str, object]]
    table: tuple[Row, ...]
    ignored: Mapping[str, str] = field(default_factory=dict)


def row(target: str, sources: str | tuple[str, ...], build: Build) -> Row:
    """A `Row`; a single source may stand alone."""
    return Row(target, (sources,) if isinstance(sources, str) else sources, build)


def same(tensor: np.ndarray) -> np.ndarray:
    """The tensor as it is."""
    return tensor


def linear(*weights: np.ndarray) -> np.ndarray:
    """PyTorch's linear weights [out, in], one below the other, as one kernel [in, out]."""
    return np.concatenate(weights, axis=0).T


def concatenated(*tensors: np.ndarray) -> np.ndarray:
    """Vectors one after the other."""
    return np.concatenate(tensors, axis=0)


def patch_kernel(weight: np.ndarray) -> np.ndarray:
    """The patch embedding's convolution [C, 3, p, p] as the kernel [p * p * 3, C] of flattened patches."""
    return weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0])


def pointwise(weight: np.ndarray) -> np.ndarray:
    """A 1 x 1 convolution [out, in, 1, 1] as a linear kernel [in, out]."""
    return weight[:, :, 0, 0].T


def transposed_convolution(weight: np.ndarray) -> np.ndarray:
    """PyTorch's transposed convolution [in, out, rows, columns] as [rows, columns, in, out]."""
    return weight.transpose(2, 3, 0, 1)


def special_token(token: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The class token [1, 1, C] with its own position embedding [1, 1, C] as [1, C]."""
    return (token + position)[0]


def square_grid(positions: np.ndarray) -> np.ndarray:
    """Position embeddings [1, side * side, C] as [side, side, C]."""
    side = square_side(positions.shape[1])
    return positions.reshape(side, side, -1)


def square_side(positions: int) -> int:
    """The side of the square grid with this many positions."""
    side = round(positions**0.5)
    if side * side != positions:
        raise ValueError(f"expected position embeddings of a square grid, got {positions} positions")
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


def apply(family: Family, tensors: Tensors, wanted: Mapping[str, jax.Array]) -> dict[str, np.ndarray]:
    """Makes every parameter, and accounts for every tensor.

    Args:
        family: whose table to use.
        tensors: the checkpoint.
        wanted: the model's parameters by name; only their shapes are used.

    Returns:
        The parameters by name.

    Raises:
        ValueError: a parameter has no row or no source, a shape does not fit, or a tensor is left over.
    """
    used: set[str] = set()
    parameters = {}
    for name, expected in wanted.items():
        sources, build = _sources(family, name)
        absent = [source for source in sources if source not in tensors]
        if absent:
            raise ValueError(f"the checkpoint has no tensor {absent[0]!r}, which {name!r} is made of")
        used.update(sources)
        shapes = ", ".join(f"{source} {tensors[source].shape}" for source in sources)
        try:
            built = np.ascontiguousarray(build(*(tensors[source] for source in sources)))
        except (ValueError, IndexError) as error:
            raise ValueError(f"{name} of shape {expected.shape} cannot be made from {shapes}: {error}") from None
        if built.shape != expected.shape:
            raise ValueError(f"{name} must have shape {expected.shape}, got {built.shape} from {shapes}")
        parameters[name] = built
    ignorable = re.compile("|".join(family.ignored) or r"(?!)")
    left_over = sorted(name for name in tensors.keys() - used if not ignorable.fullmatch(name))
    if left_over:
        raise ValueError(
            f"the checkpoint holds {len(left_over)} tensors that a {family.model} model has no place for: "
            + ", ".join(left_over[:3])
        )
    return parameters


def _sources(family: Family, name: str) -> tuple[tuple[str, ...], Build]:
    for candidate in family.table:
        match = re.fullmatch(re.escape(candidate.target).replace(r"\*", r"(\d+)"), name)
        if match:
            number = match.group(1) if match.groups() else ""
            return tuple(source.replace("*", number) for source in candidate.sources), candidate.build
    raise ValueError(f"no rule says what {name!r} is made of in a checkpoint of the {family.model} family")
