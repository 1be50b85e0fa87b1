"""The ResNet of detectors against its definition, loop by loop."""

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.detector_resnet import (
    Bottleneck,
    Convolution,
    DetectorResNet,
    DetectorResNetConfig,
)

pytestmark = pytest.mark.usefixtures("quick_compilation")


def randomized(make):
    """A module whose parameters are random."""
    module = nnx.eval_shape(make)
    random = np.random.default_rng(0)
    nnx.update(
        module, jax.tree.map(lambda each: random.normal(0, 0.3, each.shape).astype(np.float32), nnx.state(module))
    )
    return module


def convolved(x: np.ndarray, module: Convolution) -> np.ndarray:
    """A convolution of one image [H, W, C], a position at a time, float64; zeros lie around the image."""
    kernel, bias = (np.asarray(each[...], np.float64) for each in (module.kernel, module.bias))
    reach = len(kernel) // 2
    outputs = [-(-length // module.stride) for length in x.shape[:2]]
    found = np.tile(bias, (*outputs, 1))
    for y, z in np.ndindex(*outputs):
        for i, j in np.ndindex(*kernel.shape[:2]):
            row, column = y * module.stride + i - reach, z * module.stride + j - reach
            if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                found[y, z] += x[row, column] @ kernel[i, j]
    return found


@pytest.mark.parametrize(("side", "stride"), [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
@pytest.mark.parametrize("size", [(8, 10), (7, 9)])
def test_a_convolution_has_as_much_padding_on_all_sides(side: int, stride: int, size: tuple[int, int]) -> None:
    module = randomized(lambda: Convolution(side, 2, 3, stride=stride, dtype=np.float32, rngs=nnx.Rngs(0)))
    x = np.random.default_rng(1).normal(size=(1, *size, 2)).astype(np.float32)
    np.testing.assert_allclose(module(x)[0], convolved(x[0], module), rtol=0, atol=1e-5)


@pytest.mark.parametrize("stride_first", [False, True])
def test_a_bottleneck_goes_around_its_shortcut(stride_first: bool) -> None:
    module = randomized(
        lambda: Bottleneck(
            3, 8, stride=2, stride_first=stride_first, is_first=True, dtype=np.float32, rngs=nnx.Rngs(0)
        )
    )
    x = np.random.default_rng(1).normal(size=(1, 7, 6, 3)).astype(np.float32)
    inner = np.maximum(convolved(x[0], module.convolution1), 0)
    assert inner.shape[:2] == ((4, 3) if stride_first else (7, 6))
    inner = np.maximum(convolved(inner, module.convolution2), 0)
    expected = np.maximum(convolved(inner, module.convolution3) + convolved(x[0], module.shortcut), 0)
    np.testing.assert_allclose(module(x)[0], expected, rtol=0, atol=1e-5)


def test_resnet_50_has_the_parameters_that_it_is_known_for() -> None:
    """25.6 million with the classifier of 2,049,000; its 53 batch norms' scales are folded away."""
    backbone = nnx.eval_shape(lambda: DetectorResNet(DetectorResNetConfig(), rngs=nnx.Rngs(0)))
    scales = sum(len(each.bias) for _, each in nnx.iter_modules(backbone) if isinstance(each, Convolution))
    parameters = sum(leaf.size for leaf in jax.tree.leaves(nnx.state(backbone)))
    assert parameters + scales == 25_557_032 - 2_049_000


def test_no_plan_fits() -> None:
    backbone = nnx.eval_shape(lambda: DetectorResNet(DetectorResNetConfig((1, 1, 1, 1), 8, 8), rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match="no tokens that a plan could make fewer: expected no plan, got Hourglass"):
        hj.expedite(backbone, hj.Hourglass(1, (3, 3)))
    assert backbone.token_counts(65, 32) == (3, 3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"depths": (3, 4)}, "depths must be those of 4 stages, got 2"),
        ({"width": 30}, "width must be a multiple of 4, got 30"),
    ],
)
def test_bad_configs_are_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DetectorResNetConfig(**fields)
