"""DPT and Depth Anything V2 in PyTorch: their heads under the official names, around timm's transformers.

Source: isl-org/DPT, dpt/{models,blocks,vit}.py; DepthAnything/Depth-Anything-V2, depth_anything_v2/dpt.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn
from torch.nn import functional

Grid = tuple[int, int]
Restore = Callable[[torch.Tensor], torch.Tensor]
Reduce = Callable[[torch.Tensor, Grid], tuple[torch.Tensor, Restore]]
"""Tokens [B, N, C] and their grid to clusters [B, M, C], and what restores the tokens from clusters."""
HEAD_WIDTH = 32


class Readout(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.project = nn.Sequential(nn.Linear(2 * width, width), nn.GELU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, special = x[:, 1:], x[:, :1]
        return self.project(torch.cat([tokens, special.expand_as(tokens)], dim=2))


class ResidualUnit(nn.Module):
    def __init__(self, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=not batch_norm)
        self.bn1 = nn.BatchNorm2d(width) if batch_norm else nn.Identity()
        self.bn2 = nn.BatchNorm2d(width) if batch_norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn1(self.conv1(x.relu()))
        return x + self.bn2(self.conv2(branch.relu()))


class Fusion(nn.Module):
    def __init__(self, width: int, *, batch_norm: bool) -> None:
        super().__init__()
        self.resConfUnit1 = ResidualUnit(width, batch_norm=batch_norm)
        self.resConfUnit2 = ResidualUnit(width, batch_norm=batch_norm)
        self.out_conv = nn.Conv2d(width, width, 1)

    def forward(self, x: torch.Tensor, fused: torch.Tensor | None, size: Grid) -> torch.Tensor:
        x = x if fused is None else fused + self.resConfUnit1(x)
        return self.out_conv(upsampled(self.resConfUnit2(x), size))


def upsampled(x: torch.Tensor, size: Grid) -> torch.Tensor:
    return functional.interpolate(x, size=tuple(size), mode="bilinear", align_corners=True)


class Scratch(nn.Module):
    """What fuses four maps, from fine to coarse."""

    def __init__(self, widths: Sequence[int], width: int, *, batch_norm: bool = False) -> None:
        super().__init__()
        for number, inputs in enumerate(widths, start=1):
            self.add_module(f"layer{number}_rn", nn.Conv2d(inputs, width, 3, padding=1, bias=False))
            self.add_module(f"refinenet{number}", Fusion(width, batch_norm=batch_norm))

    def fuse(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        fused, sizes = None, [[2 * side for side in maps[0].shape[2:]], *(each.shape[2:] for each in maps)]
        for number in (4, 3, 2, 1):
            x = getattr(self, f"layer{number}_rn")(maps[number - 1])
            fused = getattr(self, f"refinenet{number}")(x, fused, sizes[number - 1])
        return fused


def resizers(widths: Sequence[int]) -> list[nn.Module]:
    """What makes maps of 4, 2, 1 and 1/2 times the token grid of maps of the token grid."""
    return [
        nn.ConvTranspose2d(widths[0], widths[0], 4, stride=4),
        nn.ConvTranspose2d(widths[1], widths[1], 2, stride=2),
        nn.Identity(),
        nn.Conv2d(widths[3], widths[3], 3, stride=2, padding=1),
    ]


def as_map(tokens: torch.Tensor, grid: Grid) -> torch.Tensor:
    return tokens.mT.unflatten(2, grid)


def block_features(
    blocks: Sequence[nn.Module],
    x: torch.Tensor,
    hooks: Sequence[int],
    grid: Grid,
    *,
    alpha: int | None = None,
    reduce: Reduce | None = None,
) -> list[torch.Tensor]:
    """The tokens after the hooked blocks, the class token first; after block `alpha` blocks run on clusters.

    Args:
        blocks: in turn.
        x: class token and tokens, [B, 1 + H*W, C].
        hooks: 0-based blocks.
        grid: (H, W).
        alpha: blocks before the clustering, to the last of them if None.
        reduce: the clustering.
    """
    restore, found = None, []
    for index, block in enumerate(blocks):
        if index == alpha:
            clusters, restore = reduce(x[:, 1:], grid)
            x = torch.cat([x[:, :1], clusters], dim=1)
        x = block(x)
        if index in hooks:
            found.append(x if restore is None else torch.cat([x[:, :1], restore(x[:, 1:])], dim=1))
    return found


class TorchDPT(nn.Module):
    """An official DPT around a `VisionTransformer` of timm, hybrid or not.

    Args:
        vit: with a class token and square position embeddings.
        hooks: four blocks, or the two of a hybrid.
        widths: channels of the four maps, from fine to coarse.
        width: of the fused maps.
        classes: for a segmentation head; None for a depth head.
    """

    def __init__(
        self, vit: nn.Module, hooks: Sequence[int], widths: Sequence[int], width: int, classes: int | None = None
    ) -> None:
        super().__init__()
        self.hooks = tuple(hooks)
        self.pretrained = nn.Module()
        self.pretrained.model = vit
        self.scratch = Scratch(widths, width, batch_norm=classes is not None)
        for number, (inputs, resizer) in enumerate(zip(widths, resizers(widths), strict=True), start=1):
            if number > 4 - len(self.hooks):
                layers = [Readout(vit.embed_dim), nn.Identity(), nn.Identity(), nn.Conv2d(vit.embed_dim, inputs, 1)]
                if not isinstance(resizer, nn.Identity):
                    layers.append(resizer)
                self.pretrained.add_module(f"act_postprocess{number}", nn.Sequential(*layers))
        if classes is None:
            self.scratch.output_conv = nn.Sequential(
                nn.Conv2d(width, width // 2, 3, padding=1),
                nn.UpsamplingBilinear2d(scale_factor=2),
                nn.Conv2d(width // 2, HEAD_WIDTH, 3, padding=1),
                nn.ReLU(),
                nn.Conv2d(HEAD_WIDTH, 1, 1),
                nn.ReLU(),
            )
        else:
            self.scratch.output_conv = nn.Sequential(
                *self._classifier(width, classes), nn.UpsamplingBilinear2d(scale_factor=2)
            )
            self.auxlayer = nn.Sequential(*self._classifier(width, classes))

    @staticmethod
    def _classifier(width: int, classes: int) -> list[nn.Module]:
        return [
            nn.Conv2d(width, width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Conv2d(width, classes, 1),
        ]

    def forward(self, images: torch.Tensor, **hourglass: object) -> torch.Tensor:
        """[B, 3, rows, columns] -> inverse depth [B, rows, columns] or logits [B, classes, rows, columns].

        `hourglass` is what `block_features` takes of it.
        """
        vit = self.pretrained.model
        x, stem_maps = self._embedded(images)
        grid = x.shape[2:]
        special, positions = vit.pos_embed[:, :1], vit.pos_embed[:, 1:]
        side = round(positions.shape[1] ** 0.5)
        positions = functional.interpolate(as_map(positions, (side, side)), size=grid, mode="bilinear")
        tokens = (x + positions).flatten(2).mT
        x = torch.cat([(vit.cls_token + special).expand(len(tokens), -1, -1), tokens], dim=1)
        found = block_features(vit.blocks, x, self.hooks, grid, **hourglass)
        maps = stem_maps[: 4 - len(found)]
        for number, tokens in enumerate(found, start=5 - len(found)):
            readout, _, _, *others = getattr(self.pretrained, f"act_postprocess{number}")
            maps.append(nn.Sequential(*others)(as_map(readout(tokens), grid)))
        output = self.scratch.output_conv(self.scratch.fuse(maps))
        return output[:, 0] if isinstance(self.scratch.output_conv[-1], nn.ReLU) else output

    def _embedded(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """The projected patches as a map, and the maps of the stem's stages."""
        embedding, maps = self.pretrained.model.patch_embed, []
        if hasattr(embedding, "backbone"):
            images = embedding.backbone.stem(images)
            for stage in embedding.backbone.stages:
                images = stage(images)
                maps.append(images)
        return embedding.proj(images), maps


class TorchDepthAnything(nn.Module):
    """An official Depth Anything V2 around a DINOv2 of timm at the grid of its position embeddings.

    Args:
        vit: with a class token.
        hooks: four blocks.
        widths: channels of the four maps, from fine to coarse.
        width: of the fused maps.
        max_depth: in metres, for metric depth.
    """

    def __init__(
        self,
        vit: nn.Module,
        hooks: Sequence[int],
        widths: Sequence[int],
        width: int,
        max_depth: float | None = None,
    ) -> None:
        super().__init__()
        self.hooks, self.max_depth = tuple(hooks), max_depth
        self.pretrained = vit
        self.depth_head = nn.Module()
        self.depth_head.projects = nn.ModuleList(nn.Conv2d(vit.embed_dim, each, 1) for each in widths)
        self.depth_head.resize_layers = nn.ModuleList(resizers(widths))
        scratch = self.depth_head.scratch = Scratch(widths, width)
        scratch.output_conv1 = nn.Conv2d(width, width // 2, 3, padding=1)
        scratch.output_conv2 = nn.Sequential(
            nn.Conv2d(width // 2, HEAD_WIDTH, 3, padding=1), nn.ReLU(), nn.Conv2d(HEAD_WIDTH, 1, 1)
        )

    def forward(self, images: torch.Tensor, **hourglass: object) -> torch.Tensor:
        """[B, 3, rows, columns] -> depth [B, rows, columns]; `hourglass` is what `block_features` takes of it."""
        vit, head = self.pretrained, self.depth_head
        x = vit.patch_embed.proj(images)
        grid = x.shape[2:]
        x = torch.cat([vit.cls_token.expand(len(x), -1, -1), x.flatten(2).mT], dim=1) + vit.pos_embed
        found = block_features(vit.blocks, x, self.hooks, grid, **hourglass)
        maps = [
            resize(project(as_map(vit.norm(tokens)[:, 1:], grid)))
            for tokens, project, resize in zip(found, head.projects, head.resize_layers, strict=True)
        ]
        fused = head.scratch.output_conv1(head.scratch.fuse(maps))
        output = head.scratch.output_conv2(upsampled(fused, images.shape[2:]))[:, 0]
        return output.relu() if self.max_depth is None else self.max_depth * output.sigmoid()


def timm_vit(side: int, patch_size: int = 16, *, hybrid: bool = False, **options: object) -> nn.Module:
    """A ViT of timm for images of `side` pixels, with the stem of DPT-Hybrid in front of it if `hybrid`.

    `options` are those of `VisionTransformer`, and of a hybrid `layers`, `channels` and `stem_chs` of `ResNetV2`.
    """
    from timm.layers import HybridEmbed, StdConv2dSame
    from timm.models.resnetv2 import ResNetV2
    from timm.models.vision_transformer import VisionTransformer

    if not hybrid:
        return VisionTransformer(side, patch_size, **options)
    stem = {name: options.pop(name) for name in ("layers", "channels", "stem_chs") if name in options}
    backbone = ResNetV2(
        **{"layers": (3, 4, 9), "channels": (256, 512, 1024), **stem},
        num_classes=0,
        global_pool="",
        preact=False,
        stem_type="same",
        conv_layer=partial(StdConv2dSame, eps=1e-8),
    )
    embedding = partial(HybridEmbed, backbone, feature_ratio=patch_size)
    return VisionTransformer(side, patch_size=1, embed_layer=embedding, **options)
