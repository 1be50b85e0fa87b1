"""EoMT on DINOv3's ViT against transformers: whole, and under a plan that ends after the queries have joined."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.eomt import EoMT
from hourglass_jax.tasks.queries import QueryOutputs
from tests.parity.vits import channels_first, random_images, randomize
from tests.reference import hourglass

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4
PATCH, DEPTH, BLOCKS, QUERIES, CLASSES, REGISTERS = 16, 4, 2, 7, 5, 4
GRID = (4, 4)


def build(*, gated: bool = False) -> torch.nn.Module:
    config = transformers.EomtDinov3Config(
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=DEPTH,
        num_attention_heads=3,
        image_size=GRID[0] * PATCH,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        num_labels=CLASSES,
        use_gated_mlp=gated,
        hidden_act="silu" if gated else "gelu",
    )
    model = randomize(transformers.EomtDinov3ForUniversalSegmentation(config))
    model.attn_mask_probs.fill_(0.0)
    return model


def converted(model: torch.nn.Module, folder: Path) -> EoMT:
    model.save_pretrained(folder)
    summary = convert(folder)
    assert summary.family == "eomt-dinov3-transformers"
    return hj.load(summary.target)


@nnx.jit
def run(model: EoMT, images: jax.Array) -> QueryOutputs:
    return model(images)


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return build()


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> EoMT:
    return converted(theirs, tmp_path_factory.mktemp("eomt") / "checkpoint")


def assert_same(model: EoMT, theirs: torch.nn.Module, images: np.ndarray) -> None:
    with torch.no_grad():
        expected = theirs(channels_first(images))
    found = run(model, images)
    np.testing.assert_allclose(found.class_logits, expected.class_queries_logits, rtol=0, atol=ATOL)
    np.testing.assert_allclose(found.mask_logits, expected.masks_queries_logits, rtol=0, atol=ATOL)


def test_the_outputs_of_square_images(ours: EoMT, theirs: torch.nn.Module) -> None:
    backbone = ours.config.backbone
    assert (backbone.rotary_base, backbone.position_grid, backbone.norm_epsilon) == (100, None, 1e-6)
    assert (ours.config.preprocessing.size, ours.config.queries, ours.config.query_blocks) == (64, QUERIES, BLOCKS)
    assert_same(ours, theirs, random_images(64, 64))


def test_gated_mlps_are_refused(tmp_path: Path) -> None:
    """transformers takes silu in the mask module, too, where the ViT's MLPs are gated."""
    build(gated=True).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="an EoMT on a DINOv3 with SwiGLU"):
        convert(tmp_path, tmp_path / "converted")


@torch.no_grad()
def expedited(model: torch.nn.Module, image: np.ndarray, plan: hj.Hourglass) -> tuple[np.ndarray, np.ndarray]:
    """Class logits and mask logits of one image, the clusters at the mean places of their cells."""
    count = GRID[0] * GRID[1]
    x = model.embeddings(channels_first(image))
    cos, sin = model.rope_embeddings(channels_first(image))
    for index, layer in enumerate(model.layers):
        if index == plan.alpha:
            z = x[:, -count:].numpy()
            options = {"window": plan.window, "iterations": plan.iterations, "temperature": plan.temperature}
            s = hourglass.cluster_tokens(z, token_grid=GRID, cluster_grid=plan.clusters, **options)
            x = torch.cat([x[:, :-count], torch.from_numpy(s).float()], dim=1)
            places = np.stack(np.divmod(np.arange(count), GRID[1]), axis=-1).astype(np.float64)
            places = hourglass.adaptive_average(places, GRID, plan.clusters)
            coordinates = torch.from_numpy((2 * places + 1) / np.array(GRID) - 1).float()
            angles = 2 * torch.pi * coordinates[:, :, None] * model.rope_embeddings.inv_freq
            angles = angles.flatten(1).tile(2)
            cos, sin = angles.cos(), angles.sin()
        if index == DEPTH - BLOCKS:
            x = torch.cat([model.query.weight.expand(len(x), -1, -1), x], dim=1)
        x = layer(x, position_embeddings=(cos, sin))
    first = QUERIES + 1 + REGISTERS
    whole = hourglass.reconstruct_tokens(
        x[:, first:].numpy(), tokens=z, clusters=s, neighbors=plan.neighbors, temperature=plan.temperature
    )
    x = torch.cat([x[:, :first], torch.from_numpy(whole).float()], dim=1)
    masks, classes = model.predict(model.layernorm(x))
    return classes.numpy(), masks.numpy()


def test_an_hourglass_that_begins_before_the_queries_join(ours: EoMT, theirs: torch.nn.Module) -> None:
    plan = hj.Hourglass(1, (3, 3), window=3, temperature=30.0, neighbors=4)
    image = random_images(64, 64, batch=1)
    found = run(hj.expedite(ours, plan), image)
    for mine, their in zip(found, expedited(theirs, image, plan), strict=True):
        np.testing.assert_allclose(mine, their, rtol=0, atol=ATOL)


def test_the_size_of_images_is_not_guessed(theirs: torch.nn.Module, tmp_path: Path) -> None:
    theirs.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["image_size"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"and say image_size and layer_norm_eps"):
        convert(tmp_path, tmp_path / "converted")
