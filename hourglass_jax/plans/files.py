"""Plan files: the method and the fields of a plan as JSON."""

import dataclasses
import json
import os
import types
import typing
from pathlib import Path

from hourglass_jax.io.files import replacing
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.registry import METHODS, find_method

EXAMPLE = '{"method": "Hourglass", "alpha": 5, "clusters": [24, 24]}'


def save_plan(plan: Plan, path: str | os.PathLike[str]) -> Path:
    """Writes a plan to a JSON file that `load_plan` and the option --plan read.

    Args:
        plan: a plan of a kind that `find_method` knows.
        path: path of the file; missing folders are created.

    Returns:
        `path`.

    Raises:
        ValueError: the plan is of an unknown class.

    >>> import hourglass_jax as hj
    >>> print(save_plan(hj.StagedMerging(keep=0.8), "plan.json").read_text())
    {
      "method": "StagedMerging",
      "keep": 0.8,
      "stages": null,
      "value": "mean"
    }
    <BLANKLINE>
    """
    if not _is_known(type(plan)):
        raise ValueError(
            f"expected a plan of {', '.join(METHODS)} or of a class that `register_plan` was given, "
            f"got {type(plan).__name__}"
        )
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plan_fields(plan), indent=2) + "\n")
    return Path(path)


def load_plan(path: str | os.PathLike[str]) -> Plan:
    """Reads a plan file.

    Args:
        path: path of a JSON object with the method, a name that `find_method` knows, and fields of its class.

    Returns:
        The plan, for `expedite`.

    Raises:
        ValueError: the file does not exist or holds no such object, or a method, a field or a value is unknown.

    >>> characters = Path("plan.json").write_text('{"method": "StagedMerging", "keep": 0.8}')
    >>> load_plan("plan.json")
    StagedMerging(keep=0.8, stages=None, value='mean')
    """
    path = Path(path)
    try:
        fields = json.loads(path.read_bytes())
    except OSError as problem:
        raise ValueError(f"{path} cannot be read: expected a plan file, got {problem.strerror}") from None
    except ValueError:
        raise ValueError(f"{path} is no plan: expected JSON such as {EXAMPLE}") from None
    try:
        return plan_of(fields)
    except ValueError as problem:
        raise ValueError(f"{path}: {problem}") from None


def plan_fields(plan: Plan) -> dict[str, object]:
    """The method and the fields of a plan, as in a plan file."""
    return {"method": type(plan).__name__, **json.loads(json.dumps(dataclasses.asdict(plan)))}


def plan_of(fields: object) -> Plan:
    """Builds a plan from its method and fields; the inverse of `plan_fields`.

    Raises:
        ValueError: a method, a field or a value is unknown, or one is missing.
    """
    if not isinstance(fields, dict) or "method" not in fields:
        raise ValueError(f"a plan must name its method, as in {EXAMPLE}, got {fields!r}")
    values = dict(fields)
    method = values.pop("method")
    cls = find_method(method)
    method = cls.__name__
    known = {field.name: field for field in dataclasses.fields(cls)}
    unknown = next((name for name in values if name not in known), None)
    if unknown is not None:
        raise ValueError(f"{method} has no field {unknown!r}; it has {', '.join(known)}")
    missing = next((name for name, field in known.items() if is_required(field) and name not in values), None)
    if missing is not None:
        raise ValueError(f"{method} needs the field {missing!r}, which is missing")
    hints = typing.get_type_hints(cls)
    for name, value in values.items():
        if not _is_of(value, hints[name]):
            raise ValueError(f"{name} of {method} must be of type {_type_name(hints[name])}, got {value!r}")
    return cls(**{name: _as_tuples(value) for name, value in values.items()})


def _is_known(cls: type) -> bool:
    try:
        return find_method(cls.__name__) is cls
    except ValueError:
        return False


def is_required(field: dataclasses.Field) -> bool:
    """Whether a field of a plan has no default."""
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _is_of(value: object, hint: object) -> bool:
    """Whether a JSON value has a type, where lists count as tuples."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_is_of(value, kind) for kind in arguments)
    if origin is typing.Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin is tuple:
        if not isinstance(value, list):
            return False
        if arguments[-1] is Ellipsis:
            return all(_is_of(item, arguments[0]) for item in value)
        return len(value) == len(arguments) and all(map(_is_of, value, arguments))
    return type(value) is hint or (hint is float and type(value) is int)


def _type_name(hint: object) -> str:
    if hint is type(None):
        return "null"
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(map(_type_name, arguments))
    if origin is typing.Literal:
        return " or ".join(map(json.dumps, arguments))
    if origin is tuple:
        return f"[{', '.join('...' if kind is Ellipsis else _type_name(kind) for kind in arguments)}]"
    return getattr(hint, "__name__", str(hint))


def _as_tuples(value: object) -> object:
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
