"""`ops.resize` against `torch.nn.functional.interpolate` in float64: in float32 it rounds positions."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
import torch

from hourglass_jax.ops.resize import resize, resize_matrix

TORCH_OPTIONS = {
    "bilinear": {"mode": "bilinear"},
    "bicubic": {"mode": "bicubic"},
    "bicubic-antialias": {"mode": "bicubic", "antialias": True},
    "bilinear-align-corners": {"mode": "bilinear", "align_corners": True},
    "bicubic-align-corners": {"mode": "bicubic", "align_corners": True},
}
methods = pytest.mark.parametrize("method", TORCH_OPTIONS)


def interpolate(images: np.ndarray, method: str, **size_or_scale: object) -> np.ndarray:
    channels_first = torch.from_numpy(images.astype(np.float64)).permute(0, 3, 1, 2)
    resized = torch.nn.functional.interpolate(channels_first, **size_or_scale, **TORCH_OPTIONS[method])
    return resized.permute(0, 2, 3, 1).numpy()


def random_maps(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(2, rows, columns, 3)).astype(np.float32)


@methods
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ((5, 5), (9, 12)),
        ((37, 37), (16, 23)),
        ((7, 4), (3, 11)),
        ((6, 5), (6, 9)),
        ((1, 3), (4, 1)),
        ((8, 2), (1, 1)),
        ((16, 16), (37, 5)),
        ((4, 7), (4, 7)),
    ],
)
def test_resize_is_interpolate(method: str, source: tuple[int, int], target: tuple[int, int]) -> None:
    images = random_maps(*source)
    resized = resize(jnp.asarray(images), target, method)
    np.testing.assert_allclose(resized, interpolate(images, method, size=target), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    ("method", "target"),
    [
        *itertools.product(["bilinear", "bicubic", "bicubic-antialias"], [(16, 16), (8, 5), (52, 40)]),
        ("bicubic", (37, 36)),
    ],
)
def test_scale_with_the_offset_of_dinov2(method: str, target: tuple[int, int]) -> None:
    images = random_maps(37, 37)
    scale = tuple((side + 0.1) / 37 for side in target)
    expected = interpolate(images, method, scale_factor=scale)
    assert expected.shape[1:3] == target
    resized = resize(jnp.asarray(images), target, method, scale=scale)
    np.testing.assert_allclose(resized, expected, rtol=0, atol=2e-6)


@methods
@pytest.mark.parametrize(("source", "target"), [(5, 12), (12, 5), (7, 7), (1, 4), (9, 1)])
def test_matrix_holds_the_response_to_every_impulse(method: str, source: int, target: int) -> None:
    impulses = np.repeat(np.eye(source), 2, axis=1).reshape(source, source, 2, 1)
    expected = interpolate(impulses, method, size=(target, 2))[:, :, 0, 0].T
    matrix = resize_matrix(source, target, method)
    np.testing.assert_allclose(matrix, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(matrix.sum(axis=1), np.ones(target), rtol=1e-12)


@methods
def test_half_precision_is_the_rounded_float32_result(method: str) -> None:
    images = jnp.asarray(random_maps(6, 5), jnp.bfloat16)
    resized = resize(images, (9, 3), method)
    assert resized.dtype == jnp.bfloat16
    expected = interpolate(np.asarray(images, np.float32), method, size=(9, 3))
    np.testing.assert_allclose(resized.astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
