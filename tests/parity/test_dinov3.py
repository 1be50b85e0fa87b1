"""DINOv3 against transformers and timm, converted from what they save; with plans, their layers composed anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.backbones.vit import DINOV3, ViTConfig
from hourglass_jax.models.encoder import Encoder
from tests.parity.vits import channels_first, features, random_images, randomize
from tests.reference import hourglass, merging

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4
SIDE, REGISTERS = 16, 4
GRIDS = [(4, 4), (3, 5), (6, 2)]
GATED = pytest.mark.parametrize("gated", [False, True], ids=["GELU", "SwiGLU"])
Tokens = torch.Tensor


def build(*, gated: bool = False, **fields: object) -> torch.nn.Module:
    """A DINOv3 of transformers; the tiny one unless fields say otherwise."""
    tiny = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 3}
    config = transformers.DINOv3ViTConfig(
        **{
            **tiny,
            "num_register_tokens": REGISTERS,
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            **fields,
        }
    )
    return randomize(transformers.DINOv3ViTModel(config))


def converted(model: torch.nn.Module, folder: Path) -> Encoder:
    model.save_pretrained(folder)
    summary = convert(folder)
    assert summary.family == "dinov3-transformers"
    return hj.load(summary.target)


def assert_same(encoder: Encoder, model: torch.nn.Module, grids: list[tuple[int, int]]) -> None:
    """Final features, special tokens first, and what every block returns."""
    every = tuple(range(encoder.backbone.depth))
    for rows, columns in grids:
        images = random_images(rows * SIDE, columns * SIDE)
        with torch.no_grad():
            expected = model(channels_first(images), output_hidden_states=True)
        special, tokens, intermediates = features(encoder.backbone, images, intermediates=every)
        final = np.concatenate([special, tokens], axis=1)
        np.testing.assert_allclose(final, expected.last_hidden_state, rtol=0, atol=ATOL)
        theirs = [each[:, 1 + REGISTERS :] for each in expected.hidden_states[1:]]
        for mine, their in zip(intermediates, theirs, strict=True):
            np.testing.assert_allclose(mine, their, rtol=0, atol=ATOL)


@GATED
def test_transformers(tmp_path: Path, gated: bool) -> None:
    model = build(gated=gated)
    assert_same(converted(model, tmp_path / "dinov3"), model, GRIDS)


def test_transformers_without_biases_and_with_those_of_keys(tmp_path: Path) -> None:
    none = build(gated=True, query_bias=False, value_bias=False, rope_theta=30.0)
    assert_same(converted(none, tmp_path / "7b"), none, GRIDS[1:2])
    every = build(key_bias=True)
    assert_same(converted(every, tmp_path / "keys"), every, GRIDS[1:2])


@GATED
def test_timm(tmp_path: Path, gated: bool) -> None:
    """Whose S and S+ differ from the original's in nothing but names."""
    name = f"vit_small{'_plus' if gated else ''}_patch16_dinov3_qkvb"
    model = randomize(timm.create_model(name, pretrained=False, embed_dim=48, depth=2, num_heads=3))
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    summary = convert(tmp_path)
    assert summary.family == "dinov3-timm"
    encoder = hj.load(summary.target)
    for rows, columns in GRIDS:
        images = random_images(rows * SIDE, columns * SIDE)
        with torch.no_grad():
            expected = model.forward_features(channels_first(images))
        special, tokens, _ = features(encoder.backbone, images)
        np.testing.assert_allclose(np.concatenate([special, tokens], axis=1), expected, rtol=0, atol=ATOL)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return build()


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Encoder:
    return converted(theirs, tmp_path_factory.mktemp("dinov3") / "checkpoint")


def turns(model: torch.nn.Module, places: np.ndarray, grid: tuple[int, int]) -> tuple[Tokens, Tokens]:
    """Cosines and sines [1, 1, M, D] of tokens at these rows and columns of a grid."""
    coordinates = torch.from_numpy((2 * places + 1) / np.array(grid) - 1).float()
    angles = 2 * torch.pi * coordinates[:, :, None] * model.rope_embeddings.inv_freq
    angles = angles.flatten(1).tile(2)[None, None]
    return angles.cos(), angles.sin()


Step = Callable[[int, Tokens, np.ndarray, np.ndarray], tuple[Tokens, np.ndarray, np.ndarray]]


def composed(model: torch.nn.Module, image: np.ndarray, step: Step) -> Tokens:
    """The layers of transformers on the tokens that a plan leaves of one image, after the norm.

    Args:
        model: of transformers.
        image: [1, rows, columns, 3].
        step: what becomes of tokens [M, C], their places [M, 2] and sizes [M] before a layer.
    """
    grid, count = (image.shape[1] // SIDE, image.shape[2] // SIDE), 1 + REGISTERS
    places = np.stack(np.divmod(np.arange(grid[0] * grid[1]), grid[1]), axis=-1).astype(np.float64)
    sizes = np.ones(len(places))
    with torch.no_grad():
        x = model.embeddings(channels_first(image))
        for index, layer in enumerate(model.model.layer):
            tokens, places, sizes = step(index, x[0, count:], places, sizes)
            x = torch.cat([x[:, :count], tokens[None]], dim=1)
            bias = torch.cat([torch.zeros(count), torch.from_numpy(np.log(sizes)).float()])
            x = layer(x, attention_mask=bias[None, None, None], position_embeddings=turns(model, places, grid))
        return model.norm(x)[0]


def test_staged_merging_under_the_layers_of_transformers(theirs: torch.nn.Module, ours: Encoder) -> None:
    grid, plan = (6, 5), hj.StagedMerging(0.7, stages=(1, 2))
    image = random_images(grid[0] * SIDE, grid[1] * SIDE, batch=1)
    steps = []

    def step(index: int, tokens: Tokens, places: np.ndarray, sizes: np.ndarray):
        if index not in plan.stages:
            return tokens, places, sizes
        layer = theirs.model.layer[index]
        keys = layer.attention.k_proj(layer.norm1(tokens)).reshape(len(tokens), 3, -1).mean(dim=1).double().numpy()
        surplus = len(tokens) - round(30 * plan.keep ** (plan.stages.index(index) + 1))
        groups = merging.match(keys, surplus, columns=None if steps else grid[1])
        steps.append(groups)
        values, new_sizes = merging.merge(tokens.double().numpy(), sizes, groups)
        return torch.from_numpy(values).float(), merging.merge(places, sizes, groups)[0], new_sizes

    expected = composed(theirs, image, step).numpy()
    special, tokens, _ = features(hj.expedite(ours, plan).backbone, image)
    np.testing.assert_allclose(special[0], expected[: 1 + REGISTERS], rtol=0, atol=ATOL)
    restored = merging.unmerge(expected[1 + REGISTERS :], steps, 30)
    np.testing.assert_allclose(tokens[0], restored, rtol=0, atol=ATOL)


def test_the_hourglass_under_the_layers_of_transformers(theirs: torch.nn.Module, ours: Encoder) -> None:
    """The class and register tokens, which see the clusters and are not reconstructed."""
    grid, options = (6, 5), {"window": 3, "iterations": 2, "temperature": 20.0}
    image = random_images(grid[0] * SIDE, grid[1] * SIDE, batch=1)

    def step(index: int, tokens: Tokens, places: np.ndarray, sizes: np.ndarray):
        if index != 1:
            return tokens, places, sizes
        [s] = hourglass.cluster_tokens(tokens.numpy()[None], token_grid=grid, cluster_grid=(3, 2), **options)
        return torch.from_numpy(s).float(), hourglass.adaptive_average(places, grid, (3, 2)), np.ones(6)

    expected = composed(theirs, image, step)
    fast = hj.expedite(ours, hj.Hourglass(1, (3, 2), neighbors=3, reconstruct="logits", **options))
    special, clusters, _ = features(fast.backbone, image)
    np.testing.assert_allclose(special[0], expected[: 1 + REGISTERS], rtol=0, atol=ATOL)
    np.testing.assert_allclose(clusters[0], expected[1 + REGISTERS :], rtol=0, atol=ATOL)


PUBLISHED = {
    "small": "vit_small_patch16_dinov3_qkvb",
    "small-plus": "vit_small_plus_patch16_dinov3_qkvb",
    "base": "vit_base_patch16_dinov3_qkvb",
    "large": "vit_large_patch16_dinov3_qkvb",
    "huge-plus": "vit_huge_plus_patch16_dinov3_qkvb",
    "7b": "vit_7b_patch16_dinov3",
}
"""Our names of the published sizes -> timm's."""


@pytest.mark.parametrize("size", DINOV3)
def test_the_published_sizes_are_those_of_timm(size: str) -> None:
    with torch.device("meta"):
        model = timm.create_model(PUBLISHED[size], pretrained=False)
    block, config = model.blocks[0], ViTConfig.dinov3(size)
    gated = hasattr(block.mlp, "fc1_g")
    assert (config.width, config.depth, config.heads) == (model.embed_dim, len(model.blocks), block.attn.num_heads)
    assert (config.mlp == "swiglu") == gated
    assert round(config.width * config.mlp_ratio) == block.mlp.fc2.in_features
    assert (config.special_tokens, config.norm_epsilon) == (model.num_prefix_tokens, model.norm.eps)
    assert config.rotary_base == model.rope.temperature


@pytest.mark.slow
def test_a_whole_dinov3_s(tmp_path: Path) -> None:
    model = build(hidden_size=384, intermediate_size=1536, num_hidden_layers=12, num_attention_heads=6)
    encoder = converted(model, tmp_path / "small")
    assert encoder.backbone.config == ViTConfig.dinov3("small")
    assert_same(encoder, model, [(14, 14), (10, 17)])
