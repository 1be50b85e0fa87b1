"""Segmenter in PyTorch: the model, its files and its sliding windows, equivalent to the official code.

Attention is not fused and nothing is compiled, as there. JAX is not imported, so that the benchmark can weigh
PyTorch alone.

Source: rstrudel/segmenter, segm/model/{segmenter,decoder,vit,blocks,utils}.py, segm/train.py and segm/inference.py;
for the hourglass, Expedit-Segmenter, mmseg/models/backbones/hourglass_vit.py and
mmseg/models/segmentors/encoder_decoder.py; for its names, tools/prepocess_ckpt.py.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import yaml
from torch import nn
from torch.nn import functional

from tests.parity.hourglasses import Grid, torch_clusters, torch_tokens

if TYPE_CHECKING:
    from hourglass_jax import Hourglass

IMAGENET_CLASSES = 1000
DECODER_HEAD_WIDTH = 64
NORMALIZATIONS = {
    "vit": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "deit": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Name -> mean and standard deviation."""
MMSEGMENTATION = (
    (r"encoder\.(cls_token|pos_embed)", r"backbone.\1"),
    (r"encoder\.patch_embed\.proj\.", "backbone.patch_embed.projection."),
    (r"encoder\.blocks\.(\d+)\.norm([12])\.", r"backbone.layers.\1.ln\2."),
    (r"encoder\.blocks\.(\d+)\.attn\.qkv\.", r"backbone.layers.\1.attn.attn.in_proj_"),
    (r"encoder\.blocks\.(\d+)\.attn\.proj\.", r"backbone.layers.\1.attn.attn.out_proj."),
    (r"encoder\.blocks\.(\d+)\.mlp\.fc1\.", r"backbone.layers.\1.ffn.layers.0.0."),
    (r"encoder\.blocks\.(\d+)\.mlp\.fc2\.", r"backbone.layers.\1.ffn.layers.1."),
    (r"encoder\.norm\.", "backbone.ln1."),
    (r"decoder\.", "decode_head."),
)
"""How names begin in the official Segmenter -> in mmsegmentation."""


Window = tuple[int, int]
"""Size and stride of sliding windows."""


@dataclass(frozen=True)
class Net:
    """What shapes a Segmenter, in the words of `net_kwargs` in variant.yml.

    Attributes:
        d_model: channels of a token.
        n_layers: blocks of the encoder.
        n_heads: of the encoder.
        n_cls: classes.
        image_size: of training, whose grid the position embedding has.
        patch_size: side of a patch in pixels.
        distilled: whether there is a distillation token, as in DeiT.
        decoder: "mask_transformer" or "linear".
        decoder_layers: blocks of the mask transformer.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_cls: int
    image_size: Grid
    patch_size: int = 16
    distilled: bool = False
    decoder: Literal["mask_transformer", "linear"] = "mask_transformer"
    decoder_layers: int = 2


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = ((q @ k.transpose(2, 3)) * q.shape[3] ** -0.5).softmax(dim=3)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.mlp = FeedForward(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbedding(nn.Module):
    def __init__(self, patch_size: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Encoder(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        width = net.d_model
        self.patch_size = net.patch_size
        self.grid = tuple(side // net.patch_size for side in net.image_size)
        self.specials = 1 + net.distilled
        self.patch_embed = PatchEmbedding(net.patch_size, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        if net.distilled:
            self.dist_token = nn.Parameter(torch.zeros(1, 1, width))
            self.head_dist = nn.Linear(width, IMAGENET_CLASSES)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.grid[0] * self.grid[1] + self.specials, width))
        self.blocks = nn.ModuleList(Block(width, net.n_heads) for _ in range(net.n_layers))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, IMAGENET_CLASSES)

    def forward(
        self, images: torch.Tensor, plan: Hourglass | None, norm: int
    ) -> tuple[torch.Tensor, Callable[[torch.Tensor], torch.Tensor]]:
        """The image's tokens or clusters, and what restores the full grid from values of theirs."""
        grid = tuple(side // self.patch_size for side in images.shape[2:])
        first = [self.cls_token, self.dist_token] if self.specials == 2 else [self.cls_token]
        x = torch.cat([*(each.expand(len(images), -1, -1) for each in first), self.patch_embed(images)], dim=1)
        x = x + self.positions(grid, x.shape[1])

        alpha = end = None
        if plan is not None:
            alpha, multiplier = plan.alpha, 1 / plan.temperature
            if plan.reconstruct == "tokens":
                end = len(self.blocks) if plan.beta is None else alpha + plan.beta
        restore = nn.Identity()
        for count, block in enumerate(self.blocks, start=1):
            x = block(x)
            special, z = x.tensor_split([self.specials], dim=1)
            if count == alpha:
                s = torch_clusters(
                    z,
                    grid,
                    plan.clusters,
                    window=plan.window,
                    iterations=plan.iterations,
                    multiplier=multiplier,
                )
                restore = partial(
                    torch_tokens, z=z, s=s, neighbors=plan.neighbors, multiplier=multiplier, norm=norm
                )
                x = torch.cat([special, s], dim=1)
            if count == end:
                x = torch.cat([special, restore(z)], dim=1)
                restore = nn.Identity()
        return self.norm(x)[:, self.specials :], restore

    def positions(self, grid: Grid, count: int) -> torch.Tensor:
        """The position embedding for `grid`, resized if it is not made for `count` tokens."""
        if count == self.pos_embed.shape[1]:
            return self.pos_embed
        special, stored = self.pos_embed.tensor_split([self.specials], dim=1)
        image = stored.transpose(1, 2).unflatten(2, self.grid)
        resized = functional.interpolate(image, size=grid, mode="bilinear")
        return torch.cat([special, resized.flatten(2).transpose(1, 2)], dim=1)


class LinearDecoder(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        self.head = nn.Linear(net.d_model, net.n_cls)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.head(tokens)


class MaskTransformer(nn.Module):
    def __init__(self, net: Net) -> None:
        super().__init__()
        width, heads = net.d_model, net.d_model // DECODER_HEAD_WIDTH
        self.cls_emb = nn.Parameter(torch.randn(1, net.n_cls, width))
        self.proj_patch = nn.Parameter(torch.randn(width, width))
        self.proj_classes = nn.Parameter(torch.randn(width, width))
        self.proj_dec = nn.Linear(width, width)
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(net.decoder_layers))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_norm = nn.LayerNorm(net.n_cls)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.proj_dec(tokens), self.cls_emb.expand(len(tokens), -1, -1)], dim=1)
        for block in self.blocks:
            x = block(x)
        masks, classes = self.decoder_norm(x).tensor_split([tokens.shape[1]], dim=1)
        masks, classes = (
            functional.normalize(each, dim=2, eps=0)
            for each in (masks @ self.proj_patch, classes @ self.proj_classes)
        )
        return self.mask_norm(masks @ classes.transpose(1, 2))


class TorchSegmenter(nn.Module):
    """The official Segmenter: its parameters have exactly its names."""

    def __init__(self, net: Net) -> None:
        super().__init__()
        self.net = net
        self.encoder = Encoder(net)
        self.decoder = LinearDecoder(net) if net.decoder == "linear" else MaskTransformer(net)

    def forward(self, images: torch.Tensor, plan: Hourglass | None = None, *, norm: int = 1) -> torch.Tensor:
        """Normalised images [B, 3, rows, columns] -> logits [B, classes, rows, columns].

        Args:
            images: of any size.
            plan: an hourglass whose alpha is at least 1 and whose temperature is a number; any object with the
                fields of `hourglass_jax.Hourglass`.
            norm: of the weights of its reconstruction: 1 in the paper, 2 in the official code.
        """
        logits = self.token_logits(images, plan, norm=norm)
        size = [side * self.net.patch_size for side in logits.shape[2:]]
        masks = functional.interpolate(logits, size=size, mode="bilinear")
        return masks[:, :, : images.shape[2], : images.shape[3]]

    def token_logits(self, images: torch.Tensor, plan: Hourglass | None = None, *, norm: int = 1) -> torch.Tensor:
        """The logits of the tokens, [B, classes, H, W], of images that are padded with zeros."""
        rows, columns = images.shape[2:]
        side = self.net.patch_size
        padded = functional.pad(images, (0, -columns % side, 0, -rows % side))
        tokens, restore = self.encoder(padded, plan, norm)
        logits = restore(self.decoder(tokens))
        return logits.transpose(1, 2).unflatten(2, [length // side for length in padded.shape[2:]])


def save_upstream(
    model: TorchSegmenter,
    folder: Path,
    *,
    window: Window,
    dataset: str = "ade20k",
    normalization: str = "vit",
) -> Path:
    """Writes what the official training leaves: checkpoint.pth, whose path is returned, and variant.yml.

    Args:
        model: the model.
        folder: where to write; it is made.
        window: that inference takes.
        dataset: the name of the data set.
        normalization: a name of `NORMALIZATIONS`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    net = dataclasses.asdict(model.net)
    decoder = {"name": net.pop("decoder"), "n_cls": model.net.n_cls}
    layers = net.pop("decoder_layers")
    if decoder["name"] == "mask_transformer":
        decoder |= {"drop_path_rate": 0.0, "dropout": 0.0, "n_layers": layers}
    size, stride = window
    variant = {
        "algorithm_kwargs": {"batch_size": 8, "eval_freq": 2, "num_epochs": 64, "start_epoch": 0},
        "amp": False,
        "dataset_kwargs": {
            "batch_size": 8,
            "crop_size": model.net.image_size[0],
            "dataset": dataset,
            "image_size": model.net.image_size[0],
            "normalization": normalization,
            "num_workers": 10,
            "split": "train",
        },
        "inference_kwargs": {"im_size": model.net.image_size[0], "window_size": size, "window_stride": stride},
        "log_dir": "segm",
        "net_kwargs": {
            **net,
            "backbone": "vit_tiny_patch16_384",
            "decoder": decoder,
            "drop_path_rate": 0.1,
            "dropout": 0.0,
            "normalization": normalization,
        },
        "optimizer_kwargs": {"clip_grad": None, "lr": 0.001, "min_lr": 1e-5, "momentum": 0.9, "opt": "sgd"},
        "resume": True,
        "version": "normal",
        "world_batch_size": 8,
    }
    (folder / "variant.yml").write_text(yaml.dump(variant))
    torch.save(_snapshot(model), folder / "checkpoint.pth")
    return folder / "checkpoint.pth"


def save_mmseg(model: TorchSegmenter, path: Path) -> Path:
    """Writes what Expedit-Segmenter makes of the official checkpoint, and returns its path."""
    snapshot = _snapshot(model)
    parameters = {}
    for name, parameter in snapshot.pop("model").items():
        for beginning, renamed in MMSEGMENTATION:
            name = re.sub(rf"\A{beginning}", renamed, name)
        parameters[name] = parameter
    snapshot["meta"] = {name: snapshot.pop(name) for name in ("n_cls", "epoch")}
    torch.save({**snapshot, "state_dict": parameters}, path)
    return path


def _snapshot(model: TorchSegmenter) -> dict[str, object]:
    """What training saves; the optimizer holds a tensor for every parameter."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "n_cls": model.net.n_cls,
        "lr_scheduler": torch.optim.lr_scheduler.PolynomialLR(optimizer, power=0.9).state_dict(),
        "epoch": 63,
    }


def prepare(photo: np.ndarray, normalization: str) -> torch.Tensor:
    """A photograph, uint8 [rows, columns, 3], normalised as [1, 3, rows, columns]."""
    mean, std = (torch.tensor(each)[:, None, None] for each in NORMALIZATIONS[normalization])
    return ((torch.tensor(photo).permute(2, 0, 1).float() / 255 - mean) / std)[None]


@torch.inference_mode()
def inference(
    model: Callable[[torch.Tensor], torch.Tensor],
    image: torch.Tensor,
    window: Window,
    *,
    batch_size: int = 2,
) -> torch.Tensor:
    """Class probabilities [classes, rows, columns] of an image [1, 3, rows, columns], from sliding windows.

    Args:
        model: images to logits.
        image: normalised.
        window: size and stride.
        batch_size: windows that are run at once.
    """
    size, stride = window
    enlarged = resize(image, size)
    crops, anchors = sliding_window(enlarged, size, stride)
    logits = torch.cat([model(batch) for batch in crops.split(batch_size)])
    return merge_windows(logits, anchors, enlarged.shape[2:], image.shape[2:])


def resize(image: torch.Tensor, least: int) -> torch.Tensor:
    """An image whose shorter side is below `least` enlarged to it."""
    rows, columns = image.shape[2:]
    if min(rows, columns) >= least:
        return image
    longer = int(max(rows, columns) / min(rows, columns) * least)
    return functional.interpolate(image, (least, longer) if rows < columns else (longer, least), mode="bilinear")


def sliding_window(image: torch.Tensor, size: int, stride: int) -> tuple[torch.Tensor, list[Grid]]:
    """Square windows of an image [1, 3, rows, columns], and the first row and column of each."""
    tops, lefts = ([*range(0, side - size, stride), side - size] for side in image.shape[2:])
    anchors = [(top, left) for top in tops for left in lefts]
    return torch.cat([image[:, :, y : y + size, x : x + size] for y, x in anchors]), anchors


def merge_windows(logits: torch.Tensor, anchors: list[Grid], size: Grid, target: Grid) -> torch.Tensor:
    """Class probabilities [classes, *target] of an image of `size` from the logits of its windows, averaged."""
    total = torch.zeros(logits.shape[1], *size)
    count = torch.zeros(1, *size)
    for window, (y, x) in zip(logits, anchors, strict=True):
        rows, columns = slice(y, y + window.shape[1]), slice(x, x + window.shape[2])
        total[:, rows, columns] += window
        count[:, rows, columns] += 1
    resized = functional.interpolate((total / count)[None], target, mode="bilinear")[0]
    return resized.softmax(dim=0)
