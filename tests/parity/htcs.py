"""Cascade Mask R-CNN and HTC composed in PyTorch, with mmdetection's names of the weights.

Lists of any length and loops over them, as the official code has them: nothing here has a fixed size. An image at a
time, maps [1, C, H, W], boxes [N, 4].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

Tensors = dict[str, torch.Tensor]
Maps = list[torch.Tensor]

STRIDES = (4, 8, 16, 32, 64)
STDS = ((0.1, 0.1, 0.2, 0.2), (0.05, 0.05, 0.1, 0.1), (0.033, 0.033, 0.067, 0.067))


class Found(NamedTuple):
    """Boxes [D, 4], scores [D], labels [D] and mask probabilities [D, 28, 28], the best first."""

    boxes: torch.Tensor
    scores: torch.Tensor
    labels: torch.Tensor
    masks: torch.Tensor


def sized(arrays: Mapping[str, np.ndarray]) -> Tensors:
    """Random weights, scaled so that features keep their size from layer to layer."""
    found = {}
    for name, array in arrays.items():
        scale = 1.0
        if array.ndim > 1:
            scale = (2 / np.prod(array.shape[1:])) ** 0.5
        elif name.endswith(".bias"):
            scale = 0.2
        if "fc_cls" in name or "fc_reg" in name:
            scale *= 0.3
        found[name] = torch.from_numpy(np.asarray(array * scale, array.dtype))
    return found


def conv(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    weight = t[f"{name}.weight"]
    return functional.conv2d(x, weight, t.get(f"{name}.bias"), padding=weight.shape[-1] // 2)


def linear(t: Tensors, name: str, x: torch.Tensor) -> torch.Tensor:
    return functional.linear(x, t[f"{name}.weight"], t[f"{name}.bias"])


def overlap(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    sides = (torch.minimum(a[2:], b[:, 2:]) - torch.maximum(a[:2], b[:, :2])).clamp(min=0)
    both = sides.prod(dim=1)
    return both / ((a[2:] - a[:2]).prod() + (b[:, 2:] - b[:, :2]).prod(dim=1) - both)


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
    order, kept = scores.argsort(descending=True, stable=True), []
    while len(order):
        kept.append(order[0])
        order = order[1:][~(overlap(boxes[order[0]], boxes[order[1:]]) > threshold)]
    return torch.stack(kept) if kept else torch.zeros(0, dtype=torch.long)


def soft_nms(
    boxes: torch.Tensor, scores: torch.Tensor, threshold: float, least: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Linear; indices and scores."""
    left, kept, found, scores = torch.arange(len(boxes)), [], [], scores.clone()
    while len(left):
        best = left[scores[left].argmax()]
        kept.append(best)
        found.append(scores[best].clone())
        left = left[left != best]
        over = overlap(boxes[best], boxes[left])
        scores[left] *= torch.where(over >= threshold, 1 - over, torch.ones(()))
        left = left[scores[left] >= least]
    return torch.stack(kept), torch.stack(found)


def decode(
    boxes: torch.Tensor, deltas: torch.Tensor, stds: tuple[float, ...], size: tuple[int, int]
) -> torch.Tensor:
    dx, dy, dw, dh = (deltas * torch.tensor(stds)).unbind(-1)
    most = math.log(1000 / 16)
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    x = (boxes[..., 0] + boxes[..., 2]) * 0.5 + dx * width
    y = (boxes[..., 1] + boxes[..., 3]) * 0.5 + dy * height
    w, h = width * dw.clamp(-most, most).exp() / 2, height * dh.clamp(-most, most).exp() / 2
    rows, columns = size
    sides = ((x - w, columns), (y - h, rows), (x + w, columns), (y + h, rows))
    return torch.stack([side.clamp(0, limit) for side, limit in sides], dim=-1)


def roi_align(x: torch.Tensor, boxes: torch.Tensor, stride: int, bins: int) -> torch.Tensor:
    """[N, C, bins, bins]; boxes lie inside the image, so no sample is more than one position outside of the map."""
    found = torch.zeros(len(boxes), x.shape[1], bins, bins, dtype=x.dtype)
    rows, columns = x.shape[2:]
    for number, box in enumerate(boxes):
        x1, y1, x2, y2 = (box / stride - 0.5).tolist()
        height, width = (y2 - y1) / bins, (x2 - x1) / bins
        down, across = math.ceil(height), math.ceil(width)
        if down * across == 0:
            continue
        ys = y1 + (torch.arange(bins * down) + 0.5) * (height / down)
        xs = x1 + (torch.arange(bins * across) + 0.5) * (width / across)
        grid = torch.stack(
            torch.meshgrid(
                xs.clamp(0, columns - 1) * 2 / max(columns - 1, 1) - 1,
                ys.clamp(0, rows - 1) * 2 / max(rows - 1, 1) - 1,
                indexing="xy",
            ),
            dim=-1,
        )
        samples = functional.grid_sample(x, grid[None], padding_mode="border", align_corners=True)
        found[number] = samples.view(-1, bins, down, bins, across).mean(dim=(2, 4))
    return found


def roi_features(maps: Maps, boxes: torch.Tensor, bins: int) -> torch.Tensor:
    area = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
    levels = (area.sqrt() / 56 + 1e-6).log2().floor().clamp(0, 3).long()
    found = torch.zeros(len(boxes), maps[0].shape[1], bins, bins, dtype=boxes.dtype)
    for level in range(4):
        found[levels == level] = roi_align(maps[level], boxes[levels == level], STRIDES[level], bins)
    return found


@dataclass(frozen=True)
class Detector:
    """Everything after the backbone.

    Attributes:
        tensors: by mmdetection's names.
        flow: whether mask heads read those before them.
        semantic: whether there is a semantic branch.
        soft: whether suppression is soft.
        threshold: what a probability must exceed.
        attention_heads: of the global attention, 0 without.
        candidates, proposals: of every map, and of the image.
    """

    tensors: Tensors
    flow: bool = False
    semantic: bool = False
    soft: bool = False
    threshold: float = 0.05
    attention_heads: int = 0
    candidates: int = 1000
    proposals: int = 1000

    def __call__(self, maps: Maps, size: tuple[int, int]) -> Found:
        """The backbone's maps of a padded image of `size` = (rows, columns) before it was padded."""
        pyramid = self.pyramid(maps)
        boxes = self.propose(pyramid, size)
        semantic = self.semantic_features(pyramid) if self.semantic else None
        boxes, scores, labels = self.cascade(pyramid, semantic, boxes, size)
        return Found(boxes, scores, labels, self.masks(pyramid, semantic, boxes, labels))

    def pyramid(self, maps: Maps) -> Maps:
        t, neck = self.tensors, "neck.1." if self.attention_heads else "neck."
        if self.attention_heads:
            maps = [*maps[:-1], self.global_attention(maps[-1])]
        sums = [conv(t, f"{neck}lateral_convs.{n}.conv", each) for n, each in enumerate(maps)]
        for n in (3, 2, 1):
            sums[n - 1] = sums[n - 1] + functional.interpolate(sums[n], size=sums[n - 1].shape[2:], mode="nearest")
        found = [conv(t, f"{neck}fpn_convs.{n}.conv", each) for n, each in enumerate(sums)]
        return [*found, functional.max_pool2d(found[-1], 1, stride=2)]

    def global_attention(self, x: torch.Tensor) -> torch.Tensor:
        t, (_, channels, rows, columns) = self.tensors, x.shape

        def norm(name: str, y: torch.Tensor) -> torch.Tensor:
            return functional.layer_norm(y, (channels,), t[f"neck.0.{name}.weight"], t[f"neck.0.{name}.bias"])

        y = x.flatten(2).transpose(1, 2)
        qkv = linear(t, "neck.0.attn.qkv", norm("norm1", y)).view(
            1, -1, 3, self.attention_heads, channels // self.attention_heads
        )
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(y.shape)
        y = y + linear(t, "neck.0.attn.proj", mixed)
        hidden = functional.gelu(linear(t, "neck.0.ffn.fc1", norm("norm2", y)))
        y = norm("final_norm", y + linear(t, "neck.0.ffn.fc2", hidden))
        return y.transpose(1, 2).view(1, channels, rows, columns)

    def propose(self, pyramid: Maps, size: tuple[int, int]) -> torch.Tensor:
        t, all_boxes, all_scores = self.tensors, [], []
        for x, stride in zip(pyramid, STRIDES, strict=True):
            hidden = conv(t, "rpn_head.rpn_conv", x).relu()
            scores = conv(t, "rpn_head.rpn_cls", hidden).permute(0, 2, 3, 1).flatten().sigmoid()
            deltas = conv(t, "rpn_head.rpn_reg", hidden).permute(0, 2, 3, 1).reshape(-1, 4)
            ratios = torch.tensor([0.5, 1, 2]).sqrt()
            w, h = 8 * stride / ratios / 2, 8 * stride * ratios / 2
            around = torch.stack([-w, -h, w, h], dim=-1)
            y, x0 = torch.meshgrid(*(stride * torch.arange(n) for n in x.shape[2:]), indexing="ij")
            anchors = (torch.stack([x0, y, x0, y], dim=-1)[:, :, None] + around).view(-1, 4)
            best = scores.argsort(descending=True, stable=True)[: self.candidates]
            boxes, scores = decode(anchors[best], deltas[best], (1, 1, 1, 1), size), scores[best]
            valid = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            boxes, scores = boxes[valid], scores[valid]
            kept = nms(boxes, scores, 0.7)
            all_boxes.append(boxes[kept])
            all_scores.append(scores[kept])
        order = torch.cat(all_scores).argsort(descending=True, stable=True)[: self.proposals]
        return torch.cat(all_boxes)[order]

    def semantic_features(self, pyramid: Maps) -> torch.Tensor:
        t, branch, total = self.tensors, "roi_head.semantic_head.", torch.zeros(())
        size = pyramid[1].shape[2:]
        for n, x in enumerate(pyramid):
            if n != 1:
                x = functional.interpolate(x, size=size, mode="bilinear", align_corners=True)
            total = total + conv(t, f"{branch}lateral_convs.{n}.conv", x).relu()
        for n in range(4):
            total = conv(t, f"{branch}convs.{n}.conv", total).relu()
        return conv(t, f"{branch}conv_embedding.conv", total).relu()

    def box_head(self, stage: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        t, head = self.tensors, f"roi_head.bbox_head.{stage}."
        has_convolutions = f"{head}shared_convs.0.conv.weight" in t
        for n in range(4 if has_convolutions else 0):
            name = f"{head}shared_convs.{n}."
            moments = (t[f"{name}bn.{leaf}"] for leaf in ("running_mean", "running_var", "weight", "bias"))
            x = functional.batch_norm(conv(t, f"{name}conv", x), *moments, eps=1e-5).relu()
        x = x.flatten(1)
        for n in range(1 if has_convolutions else 2):
            x = linear(t, f"{head}shared_fcs.{n}", x).relu()
        deltas = linear(t, f"{head}fc_reg", x)
        return linear(t, f"{head}fc_cls", x), deltas.view(len(x), -1, 4)

    def cascade(
        self, pyramid: Maps, semantic: torch.Tensor | None, boxes: torch.Tensor, size: tuple[int, int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        logits = []
        for stage in range(3):
            x = roi_features(pyramid, boxes, 7)
            if semantic is not None:
                x = x + functional.adaptive_avg_pool2d(roi_align(semantic, boxes, 8, 14), 7)
            stage_logits, deltas = self.box_head(stage, x)
            logits.append(stage_logits)
            refined = decode(boxes[:, None], deltas, STDS[stage], size)
            own = (
                stage_logits[:, :-1].argmax(dim=1)
                if refined.shape[1] > 1
                else torch.zeros(len(boxes), dtype=torch.long)
            )
            boxes = refined[torch.arange(len(boxes)), own]
        scores = (sum(logits) / 3).softmax(dim=1)[:, :-1]
        places, labels = (scores > self.threshold).nonzero(as_tuple=True)
        candidates = refined[places, labels if refined.shape[1] > 1 else torch.zeros_like(labels)]
        scores = scores[places, labels]
        if not len(labels):
            return candidates, scores, labels
        shifted = candidates + (labels * (candidates.max() + 1))[:, None]
        if self.soft:
            kept, scores = soft_nms(shifted, scores, 0.5, 1e-3)
        else:
            kept = nms(shifted, scores, 0.5)
            scores = scores[kept]
        return candidates[kept][:100], scores[:100], labels[kept][:100]

    def masks(
        self, pyramid: Maps, semantic: torch.Tensor | None, boxes: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        if not len(boxes):
            return torch.zeros(0, 28, 28)
        t, before, total = self.tensors, None, torch.zeros(())
        features = roi_features(pyramid, boxes, 14)
        if semantic is not None:
            features = features + roi_align(semantic, boxes, 8, 14)
        for stage in range(3):
            head, x = f"roi_head.mask_head.{stage}.", features
            if self.flow and before is not None:
                x = x + conv(t, f"{head}conv_res.conv", before).relu()
            for n in range(4):
                x = conv(t, f"{head}convs.{n}.conv", x).relu()
            before = x
            larger = functional.conv_transpose2d(
                x, t[f"{head}upsample.weight"], t[f"{head}upsample.bias"], stride=2
            )
            total = total + conv(t, f"{head}conv_logits", larger.relu()).sigmoid()
        return (total / 3)[torch.arange(len(boxes)), labels]


def pasted(masks: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Masks [D, S, S] of boxes [D, 4] at the pixels of a photograph, bool [D, rows, columns]."""
    rows, columns = size
    x1, y1, x2, y2 = (side[:, None] for side in boxes.unbind(dim=1))
    y = (torch.arange(rows) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(columns) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack([x[:, None].expand(-1, rows, -1), y[:, :, None].expand(-1, -1, columns)], dim=-1)
    return functional.grid_sample(masks[:, None], grid, align_corners=False)[:, 0] >= 0.5
