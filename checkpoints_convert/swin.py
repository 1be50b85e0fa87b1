"""Swin transformers as encoders, in the namings that their checkpoints use.

Source: microsoft/Swin-Transformer, models/swin_transformer.py and swin_transformer_v2.py; timm/models/
    swin_transformer.py and swin_transformer_v2.py; facebookresearch/Mask2Former,
    mask2former/modeling/backbone/swin.py, whose names mmdetection and detrex share.
"""

import re
from collections.abc import Callable, Mapping
from math import isqrt

import numpy as np

from checkpoints_convert.rules import Family, Row, Settings, Tensors, linear, patch_kernel, row, same, shape_of
from checkpoints_convert.vit import HEADS_DROPPED, IMAGENET_MEAN, IMAGENET_STD, normalisation

STAGES = 4
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
    for number, name in norms.items():
        table += _norm(f"backbone.norms.{number}", f"{prefix}{name}")
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
    return table.reshape(side, side, -1)


def config(tensors: Tensors, prefix: str = "", architecture: str | None = None) -> dict[str, object]:
    """The fields of a `SwinConfig` that show in the tensors' shapes.

    The window of a V2 shows in buffers only, which timm does not save; there it is part of the model's name.

    Args:
        tensors: the checkpoint.
        prefix: of all names.
        architecture: timm's name of the model.
    """
    width, _, patch_size, _ = shape_of(tensors, f"{prefix}patch_embed.proj.weight", axes=4)
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
    else:
        heads = shape_of(tensors, f"{prefix}{SCALE}", axes=3)[0]
        coordinates = [f"{each}0.attn.relative_coords_table" for each in stages]
        if all(name in tensors for name in coordinates):
            window = (shape_of(tensors, coordinates[0], axes=4)[1] + 1) // 2
            pretrained = [_unit_window(tensors[name]) for name in coordinates]
        else:
            window, pretrained = _named_windows(architecture, patch_size)
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


def _unit_window(coordinates: np.ndarray) -> int:
    """The side of the window in whose units a table of coordinates [1, 2 w - 1, 2 w - 1, 2] is."""
    largest = (8.0 ** float(coordinates.max()) - 1) / 8
    return round(coordinates.shape[1] // 2 / largest) + 1


def _named_windows(architecture: str | None, patch_size: int) -> tuple[int, list[int]]:
    """Window and pretrained windows of timm's swinv2_*_window12to16_192to256 and the like."""
    match = re.search(r"window(\d+)(?:to(\d+))?_(\d+)", architecture or "")
    if match is None:
        raise ValueError(
            "the window of a Swin V2 does not show in timm's tensors: put timm's config.json, whose architecture "
            f"names it, beside the checkpoint, or name it with --config; got {architecture or 'none'}"
        )
    first, last, size = match.groups()
    return int(last or first), [min(int(first), int(size) // patch_size // 2**stage) for stage in range(STAGES)]


def _classifier(tensors: Tensors, settings: Settings) -> dict[str, object]:
    """An `EncoderConfig` of an ImageNet classifier, whose windows shrink to small maps."""
    architecture = settings.get("architecture")
    backbone = config(tensors, architecture=architecture if isinstance(architecture, str) else None)
    backbone |= {"shrink_windows": True, "stage_norms": False}
    mean, std = normalisation(settings)
    preprocessing = {
        "size": _trained_size(tensors, settings, backbone),
        "multiple": 32,
        "interpolation": "bicubic",
        "mean": mean or IMAGENET_MEAN,
        "std": std or IMAGENET_STD,
    }
    return {"backbone": backbone, "preprocessing": preprocessing}


def _trained_size(tensors: Tensors, settings: Settings, backbone: Mapping[str, object]) -> int:
    """The side of the images in training: timm's settings say it, or a mask has as many windows as the map."""
    seen = settings.get("pretrained_cfg")
    if isinstance(seen, dict) and isinstance(seen.get("input_size"), list):
        return seen["input_size"][-1]
    mask = tensors.get("layers.0.blocks.1.attn_mask")
    windows = 8 if mask is None else isqrt(len(mask))
    return windows * backbone["window"] * backbone["patch_size"]


def _detector(prefix: str) -> Callable[[Tensors, Settings], dict[str, object]]:
    def configure(tensors: Tensors, settings: Settings) -> dict[str, object]:
        return {
            "backbone": config(tensors, prefix),
            "preprocessing": {
                "size": 800,
                "multiple": 32,
                "resize": "shortest",
                "mean": IMAGENET_MEAN,
                "std": IMAGENET_STD,
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
    ),
    Family(
        name="swin-timm",
        model="encoder",
        fits=_fits("layers.1.downsample.reduction.weight", "layers.0.downsample.reduction.weight"),
        configure=_classifier,
        table=rows(merging_stage=1, norms={0: "norm"}),
        ignored={**BUFFERS, **HEADS_DROPPED},
        settings_file="config.json",
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
            ignored={**BUFFERS, r"(?!backbone\.).*": "head: an encoder ends with its features"},
        )
        for prefix in ("", "backbone.")
    ),
)
"""Encoders: Microsoft's classifiers, timm's, and the backbones of Mask2Former and of other detectors."""
