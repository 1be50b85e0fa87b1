"""What PyTorch saved, converted and run: the features that PyTorch computes.

transformers writes DINOv2 to disk under the names of the published files (attention.attention.query), whatever its
modules are called. The original DINOv2 is timm's model under the names, and with the positions, of the original:
facebookresearch/dinov2, dinov2/models/vision_transformer.py.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.encoder import Encoder
from tests.parity.vits import channels_first, features, random_images, randomize

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-5
"""On features of order one; another epsilon of the norms (1e-5 for 1e-6) is farther away."""
SIDE = 14
STORED, OTHER = (4, 4), (7, 3)
"""Grids of images; the position embeddings of the small models are 4 x 4."""
SMALL = {"embed_dim": 192, "depth": 2, "num_heads": 3}
"""SwiGLU needs an even number of hidden channels, which timm derives from the width."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """For files of hundreds of megabytes: removed at once."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def converted(source: Path, family: str, heads: int | None = None) -> Encoder:
    """The encoder that a checkpoint becomes."""
    summary = convert(source, source.with_name("converted"), heads=heads)
    assert summary.family == family
    return hj.load(summary.target)


def our_features(encoder: Encoder, rows: int, columns: int) -> np.ndarray:
    """Special tokens and tokens of a random image of this grid."""
    side = encoder.config.preprocessing.multiple
    special, tokens, _ = features(encoder.backbone, random_images(rows * side, columns * side))
    return np.concatenate([special, tokens], axis=1)


def timm_model(name: str, grid: tuple[int, int], side: int, **options: object) -> torch.nn.Module:
    """`name` with position embeddings for this grid."""
    size = (grid[0] * side, grid[1] * side)
    return timm.create_model(name, pretrained=False, img_size=size, **options)


def their_features(model: torch.nn.Module, rows: int, columns: int, side: int) -> np.ndarray:
    with torch.no_grad():
        images = channels_first(random_images(rows * side, columns * side))
        return (model.forward_features(images) if hasattr(model, "forward_features") else model(images)[0]).numpy()


def assert_same_as_timm(
    model: torch.nn.Module,
    folder: Path,
    format: str,
    family: str,
    grids: list[tuple[int, int]],
    arguments: dict[str, object] | None = None,
) -> None:
    """Saves a model as `save_for_hf` does, with config.json, in which the model's arguments are."""
    timm.models.save_for_hf(model, folder, model_args=arguments, safe_serialization=format == "safetensors")
    [source] = folder.glob(f"*.{format}")
    encoder, side = converted(source, family), model.patch_embed.patch_size[0]
    for grid in grids:
        theirs = their_features(model, *grid, side)
        np.testing.assert_allclose(our_features(encoder, *grid), theirs, rtol=0, atol=ATOL)
    preprocessing = encoder.config.preprocessing
    assert (preprocessing.mean, preprocessing.std) == (model.pretrained_cfg["mean"], model.pretrained_cfg["std"])


@pytest.mark.parametrize(
    ("name", "format", "family"),
    [
        ("vit_small_patch14_dinov2", "safetensors", "dinov2-timm"),
        ("vit_small_patch14_reg4_dinov2", "bin", "dinov2-timm"),
        ("vit_giant_patch14_dinov2", "bin", "dinov2-timm"),
        ("vit_giant_patch14_reg4_dinov2", "safetensors", "dinov2-timm"),
        ("vit_base_patch16_224", "bin", "vit-timm"),
        ("deit_tiny_distilled_patch16_224", "safetensors", "deit-timm"),
    ],
)
def test_small_vits_of_timm(folder: Path, name: str, format: str, family: str) -> None:
    side = 16 if "patch16" in name else 14
    model = randomize(timm_model(name, STORED, side, dynamic_img_size=True, **SMALL))
    arguments = {**SMALL, "img_size": [length * side for length in STORED]}
    assert_same_as_timm(model, folder, format, family, [STORED, OTHER], arguments)


@pytest.mark.parametrize(
    ("name", "format", "family"),
    [
        ("vit_small_patch14_dinov2", "bin", "dinov2-timm"),
        ("vit_small_patch14_reg4_dinov2", "safetensors", "dinov2-timm"),
        ("vit_base_patch16_224", "safetensors", "vit-timm"),
        ("deit_tiny_distilled_patch16_224", "bin", "deit-timm"),
    ],
)
def test_vits_of_timm_at_their_size(folder: Path, name: str, format: str, family: str) -> None:
    model = randomize(timm.create_model(name, pretrained=False, dynamic_img_size=True))
    assert_same_as_timm(model, folder, format, family, [OTHER])


@pytest.mark.parametrize("is_gated", [False, True], ids=["GELU", "SwiGLU"])
@pytest.mark.parametrize(
    ("name", "registers"),
    [
        ("Dinov2Model", 0),
        ("Dinov2WithRegistersModel", 4),
        ("Dinov2ForImageClassification", 0),
        ("Dinov2WithRegistersForImageClassification", 4),
    ],
)
def test_transformers(folder: Path, name: str, registers: int, is_gated: bool) -> None:
    """With heads 32 channels wide, which only config.json says."""
    config = getattr(transformers, "Dinov2WithRegistersConfig" if registers else "Dinov2Config")(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4 * SIDE,
        patch_size=SIDE,
        use_swiglu_ffn=is_gated,
        **({"num_register_tokens": registers} if registers else {}),
    )
    model = randomize(getattr(transformers, name)(config))
    model.save_pretrained(folder)
    encoder = converted(folder / "model.safetensors", "dinov2-transformers")
    for grid in (STORED, OTHER):
        theirs = their_features(model.base_model, *grid, SIDE)
        np.testing.assert_allclose(our_features(encoder, *grid), theirs, rtol=0, atol=ATOL)


ORIGINAL = {"reg_token": "register_tokens", "mlp.fc1": "mlp.w12", "mlp.fc2": "mlp.w3"}
"""What timm calls parts of DINOv2 -> what they were called; the MLP's in ViT-g only."""


def original(model: torch.nn.Module, *, is_gated: bool) -> dict[str, torch.Tensor]:
    """timm's weights under the original names. The class token always has a position embedding of its own there."""
    tensors = {"mask_token": torch.zeros(1, model.embed_dim), **model.state_dict()}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("head.")}
    if model.no_embed_class:
        position = tensors["cls_token"] / 4
        tensors["cls_token"] = tensors["cls_token"] - position
        tensors["pos_embed"] = torch.cat([position, tensors["pos_embed"]], dim=1)
    for old, new in ORIGINAL.items():
        if is_gated or not old.startswith("mlp"):
            tensors = {name.replace(old, new): tensor for name, tensor in tensors.items()}
    return tensors


def originally_resized(positions: torch.Tensor, grid: tuple[int, int], *, registers: bool) -> torch.Tensor:
    """Position embeddings without those of special tokens, [1, M * M, C], as the original resizes them."""
    side = round(positions.shape[1] ** 0.5)
    square = positions.reshape(1, side, side, -1).permute(0, 3, 1, 2)
    if registers:
        resized = functional.interpolate(square, size=grid, mode="bicubic", antialias=True)
    else:
        scale = tuple((length + 0.1) / side for length in grid)
        resized = functional.interpolate(square, scale_factor=scale, mode="bicubic")
    assert resized.shape[2:] == grid
    return resized.flatten(2).mT


@pytest.mark.parametrize("is_gated", [False, True], ids=["GELU", "SwiGLU"])
@pytest.mark.parametrize("registers", [False, True], ids=["without registers", "with registers"])
def test_original_dinov2(folder: Path, registers: bool, is_gated: bool) -> None:
    name = f"vit_{'giant' if is_gated else 'small'}_patch14_{'reg4_' if registers else ''}dinov2"
    model = randomize(timm_model(name, STORED, SIDE, **SMALL))
    torch.save(original(model, is_gated=is_gated), folder / "pretrain.pth")
    encoder = converted(folder / "pretrain.pth", "dinov2", SMALL["num_heads"])
    theirs = their_features(model, *STORED, SIDE)
    np.testing.assert_allclose(our_features(encoder, *STORED), theirs, rtol=0, atol=ATOL)

    tensors = model.state_dict()
    own, positions = tensors["pos_embed"].split([int(not registers), STORED[0] * STORED[1]], dim=1)
    resized = originally_resized(positions, OTHER, registers=registers)
    other = timm_model(name, OTHER, SIDE, **SMALL).eval()
    other.load_state_dict(tensors | {"pos_embed": torch.cat([own, resized], dim=1)})
    theirs = their_features(other, *OTHER, SIDE)
    np.testing.assert_allclose(our_features(encoder, *OTHER), theirs, rtol=0, atol=ATOL)
