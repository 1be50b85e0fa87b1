"""The command-line options of plans, derived from the fields of all known kinds of plans."""

import dataclasses
import functools
import inspect
import operator
import re
import typing
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.files import is_required, load_plan, plan_fields, plan_of
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.presets import PRESETS, preset
from hourglass_jax.plans.recommended import recommended
from hourglass_jax.plans.registry import ALIASES, all_methods, find_method
from hourglass_jax.plans.staged_merging import StagedMerging

if TYPE_CHECKING:
    from hourglass_jax.models.base import Model

COMMANDS_OWN = frozenset(
    {
        *("help", "h", "model", "size", "json", "output", "o", "plan", "preset", "strict_plan", "method"),
        *("fast", "share", "faster"),
        *("photos", "recursive", "max_pixels", "whole", "task", "resume", "repeats", "batch"),
        *("images", "min_cosine", "limit", "rows", "position", "block", "studies"),
        *("point", "label", "box", "multimask", "everything", "automatic", "threshold"),
        *("dataset", "data_dir", "split", "original", "hourglass", "crop", "cap", "distributed"),
        *("dtype", "platforms", "with_preprocessing", "photo_size"),
    }
)
"""Names of the commands' options: a field of such a name can be set in a plan file only."""


class PlanOptions:
    """How much faster, or which plan: a file, a preset or a method, its fields, or both (fields win).

    Attributes:
        fast: whether it is the plan that is recommended for the model.
        share: of the encoder's multiply-accumulates that the plan may cost.
        faster: by how much the whole model's multiply-accumulates are to fall.
        plan: a plan file or a preset.
        strict_plan: whether a photograph that the plan does not fit is an error.
        method: the kind of plan.

    Further attributes are the fields of plans; None if they were not given.
    """

    fast: bool = False
    share: float | None = None
    faster: float | None = None
    plan: str | None = None
    strict_plan: bool = False
    method: str | None = None

    def __init__(self, **options: Any) -> None:
        vars(self).update(options)


def plan_arguments() -> type[PlanOptions]:
    """The dataclass from which tyro makes the options of a plan."""
    return _arguments(tuple(all_methods().values()), with_method=True)


def plan_arguments_without_method() -> type[PlanOptions]:
    """The same without --method, for a command that has an option of that name."""
    return _arguments(tuple(all_methods().values()), with_method=False)


@functools.cache
def _arguments(methods: tuple[type[Plan], ...], with_method: bool) -> type[PlanOptions]:
    names = ", ".join(cls.__name__ for cls in methods)
    short = " and ".join(ALIASES)
    plan = "A plan file, such as `hourglass tune` writes, or a preset; `hourglass models` lists them."
    strict = (
        "Refuse a photograph that the plan does not fit; by default the plan is fitted to it, and that is said."
    )
    method = (
        f"Kind of the plan, in upper or lower case: {names}; {short} for short. By default StagedMerging for "
        "--share and --faster, Hourglass for fields."
    )
    fast = "The plan that is recommended for the model."
    share = "The plan of a method for this share of the encoder's multiply-accumulates, such as 0.6."
    faster = "The plan of a method that divides the whole model's multiply-accumulates by this, such as 1.5."
    amounts: list[tuple[str, Any, Any]] = [
        ("share", _option(float | None, share, metavar="SHARE"), None),
        ("faster", _option(float | None, faster, metavar="TIMES"), None),
    ]
    options: list[tuple[str, Any, Any]] = [
        ("fast", tyro.conf.FlagCreatePairsOff[_option(bool, fast)], False),
        *(amounts if with_method else []),
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
    """Field -> the union of its types in all methods, and its descriptions in their docstrings."""
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
            " ".join(f"{', '.join(owners)}: {text or 'no description.'}" for text, owners in by_text.items()),
        )
        for name, by_text in texts.items()
    }


def described_fields(cls: type) -> dict[str, str]:
    """Field -> its description in the section "Attributes" of the docstrings of a class and its bases."""
    descriptions: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        _, _, section = inspect.cleandoc(base.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE):
            descriptions |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return descriptions


def is_given(options: PlanOptions) -> bool:
    """Whether options say anything about the plan."""
    return bool(options.plan or options.method or is_amount(options) or _given_fields(options))


def is_amount(options: PlanOptions) -> bool:
    """Whether options say how much faster, and leave the plan to the model."""
    return options.fast or options.share is not None or options.faster is not None


def chosen_plan(
    options: PlanOptions, *, default_preset: str | None = None, hourglass_for: str | None = None
) -> Plan | None:
    """Builds the plan that was chosen.

    Args:
        options: the options.
        default_preset: the preset to use if no plan is given; ignored if there is no preset of this name.
        hourglass_for: for a message, what requires an `Hourglass`; None accepts every plan.

    Returns:
        The plan; None if no option was given and `default_preset` is None.

    Raises:
        ValueError: the options do not make a plan, or not an `Hourglass` where it is required.
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


def plan_for(
    options: PlanOptions, model: "Model", size: tuple[int, int], *, hourglass_for: str | None = None
) -> Plan:
    """The plan for options that say how much faster, `is_amount`.

    Args:
        options: what was given.
        model: that the plan is for.
        size: (rows, columns) of its images in pixels.
        hourglass_for: what takes no other plan than an `Hourglass`, for a message.

    Raises:
        ValueError: they say more than one amount, or a plan file beside it, or no such plan fits the model.
    """
    from hourglass_jax.search.budget import Costs, share_for

    amounts = {"--fast": options.fast or None, "--share": options.share, "--faster": options.faster}
    given = [name for name, value in {**amounts, "--plan": options.plan}.items() if value is not None]
    if len(given) != 1:
        raise ValueError(f"expected one of --fast, --share, --faster and --plan, got {' and '.join(given)}")
    fields = _given_fields(options)
    if options.fast:
        if hourglass_for is not None:
            raise ValueError(f"{hourglass_for} of an Hourglass, which --fast does not promise")
        if options.method or fields:
            raise ValueError(f"--fast is a plan by itself, got {_as_options(fields or ['method'])} beside it")
        return recommended(model.backbone)
    default = StagedMerging if hourglass_for is None else Hourglass
    share = share_for(model, options.faster, size) if options.faster is not None else options.share
    return Costs(model, size).solve(options.method or default.__name__, share or 0, fields)


def _given_fields(options: PlanOptions) -> dict[str, Any]:
    own = ("fast", "share", "faster", "plan", "strict_plan", "method")
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
    """Converts tuples to lists, as in plan files."""
    return list(map(_as_lists, value)) if isinstance(value, tuple) else value
