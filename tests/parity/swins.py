"""PyTorch Swin transformers with weights that hide nothing, and their weights under the official names."""

import re
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.encoder import Encoder

Tensors = dict[str, torch.Tensor]

DEPTHS, WIDTH, HEADS, WINDOW = (2, 2, 2, 2), 32, (2, 4, 8, 16), 4

TRANSFORMERS = (
    (r"^(swin\.)?(encoder\.)?", ""),
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.norm", "patch_embed.norm"),
    (r"^hidden_states_norms\.stage(\d)", lambda match: f"norm{int(match[1]) - 1}"),
    (r"\.attention\.(o_proj|output\.dense)", ".attn.proj"),
    (r"\.attention\.(relative_position_bias|self)\.", ".attn."),
    (r"continuous_position_bias_mlp", "cpb_mlp"),
    (r"layernorm_before", "norm1"),
    (r"layernorm_after", "norm2"),
    (r"\.intermediate\.dense", ".mlp.fc1"),
    (r"\.output\.dense", ".mlp.fc2"),
)
"""What transformers calls parts of a Swin, and what the official code does."""


def detection_names(model: torch.nn.Module) -> Tensors:
    """A backbone of transformers as detectors save it; V2's there has no norms of the outputs."""
    found, projections = {}, {}
    for name, tensor in [*model.state_dict().items(), *model.named_buffers()]:
        for theirs, official in TRANSFORMERS:
            name = re.sub(theirs, official, name)
        part = re.fullmatch(r"(.*\.att)(?:ention|n)\.(q|k|v)(?:uery|ey|alue|_proj)\.(weight|bias)", name)
        if part:
            projections.setdefault((f"{part[1]}n", part[3]), {})[part[2]] = tensor
        elif name not in ("layernorm.weight", "layernorm.bias"):
            found[name] = tensor
    for (block, leaf), parts in projections.items():
        if len(parts) == 3:
            found[f"{block}.qkv.{leaf}"] = torch.cat([parts[each] for each in "qkv"])
        else:
            found |= {f"{block}.{each}_bias": tensor for each, tensor in parts.items()}
    for number in range(len(DEPTHS)):
        found.setdefault(f"norm{number}.weight", torch.linspace(0.5, 1.5, WIDTH * 2**number))
        found.setdefault(f"norm{number}.bias", torch.linspace(-1, 1, WIDTH * 2**number))
    return {f"backbone.{name}": tensor for name, tensor in found.items()}


def classification_names(model: torch.nn.Module) -> Tensors:
    """timm's weights as Microsoft saved them, with the buffers: the merging stands at the end of a stage."""
    found = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"layers\.(\d)\.downsample", lambda match: f"layers.{int(match[1]) - 1}.downsample", name)
        found[name.replace("head.fc.", "head.")] = tensor
    for name, buffer in model.named_buffers():
        if name.endswith(("relative_position_index", "relative_coords_table", "attn_mask")):
            found[name] = buffer
    return found


def saved(tensors: Tensors, folder: Path) -> Path:
    """A checkpoint with these weights."""
    plain = {name: tensor.detach().as_subclass(torch.Tensor) for name, tensor in tensors.items()}
    torch.save({"model": plain}, folder / "official.pth")
    return folder / "official.pth"


def converted(source: Path, family: str) -> Encoder:
    """The encoder that a checkpoint becomes."""
    summary = convert(source, source.with_name("converted"))
    assert summary.family == family
    return hj.load(summary.target)


def normed(maps: list[torch.Tensor], tensors: Tensors) -> list[np.ndarray]:
    """Feature maps [B, C, H, W] as [B, H, W, C] after the norms of a detector."""
    return [
        functional.layer_norm(
            each.permute(0, 2, 3, 1),
            each.shape[1:2],
            tensors[f"backbone.norm{number}.weight"],
            tensors[f"backbone.norm{number}.bias"],
        ).numpy()
        for number, each in enumerate(maps)
    ]
