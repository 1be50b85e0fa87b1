"""Plans against compositions of timm's blocks with the published algorithms in PyTorch."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from tests.parity.vits import TIMM, channels_first, config_of_timm, features, ours, random_images, randomize

timm = pytest.importorskip("timm")
pytestmark = pytest.mark.usefixtures("quick_compilation")
Tokens = torch.Tensor


def small(name: str, **options: object) -> nn.Module:
    """A timm model of 8 x 7 tokens."""
    side = 14 if "patch14" in name else 16
    options = {"num_classes": 0, "img_size": (8 * side, 7 * side), "embed_dim": 48, "num_heads": 3, **options}
    return randomize(timm.create_model(name, pretrained=False, **options)).double()


def assert_same(fast: nn.Module, images: np.ndarray, expected: Tokens, count: int) -> None:
    special, tokens, _ = features(fast, images)
    np.testing.assert_allclose(special, expected[:, :count], rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, expected[:, count:], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "plan", "r"),
    [
        ("vit_base_patch16_224", hj.TokenMerging(merged=9), [9, 9, 9]),
        ("vit_small_patch14_dinov2", hj.TokenMerging(merged=6, schedule="decreasing"), [12, 6, 0]),
        ("vit_small_patch14_reg4_dinov2", hj.TokenMerging(merged=(0, 20, 7)), [0, 20, 7]),
    ],
)
def test_token_merging(name: str, plan: hj.TokenMerging, r: list[int]) -> None:
    """The class token and registers have their places in the alternating split."""
    model = small(name, depth=3)
    count, rows = model.num_prefix_tokens, model.patch_embed.patch_size[0]
    images = random_images(8 * rows, 7 * rows)
    with torch.no_grad():
        x = model.norm_pre(model._pos_embed(model.patch_embed(channels_first(images).double())))
        expected = model.norm(torch_token_merging(model.blocks, x, r, count, proportional=plan.proportional))
    assert_same(hj.expedite(ours(model.float(), TIMM, config_of_timm(model)), plan), images, expected, count)


def torch_token_merging(blocks: Sequence[nn.Module], x: Tokens, r: list[int], special: int, *, proportional: bool):
    """ToMe: the sequence after all blocks, unmerged; `special` tokens in front never merge."""
    size, sources = torch.ones(*x.shape[:2], 1).double(), torch.eye(x.shape[1]).double().expand(len(x), -1, -1)
    for block, merged in zip(blocks, r, strict=True):
        query, key, value = qkv_of(block, x)
        bias = size.log()[:, None, None, :, 0] if proportional else 0
        weights = (query @ key.transpose(-2, -1) * block.attn.scale + bias).softmax(dim=-1)
        x = x + block.ls1(block.attn.proj((weights @ value).transpose(1, 2).flatten(2)))
        merged = min(merged, (x.shape[1] - special) // 2)
        if merged:
            chosen = torch.stack([group_matrix(one, merged, special) for one in key.mean(dim=1)])
            x, size, sources = chosen @ (x * size), chosen @ size, chosen @ sources
            x = x / size
        x = x + block.ls2(block.mlp(block.norm2(x)))
    return sources.transpose(1, 2) @ x


def qkv_of(block: nn.Module, x: Tokens) -> tuple[Tokens, Tokens, Tokens]:
    """Each [B, heads, N, D]."""
    batch, tokens, _ = x.shape
    return block.attn.qkv(block.norm1(x)).reshape(batch, tokens, 3, block.attn.num_heads, -1).permute(2, 0, 3, 1, 4)


def group_matrix(metric: Tokens, merged: int, special: int) -> Tokens:
    """Which of N tokens are in which of the N - merged groups: special ones, what stays of the even, the odd."""
    metric = nn.functional.normalize(metric, dim=-1)
    scores = metric[::2] @ metric[1::2].T
    scores[: (special + 1) // 2] = -torch.inf
    scores[:, : special // 2] = -torch.inf
    best, partner = scores.max(dim=-1)
    order = best.argsort(descending=True)
    staying = order[merged:].sort().values if special else order[merged:]
    even, odd = [2 * int(i) for i in staying], list(range(1, len(metric), 2))
    first = [i for i in range(special) if i in even or i in odd]
    groups = first + [i for i in even if i >= special] + [i for i in odd if i >= special]
    matrix = torch.zeros(len(groups), len(metric)).double()
    for row, token in enumerate(groups):
        matrix[row, token] = 1
    for i in order[:merged]:
        matrix[groups.index(2 * int(partner[i]) + 1), 2 * int(i)] = 1
    return matrix


@pytest.mark.parametrize("fuse", [False, True])
def test_evit(fuse: bool) -> None:
    """The class token, which the restored tokens do not touch, and the tokens that were never dropped."""
    model = small("vit_base_patch16_224", depth=3)
    images, keep, stages = random_images(128, 112), 0.6, (1, 2)
    plan = hj.EViT(keep, stages=stages, fuse=fuse)
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(channels_first(images).double()))
        place = torch.arange(56).expand(len(x), -1)
        for index, block in enumerate(model.blocks):
            query, key, value = qkv_of(block, x)
            weights = (query @ key.transpose(-2, -1) * block.attn.scale).softmax(dim=-1)
            x = x + block.ls1(block.attn.proj((weights @ value).transpose(1, 2).flatten(2)))
            if index in stages:
                scores, image = weights[:, :, 0, 1:].mean(dim=1), x[:, 1:]
                kept = scores.topk(int(np.ceil(keep * image.shape[1])), dim=1).indices
                parts = [x[:, :1], image.gather(1, kept[..., None].expand(-1, -1, 48))]
                if fuse:
                    rest = scores.scatter(1, kept, 0.0)
                    parts.append((image * rest[..., None]).sum(dim=1, keepdim=True))
                    place = torch.cat([place, torch.full((len(x), 1), -1)], dim=1) if index == 2 else place
                    place = torch.cat([place.gather(1, kept)], dim=1)
                else:
                    place = place.gather(1, kept)
                x = torch.cat(parts, dim=1)
            x = x + block.ls2(block.mlp(block.norm2(x)))
        expected = model.norm(x)
    special, tokens, _ = features(hj.expedite(ours(model.float(), TIMM, config_of_timm(model)), plan), images)
    np.testing.assert_allclose(special[:, 0], expected[:, 0], rtol=0, atol=1e-4)
    for image in range(len(images)):
        real = [(row, int(at)) for row, at in enumerate(place[image]) if at >= 0]
        rows, at = zip(*real, strict=True)
        assert len(at) > 15
        np.testing.assert_allclose(tokens[image, list(at)], expected[image, 1:][list(rows)], rtol=0, atol=1e-4)


class PredictorLG(nn.Module):
    """The official prediction module with its names."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.in_conv = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU())
        hidden = [nn.Linear(width, width // 2), nn.GELU(), nn.Linear(width // 2, width // 4), nn.GELU()]
        self.out_conv = nn.Sequential(*hidden, nn.Linear(width // 4, 2), nn.LogSoftmax(dim=-1))

    def forward(self, x: Tokens) -> Tokens:
        own, others = self.in_conv(x).chunk(2, dim=-1)
        return self.out_conv(torch.cat([own, others.mean(dim=1, keepdim=True).expand_as(others)], dim=-1))[..., 0]


def test_a_converted_dynamic_vit(tmp_path: Path) -> None:
    """A checkpoint with the official names: the class token of the official forward pass."""
    model = small("deit_small_patch16_224", img_size=112, embed_dim=64, num_heads=1, depth=10, num_classes=5)
    model.score_predictor = nn.ModuleList([PredictorLG(64) for _ in range(3)])
    randomize(model.score_predictor)
    model = model.double()
    np.savez(tmp_path / "dynamic.npz", **{name: each.float().numpy() for name, each in model.state_dict().items()})
    assert convert(tmp_path / "dynamic.npz", tmp_path / "ours.safetensors").family == "dynamicvit"

    images = random_images(112, 112)
    with torch.no_grad():
        x = model._pos_embed(model.patch_embed(channels_first(images).double()))
        for index, block in enumerate(model.blocks):
            if index in (3, 6, 9):
                scores = model.score_predictor[index // 3 - 1](x[:, 1:])
                kept = scores.argsort(dim=1, descending=True)[:, : int(49 * 0.7 ** (index // 3))]
                x = torch.cat([x[:, :1], x[:, 1:].gather(1, kept[..., None].expand(-1, -1, 64))], dim=1)
            x = block(x)
        expected = model.norm(x)[:, 0]
    fast = hj.expedite(hj.load(tmp_path / "ours.safetensors"), hj.DynamicViT(0.7, stages=(3, 6, 9)))
    special, tokens, _ = features(fast.backbone, images)
    np.testing.assert_allclose(special[:, 0], expected, rtol=0, atol=1e-4)
    assert tokens.shape == (2, 49, 64)
