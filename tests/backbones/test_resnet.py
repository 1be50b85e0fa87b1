"""The stem of a hybrid against its definition, loop by loop, and the ViT behind it."""

import jax
import numpy as np
import pytest
from flax import nnx

from hourglass_jax.backbones.resnet import Convolution, GroupNorm, ResNet, ResNetConfig
from hourglass_jax.backbones.vit import ViT, ViTConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = ResNetConfig((1, 2), (128, 256), 32)


def randomized(make):
    """A module whose parameters are random."""
    module = nnx.eval_shape(make)
    random = np.random.default_rng(0)
    nnx.update(
        module, jax.tree.map(lambda each: random.normal(0, 0.3, each.shape).astype(np.float32), nnx.state(module))
    )
    return module


def images(rows: int, columns: int, channels: int = 3, batch: int = 1) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, rows, columns, channels)).astype(np.float32)


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_a_convolution_is_padded_as_in_tensorflow(side: int, stride: int, size: tuple[int, int]) -> None:
    """As many positions as strides begin in the image; the padding is even, or one more at the end."""
    module = randomized(lambda: Convolution(side, 2, 3, stride=stride, dtype=np.float32, rngs=nnx.Rngs(0)))
    x = images(*size, channels=2)
    found = np.asarray(module(x))[0]
    kernel = np.asarray(module.kernel[...], np.float64)
    outputs = [-(-length // stride) for length in size]
    before = [max((n - 1) * stride + side - length, 0) // 2 for n, length in zip(outputs, size, strict=True)]
    assert found.shape == (*outputs, 3)
    for y, x_ in np.ndindex(*outputs):
        expected = np.zeros(3)
        for i, j in np.ndindex(side, side):
            row, column = y * stride + i - before[0], x_ * stride + j - before[1]
            if 0 <= row < size[0] and 0 <= column < size[1]:
                expected += x[0, row, column] @ kernel[i, j]
        np.testing.assert_allclose(found[y, x_], expected, atol=1e-5)


def test_a_group_norm_is_over_positions_and_the_channels_of_a_group() -> None:
    module = randomized(lambda: GroupNorm(64, dtype=np.float32, rngs=nnx.Rngs(0)))
    x = images(3, 4, channels=64, batch=2) * 5 + 20
    found = module(x)
    for image, group in np.ndindex(2, 32):
        channels = slice(2 * group, 2 * group + 2)
        values = x[image, ..., channels].astype(np.float64)
        normed = (values - values.mean()) / np.sqrt(((values - values.mean()) ** 2).mean() + 1e-5)
        expected = normed * module.scale[...][channels] + module.bias[...][channels]
        np.testing.assert_allclose(found[image, ..., channels], expected, atol=2e-5)


@pytest.mark.parametrize("size", [(32, 48), (40, 24)])
def test_maps_of_the_stages(size: tuple[int, int]) -> None:
    model = randomized(lambda: ResNet(CONFIG, dtype=np.float32, rngs=nnx.Rngs(0)))
    first, second = nnx.jit(lambda model, x: model(x))(model, images(*size, batch=2))
    assert first.shape == (2, size[0] // 4, size[1] // 4, 128)
    assert second.shape == (2, size[0] // 8, size[1] // 8, 256)
    assert min(np.asarray(each).min() for each in (first, second)) == 0
    assert (np.asarray(second) > 0).mean() > 0.2


def test_a_hybrid_embeds_the_last_map() -> None:
    config = ViTConfig(patch_size=16, width=32, depth=2, heads=2, position_grid=(2, 3), stem=CONFIG)
    vit = randomized(lambda: ViT(config, rngs=nnx.Rngs(0)))
    x = images(32, 48)
    maps = nnx.jit(lambda vit, x: vit(x).stem)(vit, x)
    assert vit.token_grid(32, 48) == (2, 3)
    assert [each.shape for each in maps] == [(1, 8, 12, 128), (1, 4, 6, 256)]
    assert vit.patch_embedding.projection.kernel.shape == (2 * 2 * 256, 32)
    patch = np.asarray(maps[1])[0, 2:4, 4:6].reshape(-1)
    embedded = patch @ vit.patch_embedding.projection.kernel[...] + vit.patch_embedding.projection.bias[...]
    token = embedded + vit.position_embedding[1, 2]
    np.testing.assert_allclose(vit.embed(maps[1])[0, 5], token, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ResNetConfig((3, 4), (256,)), r"as many as stages, got \(3, 4\) and \(256,\)"),
        (lambda: ResNetConfig((1,), (64,)), "multiples of 32 channels, got 16"),
        (lambda: ResNetConfig((1,), (128,), 20), "multiples of 32 channels, got 20"),
        (lambda: ViTConfig(patch_size=12, stem=CONFIG), "a multiple of the stem's stride, 8, got 12"),
    ],
)
def test_bad_configs_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
