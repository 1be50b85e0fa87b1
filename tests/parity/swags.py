"""SWAG in PyTorch: torchvision's model of any image size, its official names, and the hourglass in it.

JAX is not imported, so that the benchmark can measure PyTorch alone.

Source: facebookresearch/SWAG, models/vision_transformer.py (names, and how the position embedding is resized);
Expedit-SWAG, models/hourglass_vit.py (the clusters are not reconstructed).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch.nn import functional
from torchvision.models.vision_transformer import VisionTransformer

if TYPE_CHECKING:
    from hourglass_jax import Hourglass

Grid = tuple[int, int]
Cluster = Callable[[torch.Tensor, Grid], torch.Tensor]
"""Tokens [B, H*W, C] of a grid to clusters [B, h*w, C]."""
Reconstruct = Callable[..., torch.Tensor]
"""refined [B, h*w, C], tokens= and clusters= of before the refinement to [B, H*W, C]."""


def official_names(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """torchvision's tensors as facebookresearch/SWAG calls and lays them out."""
    renamed = {
        name.replace("encoder_layer_", "layer_")
        .replace("mlp.0.", "mlp.linear_1.")
        .replace("mlp.3.", "mlp.linear_2.")
        .replace("heads.head.", "head.layers.head."): tensor
        for name, tensor in tensors.items()
    }
    return renamed | {"encoder.pos_embedding": tensors["encoder.pos_embedding"].transpose(0, 1).contiguous()}


def torch_logits(
    model: VisionTransformer,
    images: torch.Tensor,
    plan: Hourglass | None = None,
    *,
    cluster: Cluster | None = None,
    reconstruct: Reconstruct | None = None,
) -> torch.Tensor:
    """The logits of images of any size, [B, 3, rows, columns] to [B, classes], under a plan with alpha and beta.

    Args:
        model: in which everything but the position embedding and the clusters is torchvision's own.
        images: normalised.
        plan: an hourglass; any object with its alpha and beta.
        cluster: runs before block alpha.
        reconstruct: runs after block alpha + beta, if beta is a number.
    """
    grid = tuple(side // model.patch_size for side in images.shape[2:])
    tokens = model.conv_proj(images).flatten(2).transpose(1, 2)
    special = model.class_token.expand(len(images), -1, -1)
    x = torch.cat([special, tokens], dim=1) + positions(model, grid)
    end = None if plan is None or plan.beta is None else plan.alpha + plan.beta
    z = s = None
    for index, block in enumerate(model.encoder.layers):
        if plan is not None and index == plan.alpha:
            z = x[:, 1:]
            s = cluster(z, grid)
            x = torch.cat([x[:, :1], s], dim=1)
        if index == end:
            x = torch.cat([x[:, :1], reconstruct(x[:, 1:], tokens=z, clusters=s)], dim=1)
        x = block(x)
    return model.heads(model.encoder.ln(x)[:, 0])


def positions(model: VisionTransformer, grid: Grid) -> torch.Tensor:
    """The position embedding [1, 1 + H*W, C] for a grid, as the official loader resizes it."""
    stored = model.encoder.pos_embedding
    side = model.image_size // model.patch_size
    if grid == (side, side):
        return stored
    image = stored[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    resized = functional.interpolate(image, size=grid, mode="bicubic", align_corners=True)
    return torch.cat([stored[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
