"""The hourglass against its composition from PyTorch's own operators, as the official repositories do it."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hourglass_jax import Hourglass, cluster_tokens, expedite, reconstruct_tokens
from tests.parity.hourglasses import Grid, torch_clusters, torch_tokens
from tests.parity.vits import TIMM, channels_first, config_of_timm, features, ours, random_images, randomize


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("token_grid", "cluster_grid", "window"),
    [
        ((12, 12), (6, 6), 5),
        ((44, 44), (26, 26), 5),
        ((30, 44), (17, 26), 7),
        ((14, 9), (4, 5), 3),
        ((11, 10), (11, 10), 3),
        ((6, 7), (1, 9), 5),
    ],
)
@pytest.mark.parametrize(("iterations", "temperature"), [(1, 5.0), (5, 50.0), (5, 2.0)])
def test_clusters(token_grid: Grid, cluster_grid: Grid, window: int, iterations: int, temperature: float) -> None:
    """Ours in float32 against float64; a home cell in the wrong place is 0.05 or more away."""
    tokens = normal(2, token_grid[0] * token_grid[1], 16)
    clusters = cluster_tokens(
        jnp.asarray(tokens),
        token_grid=token_grid,
        cluster_grid=cluster_grid,
        window=window,
        iterations=iterations,
        temperature=temperature,
    )
    expected = torch_clusters(
        torch.from_numpy(tokens).double(),
        token_grid,
        cluster_grid,
        window=window,
        iterations=iterations,
        multiplier=1 / temperature,
    )
    np.testing.assert_allclose(clusters, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("normalize", "norm"), [("l2", 2), ("sum", 1)])
@pytest.mark.parametrize(("tokens", "clusters"), [(44 * 44, 26 * 26), (126, 20), (36, 7)])
@pytest.mark.parametrize(("neighbors", "temperature"), [(1, 5.0), (10, 2.0), (20, 50.0), (1000, 5.0)])
def test_tokens(tokens: int, clusters: int, neighbors: int, temperature: float, normalize: str, norm: int) -> None:
    z, s, refined = normal(2, tokens, 16), normal(2, clusters, 16, seed=1), normal(2, clusters, 8, seed=2)
    reconstructed = reconstruct_tokens(
        jnp.asarray(refined),
        tokens=jnp.asarray(z),
        clusters=jnp.asarray(s),
        neighbors=neighbors,
        temperature=temperature,
        normalize=normalize,
    )
    expected = torch_tokens(
        *(torch.from_numpy(array).double() for array in (refined, z, s)),
        neighbors=neighbors,
        multiplier=1 / temperature,
        norm=norm,
    )
    np.testing.assert_allclose(reconstructed, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "grid", "plan"),
    [
        ("vit_small_patch14_dinov2", (8, 8), Hourglass(1, (5, 5), window=3, temperature=50.0, neighbors=5)),
        ("vit_small_patch14_reg4_dinov2", (6, 11), Hourglass(0, (3, 5), beta=2, temperature=20.0, neighbors=4)),
        ("vit_base_patch16_224", (9, 7), Hourglass(1, (5, 4), beta=1, iterations=2, temperature=50.0)),
    ],
)
def test_vit(name: str, grid: Grid, plan: Hourglass) -> None:
    """Blocks of timm on the clusters, class and register tokens alongside, with weights that sum to one."""
    timm = pytest.importorskip("timm")
    side = 14 if "patch14" in name else 16
    model = randomize(
        timm.create_model(
            name,
            pretrained=False,
            num_classes=0,
            img_size=4 * side,
            dynamic_img_size=True,
            embed_dim=48,
            depth=3,
            num_heads=3,
        )
    )
    vit = expedite(ours(model, TIMM, config_of_timm(model)), plan)
    images = random_images(grid[0] * side, grid[1] * side)
    special, tokens, (inside, last) = features(vit, images, intermediates=(1, 2))

    with torch.no_grad():
        expected, expected_inside = torch_hourglass(model.double(), channels_first(images).double(), grid, plan)
        normed = model.norm(expected)
    count = model.num_prefix_tokens
    np.testing.assert_allclose(inside, expected_inside, rtol=0, atol=1e-4)
    np.testing.assert_allclose(last, expected[:, count:], rtol=0, atol=1e-4)
    np.testing.assert_allclose(special, normed[:, :count], rtol=0, atol=1e-4)
    np.testing.assert_allclose(tokens, normed[:, count:], rtol=0, atol=1e-4)


def torch_hourglass(
    model: torch.nn.Module, images: torch.Tensor, grid: Grid, plan: Hourglass
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the last block of three returns, in full, and the image's tokens after the second."""
    multiplier = 1 / plan.temperature
    end = len(model.blocks) if plan.beta is None else plan.alpha + plan.beta
    x = model._pos_embed(model.patch_embed(images))
    special, values = x.tensor_split([model.num_prefix_tokens], dim=1)
    after_blocks = []
    for index, block in enumerate(model.blocks):
        if index == plan.alpha:
            z = values
            s = values = torch_clusters(
                z,
                grid,
                plan.clusters,
                window=plan.window,
                iterations=plan.iterations,
                multiplier=multiplier,
            )
        x = block(torch.cat([special, values], dim=1))
        special, values = x.tensor_split([model.num_prefix_tokens], dim=1)
        restored = values
        if plan.alpha <= index < end:
            restored = torch_tokens(values, z, s, neighbors=plan.neighbors, multiplier=multiplier, norm=1)
        if index == end - 1:
            values = restored
        after_blocks.append(restored)
    return torch.cat([special, values], dim=1), after_blocks[1]
