"""SAMs of transformers with random weights, and their weights under the official names."""

import re
from pathlib import Path

import torch
import transformers

from tests.parity.vits import randomize

WIDTH, HEADS, DEPTH, WINDOW, GLOBAL, PATCH = 24, 2, 3, 3, (1,), 8
DECODER, DECODER_HEADS = 16, 2


def build(size: int = 64, seed: int = 0, *, epsilon: float = 1e-5) -> torch.nn.Module:
    """A small one for square images of `size` pixels; every parameter is random."""
    vision = transformers.SamVisionConfig(
        hidden_size=WIDTH,
        output_channels=DECODER,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=size,
        patch_size=PATCH,
        mlp_ratio=2.0,
        window_size=WINDOW,
        global_attn_indexes=list(GLOBAL),
        num_pos_feats=DECODER // 2,
    )
    prompts = transformers.SamPromptEncoderConfig(
        hidden_size=DECODER, image_size=size, patch_size=PATCH, mask_input_channels=8
    )
    decoder = transformers.SamMaskDecoderConfig(
        hidden_size=DECODER,
        mlp_dim=20,
        num_attention_heads=DECODER_HEADS,
        iou_head_hidden_dim=12,
        layer_norm_eps=epsilon,
    )
    config = transformers.SamConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=prompts.to_dict(),
        mask_decoder_config=decoder.to_dict(),
    )
    model = randomize(transformers.SamModel._from_config(config, attn_implementation="eager"), seed)
    model.prompt_encoder.shared_embedding.positional_embedding = model.shared_image_embedding.positional_embedding
    return model


OFFICIAL = (
    (r"^vision_encoder\.layers", "image_encoder.blocks"),
    (r"^vision_encoder\.patch_embed\.projection", "image_encoder.patch_embed.proj"),
    (r"^vision_encoder\.neck\.conv1", "image_encoder.neck.0"),
    (r"^vision_encoder\.neck\.layer_norm1", "image_encoder.neck.1"),
    (r"^vision_encoder\.neck\.conv2", "image_encoder.neck.2"),
    (r"^vision_encoder\.neck\.layer_norm2", "image_encoder.neck.3"),
    (r"^vision_encoder", "image_encoder"),
    (
        r"^prompt_encoder\.shared_embedding\.positional_embedding",
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
    ),
    (r"encoder\.point_embed\.", "encoder.point_embeddings."),
    (r"mask_embed\.conv1", "mask_downscaling.0"),
    (r"mask_embed\.layer_norm1", "mask_downscaling.1"),
    (r"mask_embed\.conv2", "mask_downscaling.3"),
    (r"mask_embed\.layer_norm2", "mask_downscaling.4"),
    (r"mask_embed\.conv3", "mask_downscaling.6"),
    (r"upscale_conv1", "output_upscaling.0"),
    (r"upscale_layer_norm", "output_upscaling.1"),
    (r"upscale_conv2", "output_upscaling.3"),
    (r"((?:mlps\.\d|prediction_head))\.layers\.0", r"\1.layers.1"),
    (r"proj_in", "layers.0"),
    (r"proj_out", "layers.2"),
    (r"layer_norm(\d|_final_attn)", r"norm\1"),
)


def official_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as segment-anything saved them."""
    found = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("shared_image_embedding"):
            continue
        for theirs, official in OFFICIAL:
            name = re.sub(theirs, official, name)
        found[name] = tensor.clone()
    return found


def saved_folder(model: torch.nn.Module, folder: Path) -> Path:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder)
    return folder
