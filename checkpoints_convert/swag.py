"""SWAG's checkpoints: the official ones, and torchvision's of the same models.

Source: facebookresearch/SWAG, models/vision_transformer.py and imagenet_1k_eval.py; pytorch/vision,
    torchvision/models/vision_transformer.py (IMAGENET1K_SWAG_E2E_V1, and the names of older files).
"""

from collections.abc import Callable

import numpy as np

from checkpoints_convert.labels import class_fields
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    OfModel,
    Tensors,
    linear,
    position_grid,
    row,
    same,
    shape_of,
    special_tokens,
)
from checkpoints_convert.vit import IMAGENET_MEAN, IMAGENET_STD, Names, vit_sections

SUPERVISED_SIDE, SUPERVISED_PATCHES = 224, (16, 32)
"""Of torchvision's own ViTs: fine-tuned SWAG sees larger images."""


def _names(layer: str) -> Names:
    """What both call the parts of a ViT; `layer` is what stands before a block's number."""
    block = f"encoder.layers.{layer}*."
    return Names(
        patches="conv_proj",
        positions="encoder.pos_embedding",
        special=("class_token",),
        norm1=f"{block}ln_1",
        qkv=(f"{block}self_attention.in_proj_",),
        projection=f"{block}self_attention.out_proj",
        norm2=f"{block}ln_2",
        expand=f"{block}mlp.linear_1|{block}mlp.0",
        contract=f"{block}mlp.linear_2|{block}mlp.3",
        norm="encoder.ln",
    )


OFFICIAL, TORCHVISION = _names("layer_"), _names("encoder_layer_")


def _config(names: Names, head: str, tensors: Tensors, given: Given) -> Fields:
    """A `SwagConfig`, from position embeddings [1, P, C]."""
    classes, _ = shape_of(tensors, f"{head}.weight", axes=2)
    backbone: Fields = {
        **names.config(tensors, given, *vit_sections(given.settings)),
        "position_resize": "bicubic-align-corners",
    }
    patch_size, (rows, columns) = backbone["patch_size"], backbone["position_grid"]
    if rows != columns:
        raise ValueError(f"a SWAG model must see square images, got a position grid of {rows} x {columns}")
    return {
        "backbone": backbone,
        **class_fields(classes, given),
        "preprocessing": {
            "size": rows * patch_size,
            "multiple": patch_size,
            "resize": "crop",
            "interpolation": "bicubic",
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
        },
    }


def _official(tensors: Tensors, given: Given) -> Fields:
    positions = OFFICIAL.positions
    shape_of(tensors, positions, axes=3)
    return _config(OFFICIAL, "head.layers.head", {**tensors, positions: tensors[positions].swapaxes(0, 1)}, given)


def _torchvision(tensors: Tensors, given: Given) -> Fields:
    config = _config(TORCHVISION, "heads.head", tensors, given)
    side, patch_size = config["preprocessing"]["size"], config["backbone"]["patch_size"]
    if side == SUPERVISED_SIDE and patch_size in SUPERVISED_PATCHES:
        raise ValueError(
            f"expected a SWAG model that was fine-tuned, for larger images, got one for {side} pixels: "
            "torchvision has other ViTs of that size under the same names, which need another preprocessing"
        )
    return config


def _positions_first(build: Callable[..., np.ndarray]) -> OfModel:
    """The same for position embeddings [P, 1, C] instead of [1, P, C]."""
    return OfModel(lambda config, positions, *tokens: build(config, positions.swapaxes(0, 1), *tokens))


FAMILIES = (
    Family(
        name="swag",
        model="swag",
        fits=lambda tensors, settings: {"class_token", "encoder.layers.layer_0.ln_1.weight"} <= tensors.keys(),
        configure=_official,
        table=(
            *OFFICIAL.rows(embeddings=False),
            row(
                "backbone.special_tokens",
                (OFFICIAL.positions, *OFFICIAL.special),
                _positions_first(special_tokens),
            ),
            row("backbone.position_embedding", OFFICIAL.positions, _positions_first(position_grid)),
            row("head.kernel", "head.layers.head.weight", linear),
            row("head.bias", "head.layers.head.bias", same),
        ),
    ),
    Family(
        name="swag-torchvision",
        model="swag",
        fits=lambda tensors, settings: (
            {"class_token", "encoder.layers.encoder_layer_0.ln_1.weight"} <= tensors.keys()
        ),
        configure=_torchvision,
        table=(
            *TORCHVISION.rows(),
            row("head.kernel", "heads.head.weight", linear),
            row("head.bias", "heads.head.bias", same),
        ),
    ),
)
