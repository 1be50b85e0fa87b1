"""Mask2Formers of transformers with random weights, and their weights under the official names."""

import re
from pathlib import Path

import torch
import transformers

from tests.parity.resnets import detectron2_names, randomize_norms
from tests.parity.swins import Tensors, detection_names
from tests.parity.vits import randomize

WIDTH, QUERIES, CLASSES, HEADS = 32, 7, 5, 4


def swin() -> transformers.SwinConfig:
    """Of a small Swin."""
    return transformers.SwinConfig(
        embed_dim=16,
        depths=(1, 2, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        image_size=128,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


def build(seed: int = 0, *, backbone: transformers.PretrainedConfig | None = None) -> torch.nn.Module:
    """A small one: three layers of queries, two of the pixel decoder; every parameter is random."""
    config = transformers.Mask2FormerConfig(
        backbone_config=swin() if backbone is None else backbone,
        feature_size=WIDTH,
        mask_feature_size=WIDTH,
        hidden_dim=WIDTH,
        encoder_feedforward_dim=48,
        dim_feedforward=40,
        encoder_layers=2,
        decoder_layers=4,
        num_attention_heads=HEADS,
        num_queries=QUERIES,
        num_labels=CLASSES,
    )
    return randomize_norms(randomize(transformers.Mask2FormerForUniversalSegmentation(config), seed))


LAYER = r"^model\.transformer_module\.decoder\.layers\.(\d+)\."
PREDICTOR = "sem_seg_head.predictor."
OFFICIAL = (
    (r"^model\.pixel_level_module\.decoder\.encoder\.", "sem_seg_head.pixel_decoder.transformer.encoder."),
    (r"^model\.pixel_level_module\.decoder\.level_embed", "sem_seg_head.pixel_decoder.transformer.level_embed"),
    (r"^model\.pixel_level_module\.decoder\.", "sem_seg_head.pixel_decoder."),
    (r"input_projections", "input_proj"),
    (r"(adapter_1|layer_1)\.0", r"\1"),
    (r"(adapter_1|layer_1)\.1", r"\1.norm"),
    (r"mask_projection", "mask_features"),
    (r"(pixel_decoder.*)self_attn_layer_norm", r"\1norm1"),
    (r"(pixel_decoder.*)final_layer_norm", r"\1norm2"),
    (r"(pixel_decoder.*)fc(\d)", r"\1linear\2"),
    (LAYER + r"cross_attn_layer_norm", PREDICTOR + r"transformer_cross_attention_layers.\1.norm"),
    (LAYER + r"cross_attn", PREDICTOR + r"transformer_cross_attention_layers.\1.multihead_attn"),
    (LAYER + r"self_attn_layer_norm", PREDICTOR + r"transformer_self_attention_layers.\1.norm"),
    (LAYER + r"self_attn", PREDICTOR + r"transformer_self_attention_layers.\1.self_attn"),
    (LAYER + r"final_layer_norm", PREDICTOR + r"transformer_ffn_layers.\1.norm"),
    (LAYER + r"fc(\d)", PREDICTOR + r"transformer_ffn_layers.\1.linear\2"),
    (r"^model\.transformer_module\.queries_features", f"{PREDICTOR}static_query"),
    (r"^model\.transformer_module\.queries_embedder", f"{PREDICTOR}query_embed"),
    (r"^model\.transformer_module\.level_embed", f"{PREDICTOR}level_embed"),
    (r"^model\.transformer_module\.decoder\.layernorm", f"{PREDICTOR}decoder_norm"),
    (
        r"^model\.transformer_module\.decoder\.mask_predictor\.mask_embedder\.(\d)\.0",
        PREDICTOR + r"mask_embed.layers.\1",
    ),
    (r"^class_predictor", f"{PREDICTOR}class_embed"),
)


def official_names(model: torch.nn.Module) -> Tensors:
    """The weights as detectron2 saved them, the queries by their name in the zoo's files."""
    encoder = model.model.pixel_level_module.encoder
    if encoder.config.model_type == "swin":
        found = detection_names(encoder)
    else:
        found = detectron2_names(encoder.state_dict(), "backbone.")
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if "pixel_level_module.encoder." in name:
            continue
        for theirs, official in OFFICIAL:
            name = re.sub(theirs, official, name)
        split = re.fullmatch(r"(.*self_attn\.)([qkv])_proj\.(weight|bias)", name)
        if split:
            parts.setdefault(f"{split[1]}in_proj_{split[3]}", {})[split[2]] = tensor
        else:
            found[name] = tensor
    return found | {name: torch.cat([three[each] for each in "qkv"]) for name, three in parts.items()}


def saved_folder(model: torch.nn.Module, folder: Path) -> Path:
    """What `save_pretrained` writes."""
    model.save_pretrained(folder)
    return folder
