"""`ViT` against timm and transformers, with random weights."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hourglass_jax.backbones.vit import ViTConfig
from tests.parity.vits import (
    TIMM,
    TRANSFORMERS_DINOV2,
    TRANSFORMERS_VIT,
    channels_first,
    config_of_timm,
    features,
    ours,
    random_images,
    randomize,
)

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

TIMM_NAMES = ["vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2", "vit_base_patch16_224"]
SMALL_ATOL = 1e-5
"""On features of order one; another epsilon of the norms (1e-5 for 1e-6) is 4e-5 away."""
SMALL = {"embed_dim": 48, "depth": 2, "num_heads": 3}
GRIDS = [(4, 4), (3, 5), (7, 6)]
"""Of images; the position embeddings of the small models are 4 x 4."""


def timm_model(name: str, rows: int, columns: int, **options: int) -> torch.nn.Module:
    """`name` for an image of `rows` x `columns` patches."""
    side = 14 if "patch14" in name else 16
    size = (rows * side, columns * side)
    model = timm.create_model(
        name, pretrained=False, num_classes=0, img_size=size, dynamic_img_size=True, **options
    )
    return randomize(model)


def assert_same_as_timm(model: torch.nn.Module, grids: list[tuple[int, int]], *, atol: float) -> None:
    config = config_of_timm(model)
    vit = ours(model, TIMM, config)
    indices = (0, config.depth - 1)
    for rows, columns in grids:
        images = random_images(rows * config.patch_size, columns * config.patch_size)
        with torch.no_grad():
            final, expected = model.forward_intermediates(
                channels_first(images), indices=list(indices), output_fmt="NLC"
            )
        special, tokens, intermediates = features(vit, images, intermediates=indices)
        np.testing.assert_allclose(np.concatenate([special, tokens], axis=1), final, rtol=0, atol=atol)
        for mine, theirs in zip(intermediates, expected, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_small_vits_of_timm(name: str) -> None:
    assert_same_as_timm(timm_model(name, 4, 4, **SMALL), GRIDS, atol=SMALL_ATOL)


def test_position_embedding_of_an_oblong_grid() -> None:
    assert_same_as_timm(timm_model("vit_small_patch14_dinov2", 3, 5, **SMALL), [(3, 5), (5, 3)], atol=SMALL_ATOL)


@pytest.mark.parametrize("name", TIMM_NAMES)
def test_vits_of_timm_at_their_size(name: str) -> None:
    assert_same_as_timm(timm_model(name, 5, 5), [(5, 5), (3, 4)], atol=1e-4)


@pytest.mark.parametrize(
    ("name", "names", "layer_scale", "registers", "position_resize"),
    [
        ("Dinov2", TRANSFORMERS_DINOV2, True, 0, "bicubic"),
        ("Dinov2WithRegisters", TRANSFORMERS_DINOV2, True, 4, "bicubic-antialias"),
        ("ViT", TRANSFORMERS_VIT, False, 0, "bicubic"),
    ],
)
def test_vits_of_transformers(
    name: str, names: dict, layer_scale: bool, registers: int, position_resize: str
) -> None:
    """`hidden_states` starts with the embeddings, so that index i + 1 is what block i returns."""
    side, width, depth, heads = 14, 48, 2, 3
    their_config = getattr(transformers, f"{name}Config")(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        image_size=4 * side,
        patch_size=side,
        **({"num_register_tokens": registers} if registers else {}),
    )
    model = randomize(getattr(transformers, f"{name}Model")(their_config))
    config = ViTConfig(
        patch_size=side,
        width=width,
        depth=depth,
        heads=heads,
        special_tokens=1 + registers,
        position_grid=(4, 4),
        position_resize=position_resize,
        layer_scale=layer_scale,
        norm_epsilon=their_config.layer_norm_eps,
    )
    vit = ours(model, names, config)
    options = {"interpolate_pos_encoding": True} if name == "ViT" else {}
    for rows, columns in GRIDS:
        images = random_images(rows * side, columns * side)
        with torch.no_grad():
            expected = model(channels_first(images), output_hidden_states=True, **options)
        special, tokens, intermediates = features(vit, images, intermediates=tuple(range(depth)))
        final = np.concatenate([special, tokens], axis=1)
        np.testing.assert_allclose(final, expected.last_hidden_state, rtol=0, atol=SMALL_ATOL)
        for mine, theirs in zip(intermediates, expected.hidden_states[1:], strict=True):
            np.testing.assert_allclose(mine, theirs[:, config.special_tokens :], rtol=0, atol=SMALL_ATOL)


def test_bfloat16_computation_follows_float32() -> None:
    """Within 0.1 everywhere and 0.015 on average, on features of order one; one rounding is up to 0.004."""
    model = timm_model("vit_small_patch14_reg4_dinov2", 4, 4, **SMALL)
    images = random_images(70, 42)
    with torch.no_grad():
        expected = model.forward_features(channels_first(images)).numpy()
    special, tokens, _ = features(ours(model, TIMM, config_of_timm(model), dtype=jnp.bfloat16), images)
    assert tokens.dtype == jnp.bfloat16
    errors = np.abs(np.concatenate([special, tokens], axis=1).astype(np.float32) - expected)
    assert errors.max() < 0.1
    assert errors.mean() < 0.015
