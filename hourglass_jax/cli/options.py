"""Shared parts of the commands: options, loading, output."""

import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, overload

import tyro
from rich.console import Console
from rich.text import Text

from hourglass_jax.cli.photos import Photo, find_photos
from hourglass_jax.cli.plan_options import (
    PlanOptions,
    chosen_plan,
    is_amount,
    is_given,
    plan_arguments,
    plan_arguments_without_method,
    plan_for,
)
from hourglass_jax.io.files import file_hash
from hourglass_jax.io.text import printable
from hourglass_jax.plans.presets import PRESETS
from hourglass_jax.plans.recommended import recommended

if TYPE_CHECKING:
    from hourglass_jax.imaging.images import Preprocessing
    from hourglass_jax.models.base import Model
    from hourglass_jax.plans.base import Plan
    from hourglass_jax.plans.hourglass import Hourglass

DEFAULT_MODEL = "dinov2-vits14-saliency"


def _size(arguments: list[str]) -> int | tuple[int, int]:
    """Parses a size: 518, or 352x1216 as (352, 1216)."""
    numbers = [int(side) for side in arguments[0].split("x")]
    if len(numbers) > 2:
        raise ValueError(f"expected pixels, or rows and columns as in 352x1216, got {arguments[0]}")
    return numbers[0] if len(numbers) == 1 else (numbers[0], numbers[1])


Size = Annotated[
    int | tuple[int, int] | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PX|ROWSxCOLUMNS",
        instance_from_str=_size,
        is_instance=lambda value: value is None or isinstance(value, int | tuple),
        str_from_instance=lambda value: [str(value) if not isinstance(value, tuple) else "x".join(map(str, value))],
    ),
]


@dataclasses.dataclass(frozen=True)
class ModelOptions:
    """The model and the size of its input."""

    model: str = DEFAULT_MODEL
    """A converted file (.safetensors) or a name that `hourglass models` lists."""
    size: Size = None
    """Side of the model's input in pixels: the longer side, or the shorter side for a model that crops images or
    cuts them into windows. Rows and columns, as 352x1216, for inputs that are not square. By default the model's
    size."""
    json: tyro.conf.FlagCreatePairsOff[bool] = False
    """Print machine-readable results."""


Methods = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="method", metavar="NAME")]
Photos = tyro.conf.Positional[tuple[Path, ...]]


@dataclasses.dataclass(frozen=True)
class ReadingOptions:
    """How photographs are found and read."""

    recursive: tyro.conf.FlagCreatePairsOff[bool] = False
    """Include the photographs in subfolders."""
    max_pixels: int | None = None
    """Maximum number of pixels of a photograph; by default Pillow's limit, 178,956,970."""


Output = Annotated[Path, tyro.conf.arg(name="output", aliases=["-o"])]
Models = tyro.conf.OmitArgPrefixes[ModelOptions]
Reading = tyro.conf.OmitArgPrefixes[ReadingOptions]
Plans = Annotated[PlanOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor_factory=plan_arguments)]
PlansBesideMethods = Annotated[
    PlanOptions, tyro.conf.OmitArgPrefixes, tyro.conf.arg(constructor_factory=plan_arguments_without_method)
]
"""For a command that has an option --method of its own."""


@overload
def load_model(model: ModelOptions, plan: PlanOptions) -> "tuple[Model, Preprocessing, Plan]": ...


@overload
def load_model(
    model: ModelOptions, plan: PlanOptions, *, hourglass_for: str
) -> "tuple[Model, Preprocessing, Hourglass]": ...


@overload
def load_model(
    model: ModelOptions, plan: PlanOptions, *, default_preset: bool
) -> "tuple[Model, Preprocessing, Plan | None]": ...


def load_model(
    model: ModelOptions, plan: PlanOptions, *, default_preset: bool = True, hourglass_for: str | None = None
) -> "tuple[Model, Preprocessing, Plan | None]":
    """Loads the model without its plan, its preprocessing at the chosen size, and the plan.

    Args:
        model: options of the model.
        plan: options of the plan.
        default_preset: whether there is a plan if none is given; otherwise it is None then.
        hourglass_for: for a message, what requires an `Hourglass`; None accepts every plan.
    """
    from hourglass_jax.hub import load

    _keep_compilations()
    loaded = load(model.model)
    preprocessing = loaded.config.preprocessing
    if model.size is not None:
        preprocessing = preprocessing.at(model.size)
    default = model.model if default_preset else None
    chosen = select_plan(plan, loaded, preprocessing.shape, default_preset=default, hourglass_for=hourglass_for)
    return loaded, preprocessing, chosen


def select_plan(
    options: PlanOptions,
    model: "Model",
    size: tuple[int, int],
    *,
    default_preset: str | None = None,
    hourglass_for: str | None = None,
) -> "Plan | None":
    """The plan that options say, of a model and images of `size` = (rows, columns) in pixels.

    Where they say none it is None without a `default_preset`, the name of the model's preset. With one it is that
    preset for what takes an `Hourglass` only, `hourglass_for`, and the recommended plan otherwise.

    Raises:
        ValueError: they say no plan, or one that is not for the model.
    """
    if is_amount(options):
        return plan_for(options, model, size, hourglass_for=hourglass_for)
    if not is_given(options) and hourglass_for is None:
        return None if default_preset is None else recommended(model.backbone)
    if options.plan is not None and options.plan in PRESETS:
        PRESETS[options.plan].check(model.backbone)
    return chosen_plan(options, default_preset=default_preset, hourglass_for=hourglass_for)


def _keep_compilations() -> None:
    """Enables JAX's persistent compilation cache, unless the user's environment configures it."""
    import jax
    import platformdirs

    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    folder = Path(platformdirs.user_cache_dir("hourglass_jax")) / "compiled"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return  # without a cache every process compiles anew
    jax.config.update("jax_compilation_cache_dir", str(folder))


def weights_of(model: ModelOptions) -> str:
    """Identifies a model's weights: the hash of its file, or its name."""
    return file_hash(model.model) if Path(model.model).is_file() else model.model


def photos_of(photos: Sequence[Path], reading: ReadingOptions, output: Path | None = None) -> list[Photo]:
    """The photographs that a command is about; from here on they may have `reading.max_pixels`.

    What an earlier run wrote into an `output` inside the folders of the photographs is none of them.
    """
    from PIL import Image

    warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # at half of what is refused
    if reading.max_pixels is not None:
        if reading.max_pixels < 1:
            raise ValueError(f"max_pixels must be at least 1, got {reading.max_pixels}")
        Image.MAX_IMAGE_PIXELS = -(-reading.max_pixels // 2)  # Pillow refuses at twice as many
    return find_photos(photos, recursive=reading.recursive, without=output)


def check_no_photo(paths: Iterable[str | Path], photos: Iterable[Path]) -> None:
    """Raises ValueError if one of the paths that are to be written is one of the photographs."""
    own = {photo.resolve() for photo in photos}
    for path in paths:
        if Path(path).resolve() in own:
            raise ValueError(
                f"{path} is one of the photographs, and would be replaced: name another folder with -o"
            )


def check_folder(output: Path) -> None:
    """Raises ValueError if `output` cannot become a folder."""
    existing = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ValueError(f"output must be a folder, but {existing} is a file")


@contextlib.contextmanager
def error_context(photo: object) -> Iterator[None]:
    """Puts the photograph's name before the message of a ValueError."""
    try:
        yield
    except ValueError as problem:
        raise ValueError(f"{photo}: {problem}") from problem


@contextlib.contextmanager
def interruptible(output: Path, what: str) -> Iterator[None]:
    """Lets Ctrl-C end resumable work with exit status 130; the message says that `output` keeps `what` was done."""
    try:
        yield
    except KeyboardInterrupt:
        said = f"interrupted: {output} keeps what was {what}; the same command goes on from there"
        print(printable(said), file=sys.stderr)
        sys.exit(130)


def describe(plan: "Plan") -> str:
    """Describes a plan in a few words."""
    from hourglass_jax.plans.hourglass import Hourglass

    if not isinstance(plan, Hourglass):
        fields = {field.name: getattr(plan, field.name) for field in dataclasses.fields(plan)}
        return f"{type(plan).__name__}({', '.join(f'{name}={value!r}' for name, value in fields.items())})"
    end = "the last block" if plan.beta is None else f"block {plan.alpha + plan.beta}"
    return f"{format_size(plan.clusters)} clusters after block {plan.alpha}, to {end}"


def format_size(pair: Sequence[int]) -> str:
    """Formats a size as "rows x columns"."""
    return " x ".join(map(str, pair))


def hide_progress(items: Sequence[object] = (0, 0)) -> bool:
    """True for a single item, or if stderr is not a terminal."""
    return len(items) < 2 or not sys.stderr.isatty()


class _Printable(Console):
    """Shows texts, also those in tables, as `printable` makes them, line by line."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str("\n".join(map(printable, text.split("\n"))), **options)


def console() -> Console:
    """Where tables are printed."""
    return _Printable(width=None if sys.stdout.isatty() else 120, markup=False, emoji=False)


def print_json(value: object) -> None:
    """Prints machine-readable results."""
    print(json.dumps(value, indent=2))
