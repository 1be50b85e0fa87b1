"""Swin transformers as encoders, with the tensor names of their code bases.

Source: microsoft/Swin-Transformer, models/swin_transformer.py and swin_transformer_v2.py; timm/models/
    swin_transformer.py and swin_transformer_v2.py; facebookresearch/Mask2Former,
    mask2former/modeling/backbone/swin.py, whose names mmdetection and detrex share.
"""

import re
from collections.abc import Callable, Mapping
from math import isqrt

import numpy as np

from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    Row,
    Settings,
    Tensors,
    linear,
    patch_kernel,
    row,
    same,
    shape_of,
)
from checkpoints_convert.settings import (
    SYNONYMS,
    WINDOWS,
    first_said,
    integers,
    number,
    require,
    side_lengths,
    text,
)
from checkpoints_convert.vit import (
    HEADS_DROPPED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    interpolation,
    model_arguments,
    normalisation,
    trained_size,
)
from hourglass_jax.backbones.swin import EPSILON

STAGES = 4
REST = r"(?!backbone\.).*"
"""What a detector has besides its backbone."""
BUFFERS = {
    r"(.*\.)?attn\.(relative_position_index|relative_coords_table)": "follows from the window's side",
    r"(.*\.)?attn_mask": "follows from the size of the image",
}
BLOCK = "layers.0.blocks.0."
TABLE, SCALE = f"{BLOCK}attn.relative_position_bias_table", f"{BLOCK}attn.logit_scale"


def rows(prefix: str = "", *, merging_stage: int, norms: Mapping[int, str]) -> tuple[Row, ...]:
    """The rows of a Swin.

    Args:
        prefix: of all names in the checkpoint.
        merging_stage: 0 where the merging stands at the end of a stage, 1 where it is at the start of the next.
        norms: our number of an output's norm -> the checkpoint's name of it.
    """
    block, ours = f"{prefix}layers.*.blocks.*.", "backbone.stages.*.blocks.*."
    table = [
        row("backbone.patch_embedding.projection.kernel", f"{prefix}patch_embed.proj.weight", patch_kernel),
        row("backbone.patch_embedding.projection.bias", f"{prefix}patch_embed.proj.bias", same),
        *_norm("backbone.patch_norm", f"{prefix}patch_embed.norm"),
        *_norm(f"{ours}norm1", f"{block}norm1"),
        row(f"{ours}attention.qkv.kernel", f"{block}attn.qkv.weight", linear),
        row(
            f"{ours}attention.qkv.bias",
            (f"{block}attn.qkv.bias|{block}attn.q_bias", f"{block}attn.v_bias?"),
            qkv_bias,
        ),
        *_linear(f"{ours}attention.projection", f"{block}attn.proj"),
        row(f"{ours}attention.position_bias.table", f"{block}attn.relative_position_bias_table", square_table),
        row(f"{ours}attention.logit_scale", f"{block}attn.logit_scale", np.ravel),
        *_linear(f"{ours}attention.position_bias.expand", f"{block}attn.cpb_mlp.0"),
        row(f"{ours}attention.position_bias.contract.kernel", f"{block}attn.cpb_mlp.2.weight", linear),
        *_norm(f"{ours}norm2", f"{block}norm2"),
        *_linear(f"{ours}mlp.expand", f"{block}mlp.fc1"),
        *_linear(f"{ours}mlp.contract", f"{block}mlp.fc2"),
    ]
    for stage in range(STAGES - 1):
        merging = f"{prefix}layers.{stage + merging_stage}.downsample."
        table += [
            *_norm(f"backbone.stages.{stage}.merging.norm", f"{merging}norm"),
            row(f"backbone.stages.{stage}.merging.reduction.kernel", f"{merging}reduction.weight", linear),
        ]
    for stage, name in norms.items():
        table += _norm(f"backbone.norms.{stage}", f"{prefix}{name}")
    return tuple(table)


def _norm(target: str, source: str) -> tuple[Row, Row]:
    return row(f"{target}.scale", f"{source}.weight", same), row(f"{target}.bias", f"{source}.bias", same)


def _linear(target: str, source: str) -> tuple[Row, Row]:
    return row(f"{target}.kernel", f"{source}.weight", linear), row(f"{target}.bias", f"{source}.bias", same)


def qkv_bias(first: np.ndarray, value: np.ndarray | None = None) -> np.ndarray:
    """The bias of queries, keys and values: one tensor (V1), or those of queries and values alone (V2)."""
    return first if value is None else np.concatenate([first, np.zeros_like(first), value])


def square_table(table: np.ndarray) -> np.ndarray:
    """A bias table [side^2, heads] as [side, side, heads]."""
    side = isqrt(len(table))
    return table.reshape(side, side, table.shape[-1])


def config(tensors: Tensors, given: Given, prefix: str = "") -> Fields:
    """The fields of a `SwinConfig`: what shows in the tensors' shapes, and what settings say, timm's or others'.

    The window of a V2 shows in buffers only, which timm does not save; there it is part of the model's name.

    Args:
        tensors: the checkpoint.
        given: what is known besides.
        prefix: of all names.

    Raises:
        ValueError: a setting is of another model or none that is here, or something shows nowhere.
    """
    arguments = _arguments(given.settings)
    width, _, patch_size, columns = shape_of(tensors, f"{prefix}patch_embed.proj.weight", axes=4)
    if patch_size != columns:
        raise ValueError(f"patches must be square, got {patch_size} x {columns} pixels")
    hidden = shape_of(tensors, f"{prefix}{BLOCK}mlp.fc1.weight", axes=2)[0]
    stages = [f"{prefix}layers.{number}.blocks." for number in range(STAGES)]
    depths = [sum(re.fullmatch(re.escape(each) + r"\d+\.norm1\.weight", name) is not None for name in tensors)
              for each in stages]  # fmt: skip
    version = 2 if f"{prefix}{SCALE}" in tensors else 1
    if version == 1:
        heads = shape_of(tensors, f"{prefix}{TABLE}", axes=2)[1]
        pretrained = [
            (isqrt(shape_of(tensors, f"{each}0.attn.relative_position_bias_table", axes=2)[0]) + 1) // 2
            for each in stages
        ]
        window = pretrained[0]
        if max(pretrained) > window:
            raise ValueError(f"expected windows of one size in all stages, got {pretrained}")
        _check_window(arguments, window)
    else:
        heads = shape_of(tensors, f"{prefix}{SCALE}", axes=3)[0]
        coordinates = [f"{each}0.attn.relative_coords_table" for each in stages]
        if all(name in tensors for name in coordinates):
            window = (shape_of(tensors, coordinates[0], axes=4)[1] + 1) // 2
            pretrained = [_unit_window(tensors[name]) for name in coordinates]
            _check_window(arguments, window)
        else:
            window, pretrained = _said_windows(given, arguments, patch_size)
    if width % heads:
        raise ValueError(f"width must be a multiple of heads, got width {width} and {heads} heads")
    shown = {
        "embed_dim": (width,),
        "patch_size": (patch_size,),
        "depths": tuple(depths),
        "num_heads": tuple(heads * 2**stage for stage in range(STAGES)),
        "hidden_size": (width * 2 ** (STAGES - 1),),
    }
    for name, got in shown.items():
        value = arguments.get(name)
        said = integers({name: [value] if type(value) is int else value}, name)
        if said not in (None, got):
            raise ValueError(f"the settings are of another model: they say {name} {said}, the checkpoint has {got}")
    if given.heads not in (None, heads) or given.grid is not None:
        raise ValueError(
            f"a Swin shows its heads, here {heads}, and has no position grid: leave --heads and --grid out"
        )
    return {
        "width": width,
        "depths": depths,
        "head_width": width // heads,
        "window": window,
        "version": version,
        "pretrained_windows": pretrained,
        "patch_size": patch_size,
        "mlp_ratio": hidden / width,
    }


MODEL_ARGUMENTS = frozenset((
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depths", "num_heads"),
    *("head_dim", "window_size", "pretrained_window_sizes", "always_partition", "strict_img_size", "mlp_ratio"),
    *("qkv_bias", "drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "embed_layer", "norm_layer"),
    *("act_layer", "weight_init", "pretrained"),
))  # fmt: skip
"""Arguments of timm's Swins whose meaning is known here: shown by tensors, checked, or of training only."""
ALLOWED = {
    "always_partition": (False,),
    "in_chans": (3,),
    "qkv_bias": (True,),
    "act_layer": ("gelu", None),
    "norm_layer": ("layernorm", None),
    "embed_layer": (None,),
    "head_dim": (None,),
    "num_channels": (3,),
    "hidden_act": ("gelu", "gelu_python"),
    "use_absolute_embeddings": (False,),
}
"""What changes a Swin's results: the values that the one here has, the first one being what silence means."""
EPSILONS = SYNONYMS["epsilon"]


def _arguments(settings: Settings) -> Settings:
    """What settings say of a Swin: timm's arguments, if there are any, and the same names among the settings.

    Raises:
        ValueError: an argument is not known, or asks for something that the Swin here has not.
    """
    names = (
        *ALLOWED,
        *WINDOWS,
        *EPSILONS,
        *SYNONYMS["size"],
        "num_heads",
        "embed_dim",
        "patch_size",
        "hidden_size",
    )
    found = first_said(names, (model_arguments(settings, MODEL_ARGUMENTS), settings))
    require(found, ALLOWED)
    for name in EPSILONS:
        if number(found, name) not in (None, EPSILON):
            raise ValueError(f"the settings ask for {name} {found[name]}, which no Swin here has: only {EPSILON}")
    return found


def _size(arguments: Settings) -> tuple[int, int] | None:
    """(rows, columns) of the images of training in a Swin's arguments."""
    return next((sides for name in SYNONYMS["size"] if (sides := side_lengths(arguments, name))), None)


def _window(arguments: Settings) -> int | None:
    """The side of the windows in timm's arguments."""
    sides = side_lengths(arguments, "window_size")
    if sides and sides[0] != sides[1]:
        raise ValueError(f"window_size in the settings must be square, got {sides}")
    return sides and sides[0]


def _check_window(arguments: Settings, window: int) -> None:
    """A window that is larger than the first stage's map has a smaller table."""
    said = _window(arguments)
    if said is not None and said < window:
        raise ValueError(
            f"the settings are of another model: they say window_size {said}, the checkpoint has {window}"
        )


def _unit_window(coordinates: np.ndarray) -> int:
    """The side of the window in whose units a table of coordinates [1, 2 w - 1, 2 w - 1, 2] is."""
    largest = (8.0 ** float(coordinates.max()) - 1) / 8
    if not 0 < largest < 1e6:
        raise ValueError("relative_coords_table must hold coordinates of windows of several tokens")
    return round(coordinates.shape[1] // 2 / largest) + 1


def _said_windows(given: Given, arguments: Settings, patch_size: int) -> tuple[int, list[int]]:
    """Window and pretrained windows in timm's arguments, or of swinv2_*_window12to16_192to256 and the like."""
    architecture = text(given.settings, "architecture")
    match = re.search(r"window(\d{1,4})(?:to(\d{1,4}))?_(\d{1,5})", architecture or "")
    window = _window(arguments)
    if match is not None:
        first, last, size = match.groups()
        window = window or int(last or first)
    elif window is not None:
        first, last, size = window, None, None
    else:
        raise ValueError(
            "the window of a Swin V2 does not show in timm's tensors: put timm's config.json, whose architecture "
            f"names it, beside the checkpoint, or name it with --config; got {(architecture or 'none')[:60]}"
        )
    units = integers(arguments, "pretrained_window_sizes")
    if units is not None and any(units):
        if len(units) != STAGES or not all(units):
            raise ValueError(f"pretrained_window_sizes must be {STAGES} sides of windows, got {units}")
        return window, list(units)
    if last is None:
        first, sides = window, _size(arguments) or trained_size(given.settings)
        size = min(sides) if sides else size
    if size is None:
        raise ValueError("the settings of a Swin V2 must say img_size, to which its windows are fitted")
    return window, [max(1, min(int(first), int(size) // patch_size // 2**stage)) for stage in range(STAGES)]


def _classifier(tensors: Tensors, given: Given) -> Fields:
    """An `EncoderConfig` of an ImageNet classifier, whose windows shrink to small maps."""
    backbone = config(tensors, given)
    backbone |= {"shrink_windows": True, "stage_norms": False}
    mean, std = normalisation(given.settings)
    rows, columns = _trained_size(tensors, given.settings, backbone)
    preprocessing = {
        "size": rows if rows == columns else (rows, columns),
        "multiple": 32,
        "resize": "longest" if rows == columns else "square",
        "interpolation": interpolation(given.settings) or "bicubic",
        "mean": mean or IMAGENET_MEAN,
        "std": std or IMAGENET_STD,
    }
    return {"backbone": backbone, "preprocessing": preprocessing}


def _trained_size(tensors: Tensors, settings: Settings, backbone: Fields) -> tuple[int, int]:
    """(rows, columns) of images in training: timm's settings say them, or a mask has as many windows as the map."""
    said = _size(_arguments(settings)) or trained_size(settings)
    if said:
        return said
    mask = tensors.get("layers.0.blocks.1.attn_mask")
    windows = 8 if mask is None or not mask.ndim else isqrt(len(mask))
    return (windows * backbone["window"] * backbone["patch_size"],) * 2


def _detector(prefix: str) -> Callable[[Tensors, Given], Fields]:
    def configure(tensors: Tensors, given: Given) -> Fields:
        mean, std = normalisation(given.settings)
        return {
            "backbone": config(tensors, given, prefix),
            "preprocessing": {
                "size": 800,
                "multiple": 32,
                "resize": "shortest",
                "mean": mean or IMAGENET_MEAN,
                "std": std or IMAGENET_STD,
            },
        }

    return configure


def _fits(present: str, absent: str) -> Callable[[Tensors, Settings], bool]:
    """Whether a Swin's checkpoint has one tensor and not another."""

    def fits(tensors: Tensors, settings: Settings) -> bool:
        return f"{BLOCK}attn.qkv.weight" in tensors and present in tensors and absent not in tensors

    return fits


FAMILIES = (
    Family(
        name="swin",
        model="encoder",
        fits=_fits("layers.0.downsample.reduction.weight", "norm0.weight"),
        configure=_classifier,
        table=rows(merging_stage=0, norms={0: "norm"}),
        ignored={**BUFFERS, **HEADS_DROPPED},
        settings_files=("*.yaml", "config.json"),
    ),
    Family(
        name="swin-timm",
        model="encoder",
        fits=_fits("layers.1.downsample.reduction.weight", "layers.0.downsample.reduction.weight"),
        configure=_classifier,
        table=rows(merging_stage=1, norms={0: "norm"}),
        ignored={**BUFFERS, **HEADS_DROPPED},
        settings_files=("config.json",),
    ),
    *(
        Family(
            name="swin-detectron2",
            model="encoder",
            fits=lambda tensors, settings, prefix=prefix: (
                {f"{prefix}{BLOCK}attn.qkv.weight", f"{prefix}norm0.weight"} <= tensors.keys()
            ),
            configure=_detector(prefix),
            table=rows(prefix, merging_stage=0, norms={number: f"norm{number}" for number in range(STAGES)}),
            ignored={**BUFFERS, REST: "head: an encoder ends with its features"},
            rest=REST if prefix else None,
            settings_files=("*.py",),
        )
        for prefix in ("", "backbone.")
    ),
)
"""Encoders: Microsoft's classifiers, timm's, and the backbones of Mask2Former and of other detectors."""
