"""Weights that are no numbers: NaN, infinity, complex numbers and integers."""

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from tests.convert.checkpoints import timm_vit, write_safetensors

VIT = timm_vit().arrays


def with_value(value: float, dtype: type = np.float32) -> dict[str, np.ndarray]:
    array = VIT["norm.weight"].astype(dtype)
    array[3] = value
    return VIT | {"norm.weight": array}


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named(tmp_path: Path, value: float, dtype: type) -> None:
    source = write_safetensors(tmp_path / "model.pth", with_value(value, dtype))
    with pytest.raises(
        CheckpointError, match=r"norm\.weight holds 1 of 64 values that are NaN or infinite, .*--allow"
    ):
        convert(source, family="vit-timm")
    assert [each.name for each in tmp_path.iterdir()] == ["model.pth"]
    summary = convert(source, family="vit-timm", allow_nonfinite=True)
    assert any("norm.scale holds 1 values that are NaN or infinite" in note for note in summary.notes)
    assert not np.isfinite(hj.load(summary.target).backbone.norm.scale[3])


def test_a_value_beyond_float32_is_named(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "model.pth", with_value(1e200, np.float64))
    with pytest.raises(CheckpointError, match=r"holds 1 of 64 values that are too large for it"):
        convert(source, family="vit-timm")


def test_what_is_dropped_may_be_anything(tmp_path: Path) -> None:
    arrays = VIT | {"head.weight": np.full((2, 64), np.nan, np.float32), "head.bias": np.zeros(2, np.int64)}
    source = write_safetensors(tmp_path / "model.pth", arrays)
    assert convert(source, family="vit-timm").dropped


@pytest.mark.parametrize("dtype", [np.complex64, np.int8, np.bool_])
def test_weights_of_other_kinds_are_refused(tmp_path: Path, dtype: type) -> None:
    np.savez(tmp_path / "model.npz", **(VIT | {"norm.weight": VIT["norm.weight"].astype(dtype)}))
    with pytest.raises(CheckpointError, match=r"norm\.weight must hold floating-point numbers, got"):
        convert(tmp_path / "model.npz", family="vit-timm")
