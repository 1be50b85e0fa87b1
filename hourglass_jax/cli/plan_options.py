"""The options that say which plan: they are made from the fields of all known kinds of plans."""

import dataclasses
import functools
import inspect
import operator
import re
import typing
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.files import is_required, load_plan, plan_fields, plan_of
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.presets import PRESETS, preset
from hourglass_jax.plans.registry import ALIASES, all_methods, find_method

COMMANDS_OWN = frozenset(
    {
        *("help", "h", "model", "size", "json", "output", "o", "plan", "preset", "strict_plan", "method"),
        *("photos", "recursive", "max_pixels", "whole", "task", "resume", "budget", "repeats", "batch"),
        *("images", "gflops", "speedup", "min_cosine", "limit", "rows", "position", "block", "studies"),
        *("dataset", "data_dir", "split", "original", "hourglass", "crop", "cap", "distributed"),
        *("dtype", "platforms", "with_preprocessing", "photo_size"),
    }
)
"""Options of the commands: a field of such a name is given in a plan file only."""


class PlanOptions:
    """A plan file, a preset or a method, its fields, or both (fields win).

    Attributes:
        plan: a plan file or a preset.
        strict_plan: whether a photograph that the plan does not fit is refused.
        method: the kind of plan.

    Further attributes are the fields that were given; those that are None were not.
    """

    plan: str | None = None
    strict_plan: bool = False
    method: str | None = None

    def __init__(self, **options: Any) -> None:
        vars(self).update(options)


def plan_arguments() -> type[PlanOptions]:
    """What `PlanOptions` is read from, by tyro."""
    return _arguments(tuple(all_methods().values()), with_method=True)


def plan_arguments_without_method() -> type[PlanOptions]:
    """The same for a command that has an option --method of its own."""
    return _arguments(tuple(all_methods().values()), with_method=False)


@functools.cache
def _arguments(methods: tuple[type[Plan], ...], with_method: bool) -> type[PlanOptions]:
    names = ", ".join(cls.__name__ for cls in methods)
    short = " and ".join(ALIASES)
    plan = "A plan file, such as `hourglass tune` writes, or a preset; `hourglass models` lists them."
    strict = (
        "Refuse a photograph that the plan does not fit; by default the plan is fitted to it, and that is said."
    )
    method = f"Kind of the plan, in upper or lower case: {names}; {short} for short. By default Hourglass."
    options: list[tuple[str, Any, Any]] = [
        ("plan", _option(str | None, plan, aliases=["--preset"], metavar="FILE|PRESET"), None),
        ("strict_plan", tyro.conf.FlagCreatePairsOff[_option(bool, strict)], False),
    ]
    if with_method:
        options.append(("method", _option(str | None, method, metavar="NAME"), None))
    for name, (hint, text) in _fields(methods).items():
        if name not in COMMANDS_OWN:
            options.append((name, _option(hint | None, text), None))
    doc = (PlanOptions.__doc__ or "").partition("\n")[0]
    return dataclasses.make_dataclass("PlanOptions", options, bases=(PlanOptions,), namespace={"__doc__": doc})


def _option(hint: Any, text: str, **settings: Any) -> Any:
    return Annotated[hint, tyro.conf.arg(help=text, **settings)]


def _fields(methods: tuple[type[Plan], ...]) -> dict[str, tuple[Any, str]]:
    """Field -> its type, of all methods that have it, and what their docstrings say."""
    hints: dict[str, list[Any]] = defaultdict(list)
    texts: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for cls in methods:
        types, described = typing.get_type_hints(cls), described_fields(cls)
        for field in dataclasses.fields(cls):
            hints[field.name].append(types[field.name])
            texts[field.name][described.get(field.name, "")].append(cls.__name__)
    return {
        name: (
            functools.reduce(operator.or_, hints[name]),
            " ".join(f"{', '.join(owners)}: {text or 'no description.'}" for text, owners in each.items()),
        )
        for name, each in texts.items()
    }


def described_fields(cls: type) -> dict[str, str]:
    """What the part "Attributes" of a class's docstring, and of those of its bases, says of each name."""
    found: dict[str, str] = {}
    for each in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            found |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return found


def is_given(options: PlanOptions) -> bool:
    """Whether options say anything about the plan."""
    return bool(options.plan or options.method or _given_fields(options))


def chosen_plan(
    options: PlanOptions, *, default_preset: str | None = None, hourglass_for: str | None = None
) -> Plan | None:
    """The plan that options say.

    Args:
        options: what was given.
        default_preset: the preset that is meant where no other plan is; a name that is none means none.
        hourglass_for: what takes no other plan than an `Hourglass`, for a message.

    Returns:
        The plan; None if nothing was given and `default_preset` is None.

    Raises:
        ValueError: they say no plan, or none of the kind that is needed.
    """
    source, fields = options.plan, _given_fields(options)
    if source is None and default_preset is None and not is_given(options):
        return None
    method = None if options.method is None else find_method(options.method)
    if source is None and method in (None, Hourglass) and "alpha" not in fields and default_preset in PRESETS:
        source = default_preset
    base = None if source is None else _read(source)
    cls = method or (Hourglass if base is None else type(base))
    if base is not None and type(base) is not cls:
        raise ValueError(f"--plan {source} is a plan of {type(base).__name__}, and --method says {cls.__name__}")
    if hourglass_for is not None and cls is not Hourglass:
        raise ValueError(f"{hourglass_for} of an Hourglass, got a plan of {cls.__name__}")
    if base is None:
        _check_complete(cls, fields, is_named=method is not None)
    values = {name: _as_lists(value) for name, value in fields.items()}
    return plan_of(({"method": cls.__name__} if base is None else plan_fields(base)) | values)


def _given_fields(options: PlanOptions) -> dict[str, Any]:
    own = ("plan", "strict_plan", "method")
    return {name: value for name, value in vars(options).items() if name not in own and value is not None}


def _read(source: str) -> Plan:
    is_file = source not in PRESETS and (Path(source).is_file() or source.endswith(".json"))
    return load_plan(source) if is_file else preset(source).plan


def _check_complete(cls: type[Plan], fields: Mapping[str, object], *, is_named: bool) -> None:
    """Raises ValueError if a field without a default is missing."""
    required = [field.name for field in dataclasses.fields(cls) if is_required(field)]
    missing = [name for name in required if name not in fields]
    if missing:
        who = f"{cls.__name__} needs" if is_named else "a plan needs --plan, --method, or"
        raise ValueError(f"{who} {_as_options(required)}: {_as_options(missing)} missing")


def _as_options(names: Iterable[str]) -> str:
    return " and ".join(f"--{name.replace('_', '-')}" for name in names)


def _as_lists(value: object) -> object:
    """As plan files have it."""
    return list(map(_as_lists, value)) if isinstance(value, tuple) else value
