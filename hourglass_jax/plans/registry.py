"""All methods by name: built-in, registered, and from installed packages."""

import contextlib
import dataclasses
import types
import typing
from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Any, TypeVar

from hourglass_jax.plans.act import ACT
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.dynamic_vit import DynamicViT
from hourglass_jax.plans.evit import EViT
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.pooling import Downsampling, Pooling
from hourglass_jax.plans.staged_merging import StagedMerging
from hourglass_jax.plans.token_merging import TokenMerging

_METHODS: dict[str, type[Plan]] = {
    member.__name__: member
    for member in (Hourglass, TokenMerging, StagedMerging, EViT, DynamicViT, ACT, Pooling, Downsampling)
}
METHODS: Mapping[str, type[Plan]] = MappingProxyType(_METHODS)
"""Name of the class -> every kind of plan; `register_plan` adds to it."""
ALIASES = MappingProxyType({"tome": "TokenMerging", "staged": "StagedMerging"})
"""Short names in lower case -> names of the classes."""
GROUP = "hourglass_jax.plans"
"""Entry points of installed packages: the name of a class -> module:Class."""

PlanClass = TypeVar("PlanClass", bound=type[Plan])


def register_plan(cls: PlanClass) -> PlanClass:
    """Registers a kind of plan under the name of its class, for plan files, the tuner and the command line.

    Args:
        cls: a frozen dataclass, a subclass of `Plan`, whose fields a plan file can hold: numbers, strings,
            switches, None, and tuples and unions of those.

    Returns:
        `cls`, so that the function can be used as a decorator.

    Raises:
        ValueError: `cls` is not such a class, or its name is taken.
    """
    is_plan = isinstance(cls, type) and issubclass(cls, Plan) and cls is not Plan
    parameters = vars(cls).get("__dataclass_params__") if is_plan else None
    if parameters is None or not parameters.frozen:
        raise ValueError(f"a plan must be a frozen dataclass and a subclass of Plan, got {cls!r}")
    name = cls.__name__
    known = _registered(name)
    if known not in (None, cls):
        raise ValueError(
            f"the name {name} is taken by {known.__module__}.{known.__qualname__}: expected another one"
        )
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.name == "method":
            raise ValueError(f"{name} cannot have a field 'method': in plan files that is the name of the class")
        if not _is_plain(hints[field.name]):
            raise ValueError(
                f"{name}.{field.name} must be of a type that a plan file can hold (int, float, str, bool, None, "
                f"Literal, and tuples and unions of those), got {hints[field.name]}"
            )
    _METHODS[name] = cls
    return cls


def find_method(name: object) -> type[Plan]:
    """Finds a kind of plan.

    Args:
        name: name of the class, in upper or lower case, or one of `ALIASES`. Unknown names are looked up in the
            entry points of installed packages.

    Raises:
        ValueError: the name is unknown, or the entry point cannot be imported.
    """
    if isinstance(name, str):
        known = _registered(name)
        if known is not None:
            return known
        for point in entry_points(group=GROUP):
            if point.name.lower() == name.lower():
                return _installed(point)
    raise ValueError(f"unknown method {name!r}; known: {', '.join(METHODS)}")


def all_methods() -> Mapping[str, type[Plan]]:
    """`METHODS`, and the kinds of plans from installed packages that can be imported."""
    for point in entry_points(group=GROUP):
        with contextlib.suppress(ValueError):  # `find_method` reports the error of one that is used
            _installed(point)
    return METHODS


def _registered(name: str) -> type[Plan] | None:
    wanted = name.lower()
    wanted = ALIASES.get(wanted, wanted).lower()
    return next((cls for known, cls in METHODS.items() if known.lower() == wanted), None)


def _installed(point: EntryPoint) -> type[Plan]:
    try:
        cls = point.load()
    except Exception as problem:  # whatever the import of a foreign module raises
        raise ValueError(f"the plan {point.name} cannot be imported from {point.value}: {problem}") from problem
    if getattr(cls, "__name__", None) != point.name:
        raise ValueError(f"{point.value} must be a class called {point.name}, as its entry point says, got {cls!r}")
    return register_plan(cls)


def _is_plain(hint: Any) -> bool:
    """Whether values of a type can be stored as JSON."""
    origin = typing.get_origin(hint)
    if origin in (tuple, typing.Union, types.UnionType):
        return all(map(_is_plain, typing.get_args(hint)))
    return origin is typing.Literal or hint in (int, float, str, bool, type(None), Ellipsis)
