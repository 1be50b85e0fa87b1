"""Checks of configs when they are built: annotated types, finite numbers, bounded counts."""

import dataclasses
import math
import types
import typing
from functools import cache
from reprlib import repr as short

MOST = 1 << 20
"""Maximum of every integer in a config, such as widths, sides and numbers of classes."""
MOST_LAYERS = 1024
"""Maximum number of blocks, bottlenecks and stages, which are built one by one."""
LONGEST = 1 << 17
"""Maximum length of a tuple in a config."""


def check_config(config: object, *, layers: tuple[str, ...] = (), zero: tuple[str, ...] = ()) -> None:
    """Checks every field of a config against its annotation; lists, as JSON has them, count as tuples.

    Args:
        config: an instance of a frozen dataclass, whose lists become tuples.
        layers: names of the fields that count blocks, bottlenecks or stages.
        zero: names of the integer fields that may be 0; others are positive.

    Raises:
        ValueError: a value has another type, is not finite, not positive or too large; the message names the field.
    """
    for name, annotation in _hints(type(config)).items():
        value = _as_tuples(getattr(config, name))
        object.__setattr__(config, name, value)
        least, most = int(name not in zero), MOST_LAYERS if name in layers else MOST
        if not _holds(value, annotation, least, most):
            raise ValueError(f"{name} must be {_words(annotation, least, most, value)}, got {short(value)}")
        if name in layers and isinstance(value, tuple) and sum(value) > MOST_LAYERS:
            raise ValueError(f"{name} must be at most {MOST_LAYERS} in all, got {sum(value)}")


@cache
def _hints(cls: type) -> dict[str, typing.Any]:
    hints = typing.get_type_hints(cls)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls)}


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list | tuple) else value


def _holds(value: object, annotation: typing.Any, least: int, most: int) -> bool:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_holds(value, kind, least, most) for kind in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        if not isinstance(value, tuple) or len(value) > LONGEST:
            return False
        if arguments[-1] is not Ellipsis and len(value) != len(arguments):
            return False
        kinds = arguments[:1] * len(value) if arguments[-1] is Ellipsis else arguments
        return all(_holds(item, kind, least, most) for item, kind in zip(value, kinds, strict=True))
    if annotation is int:
        return type(value) is int and least <= value <= most
    if annotation is float:
        return (type(value) is int or type(value) is float) and abs(value) < 1e30 and math.isfinite(value)
    return (
        value is None
        if annotation is types.NoneType
        else type(value) is annotation or isinstance(value, annotation)
    )


def _words(annotation: typing.Any, least: int, most: int, value: object = None) -> str:
    """Describes the expected value of a field."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_words(kind, least, most) for kind in arguments)
    if origin is typing.Literal:
        names = [repr(choice) for choice in arguments]
        return " or ".join(names) if len(names) < 3 else f"one of {', '.join(names)}"
    if origin is tuple:
        count = "" if arguments[-1] is Ellipsis else f" of {len(arguments)}"
        return f"a list{count}, each {_words(arguments[0], least, most)}"
    if annotation is int and type(value) is int:
        return f"at least {least}" if value < least else f"at most {most}"
    if annotation is types.NoneType:
        return "None"
    names = {int: f"an integer in {least}..{most}", float: "a finite number", bool: "true or false", str: "a text"}
    return names.get(annotation) or f"a {annotation.__name__}"
