"""Settings files of checkpoints: YAML or JSON as plain values, and the settings of a ViT.

What is read is honoured, or refused by name: a setting that says something else than the tensors, or that no model
here has, is never passed over. `Watched` knows what was asked for, so that what was not is refused as well.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short
from typing import TypeGuard

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.plain_text import LONGEST_JSON, parse_json, parse_yaml
from checkpoints_convert.python_config import read_python
from hourglass_jax.checks import MOST

Section = Mapping[str, object]


def read_settings(path: Path) -> dict[str, object]:
    """Reads a file of settings: the plain values of Python if it is called .py, otherwise JSON or YAML.

    A file that is called .json and does not begin like JSON is YAML, as Microsoft's Swin writes its config.json.

    Raises:
        CheckpointError: there is no such file, it is none of these or too large, or it asks for other than plain
            values.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: {'expected a plain file' if path.exists() else 'no such file'}")
    try:
        if path.suffix == ".py":
            settings = read_python(path)
        else:
            with path.open("rb") as file:
                content = file.read(LONGEST_JSON + 1)
            is_json = path.suffix == ".json" and re.match(rb"(\xef\xbb\xbf)?\s*([{\[]|$)", content)
            settings = parse_json(content) if is_json else parse_yaml(content)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    if not isinstance(settings, dict):
        raise CheckpointError(f"{path}: expected named settings, got {type(settings).__name__}")
    return settings


def section(settings: Section, name: str) -> Section:
    """The settings under a name; none where it is not there.

    Raises:
        ValueError: it is something else than named settings.
    """
    value = settings.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _expected(name, "a section of named settings", value)
    return value


def integer(settings: Section, name: str, *, least: int = 1) -> int | None:
    """An integer, or None where there is none.

    Raises:
        ValueError: it is something else, smaller than `least` or larger than any model's.
    """
    value = settings.get(name)
    if value is not None and (type(value) is not int or not least <= value <= MOST):
        raise _expected(name, "a positive integer" if least == 1 else f"an integer of at least {least}", value)
    return value


def number(settings: Section, name: str, *, positive: bool = True) -> float | None:
    """A finite number, or None where there is none.

    Raises:
        ValueError: it is something else, or not positive where it must be.
    """
    value = settings.get(name)
    if value is None:
        return None
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d+(\.\d*)?e[+-]?\d+", value, re.IGNORECASE):
        value = float(value)  # YAML 1.1 takes 1e-6 for a text
    if not _is_finite(value) or (positive and value <= 0):
        raise _expected(name, "a positive number" if positive else "a finite number", value)
    return float(value)


def text(settings: Section, name: str) -> str | None:
    """A text, or None where there is none.

    Raises:
        ValueError: it is something else.
    """
    value = settings.get(name)
    if value is not None and not isinstance(value, str):
        raise _expected(name, "a text", value)
    return value


def integers(settings: Section, name: str, *, least: int = 0) -> tuple[int, ...] | None:
    """A list of integers, or None where there is none.

    Raises:
        ValueError: it is something else, or one is smaller than `least`.
    """
    value = settings.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(type(each) is int and each >= least for each in value):
        raise _expected(name, f"a list of integers of at least {least}", value)
    return tuple(value)


def side_lengths(settings: Section, name: str) -> tuple[int, int] | None:
    """(rows, columns) of a size, which may be one integer or two, or None where there is none.

    Raises:
        ValueError: it is something else, or not positive.
    """
    value = settings.get(name)
    if value is None:
        return None
    sides = (value, value) if type(value) is int else value
    if not isinstance(sides, list | tuple) or len(sides) != 2 or not all(type(n) is int and n > 0 for n in sides):
        raise _expected(name, "a positive integer, or two of them", value)
    return sides[0], sides[1]


def colour_statistics(settings: Section, name: str) -> tuple[float, float, float] | None:
    """Three finite numbers, for red, green and blue, or None where there are none.

    Raises:
        ValueError: it is something else.
    """
    value = settings.get(name)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(_is_finite(each) for each in value):
        raise _expected(name, "three finite numbers", value)
    if name == "std" and min(value) <= 0:
        raise _expected(name, "three positive numbers", value)
    red, green, blue = map(float, value)
    return red, green, blue


class Watched(Mapping[str, object]):
    """Settings that know which of them were asked for.

    Args:
        values: of all names; those that are mappings are watched, too.
    """

    def __init__(self, values: Section) -> None:
        self._values = {
            name: Watched(value) if isinstance(value, Mapping) else value for name, value in values.items()
        }
        self._asked: set[str] = set()

    def __getitem__(self, name: str) -> object:
        self._asked.add(name)
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def passed_over(self) -> dict[str, object]:
        """Those of `MATTERS` that nobody asked for, here and in the sections that describe a model."""
        names = [name for name in self._values if name in MATTERS and name not in self._asked]
        found = {name: self._values[name] for name in names if self._values[name] is not None}
        for name in DESCRIBING:
            inside = self._values.get(name)
            if isinstance(inside, Watched):
                found |= {f"{name}.{inner}": value for inner, value in inside.passed_over().items()}
        return found


def first_said(names: Iterable[str], sections: Iterable[Section]) -> dict[str, object]:
    """What sections say of these names; where two say the same, the first one counts."""
    found: dict[str, object] = {}
    for each in sections:
        found |= {name: each[name] for name in names if name in each and name not in found}
    return found


def require(settings: Section, allowed: Mapping[str, tuple[object, ...]]) -> None:
    """Refuses a setting with another value than those allowed for its name.

    Raises:
        ValueError: there is one; the message names it.
    """
    for name, values in allowed.items():
        value = settings.get(name, values[0])
        if not any(type(value) is type(each) and value == each for each in values):
            known = " or ".join(map(repr, values))
            raise ValueError(f"the settings ask for {name} {short(value)}, which no model here has: only {known}")


@dataclass(frozen=True)
class ViTSettings:
    """What settings say of a ViT; None where they say nothing.

    Attributes:
        heads: their number.
        size: (rows, columns) of the images that the position embedding belongs to, in pixels.
        epsilon: of the norms.
        shown: what the tensors show too, by its name in the settings: `width`, `depth` or `patch_size`, and
            the value.
    """

    heads: int | None
    size: tuple[int, int] | None
    epsilon: float | None
    shown: Mapping[str, tuple[str, int]]


SYNONYMS = {
    "heads": ("num_heads", "num_attention_heads", "n_heads"),
    "size": ("img_size", "image_size"),
    "epsilon": ("layer_norm_eps", "norm_eps", "eps"),
    "width": ("embed_dim", "hidden_size", "d_model"),
    "depth": ("depth", "num_hidden_layers", "n_layers"),
    "patch_size": ("patch_size",),
}
"""What timm, transformers and Segmenter call the same thing."""
ALLOWED = {
    "hidden_act": ("gelu", "gelu_python"),
    "act_layer": ("gelu", None),
    "norm_layer": ("layernorm", None),
    "mlp_layer": (None,),
    "block_fn": (None,),
    "embed_layer": (None,),
    "qk_norm": (False,),
    "qkv_bias": (True,),
    "proj_bias": (True,),
    "scale_attn_norm": (False,),
    "scale_mlp_norm": (False,),
    "pre_norm": (False,),
    "final_norm": (True, None),
    "class_token": (True,),
    "pos_embed": ("learn",),
    "in_chans": (3,),
    "num_channels": (3,),
    "qk_scale": (None,),
    "use_mask_token": (True, False),
}
"""What changes a ViT's results: the values that the ViT here has, the first one being what silence means."""
WINDOWS = ("depths", "window_size", "pretrained_window_sizes")
"""Of a Swin."""
PUBLISHED = ("mean", "std", "interpolation")
"""Of the images that weights were published for."""
RESIZING = ("interpolate_mode", "interpolate_antialias", "interpolate_offset")
"""Of a position embedding, in mmsegmentation's words and DINOv2's."""
MATTERS = frozenset(
    (*(name for names in SYNONYMS.values() for name in names), *ALLOWED, *WINDOWS, *PUBLISHED, *RESIZING)
)
"""Names of settings that change what a model computes, whatever the model: none of them is passed over."""
DESCRIBING = ("model_args", "pretrained_cfg", "backbone_config")
"""Sections of settings that describe a model."""
KNOWN = (
    *("MODEL", "model", *DESCRIBING, "vision_config", "net_kwargs", "architecture", "id2label", "mean", "std"),
    *("dataset_kwargs", "inference_kwargs", "depth_estimation_type", "backbone_out_indices", *sorted(MATTERS)),
)
"""Names of settings of which a file of settings must hold one."""


def vit_settings(*sections: Section) -> ViTSettings:
    """What these sections say of a ViT, the first one counting where two say the same.

    Raises:
        ValueError: a value is of another type or out of range, or asks for something that the ViT here has not.
    """
    merged = first_said((*ALLOWED, *(name for names in SYNONYMS.values() for name in names)), sections)
    require(merged, ALLOWED)
    found = {
        what: next((name for name in names if merged.get(name) is not None), None)
        for what, names in SYNONYMS.items()
    }
    heads, size, epsilon = (found[what] for what in ("heads", "size", "epsilon"))
    shown = {}
    for what in ("width", "depth", "patch_size"):
        name = found[what]
        sides = name and side_lengths(merged, name)
        if name and sides:
            rows, columns = sides
            if rows != columns:
                raise _expected(name, "one positive integer", merged[name])
            shown[name] = (what, rows)
    return ViTSettings(
        heads and integer(merged, heads),
        size and side_lengths(merged, size),
        epsilon and number(merged, epsilon),
        shown,
    )


def _is_finite(value: object) -> TypeGuard[float]:
    return (type(value) is int or type(value) is float) and abs(value) < 1e30 and math.isfinite(value)


def _expected(name: str, expected: str, value: object) -> ValueError:
    return ValueError(f"{name} in the settings must be {expected}, got {short(value)}")
