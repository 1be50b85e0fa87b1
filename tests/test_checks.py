"""Configs are checked when they are built: by a program, by the converter and when a file is loaded."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

import hourglass_jax as hj
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.dpt import DPTDepthConfig, DPTSegmentationConfig
from hourglass_jax.models.encoder import EncoderConfig
from hourglass_jax.models.registry import FORMAT
from hourglass_jax.models.saliency import SaliencyConfig
from hourglass_jax.models.segmenter import SegmenterConfig
from hourglass_jax.models.swag import SwagConfig

NAN, INFINITY = float("nan"), float("inf")
WRONG = [
    (ViTConfig, {"heads": -1}, "heads must be at least 1, got -1"),
    (ViTConfig, {"heads": 0}, "heads must be at least 1, got 0"),
    (ViTConfig, {"heads": 12.0}, r"heads must be an integer in 1\.\.1048576, got 12\.0"),
    (ViTConfig, {"heads": "12"}, "heads must be an integer in .*, got '12'"),
    (ViTConfig, {"heads": True}, "heads must be an integer in .*, got True"),
    (ViTConfig, {"heads": None}, "heads must be an integer in .*, got None"),
    (ViTConfig, {"depth": 10**9}, "depth must be at most 1024, got 1000000000"),
    (ViTConfig, {"width": 10**12, "heads": 1}, "width must be at most 1048576, got"),
    (ViTConfig, {"patch_size": 0}, "patch_size must be at least 1, got 0"),
    (ViTConfig, {"special_tokens": -1}, "special_tokens must be at least 0, got -1"),
    (ViTConfig, {"position_grid": (0, 14)}, "position_grid must be a list of 2, each an integer in"),
    (ViTConfig, {"position_grid": 14}, "position_grid must be a list of 2, .*, got 14"),
    (ViTConfig, {"position_grid": (1, 2, 3)}, "position_grid must be a list of 2"),
    (ViTConfig, {"position_grid": None}, "position_grid may be None only beside a rotary_base"),
    (ViTConfig, {"rotary_base": 0}, "rotary_base must be positive, .* got 0 and 64 channels"),
    (ViTConfig, {"rotary_base": 100.0, "width": 72}, "heads a multiple of 4 channels wide, got 100.0 and 6"),
    (ViTConfig, {"position_resize": "lanczos"}, "position_resize must be one of 'bilinear', .*, got 'lanczos'"),
    (ViTConfig, {"position_offset": NAN}, "position_offset must be a finite number, got nan"),
    (ViTConfig, {"norm_epsilon": NAN}, "norm_epsilon must be a finite number, got nan"),
    (ViTConfig, {"norm_epsilon": -1e-6}, "norm_epsilon not negative"),
    (ViTConfig, {"mlp_ratio": 0.0}, "mlp_ratio must be positive"),
    (ViTConfig, {"mlp_ratio": INFINITY}, "mlp_ratio must be a finite number, got inf"),
    (ViTConfig, {"layer_scale": 1}, "layer_scale must be true or false, got 1"),
    (ViTConfig, {"stem": {"depths": [1]}}, "stem must be a ResNetConfig or None, got"),
    (ViTConfig, {"predictors": ("3",)}, "predictors must be a list, each an integer"),
    (ResNetConfig, {"depths": (1000, 1000, 1000)}, "depths must be at most 1024 in all, got 3000"),
    (ResNetConfig, {"widths": "wide"}, "widths must be a list, each an integer"),
    (SwinConfig, {"depths": (2,) * 17}, "depths must be those of 1 to 16 stages, got 17"),
    (SwinConfig, {"depths": ()}, "depths must be those of 1 to 16 stages, got 0"),
    (SwinConfig, {"version": 3}, "version must be 1 or 2, got 3"),
    (SwinConfig, {"window": 0}, "window must be at least 1, got 0"),
    (SwinConfig, {"head_width": -32}, "head_width must be at least 1, got -32"),
    (Preprocessing, {"mean": (0.5, NAN, 0.5)}, "mean must be a list of 3, each a finite number, got"),
    (Preprocessing, {"std": (INFINITY, 1, 1)}, "std must be a list of 3, each a finite number, got"),
    (Preprocessing, {"mean": 0.5}, r"mean must be a list of 3, each a finite number, got 0\.5"),
    (Preprocessing, {"size": "large"}, "size must be an integer in .* or a list of 2"),
    (Preprocessing, {"size": 14 * 10**9}, "size must be an integer in"),
    (SlidingWindow, {"size": "512", "stride": 512}, "size must be an integer in"),
    (SegmenterConfig, {"classes": 10**9}, "classes must be at most 1048576"),
    (SegmenterConfig, {"decoder_depth": 10**6}, "decoder_depth must be at most 1024"),
    (
        SegmenterConfig,
        {"backbone": ViTConfig(width=96, heads=1)},
        "a mask transformer's width must be a multiple of 64",
    ),
    (SegmenterConfig, {"labels": Labels(("a",), ((0, 0, 0),))}, "labels must name 150 classes, got 1"),
    (SegmenterConfig, {"dataset": 3}, "dataset must be a text or None, got 3"),
    (SwagConfig, {"preprocessing": None}, "preprocessing must be a Preprocessing, got None"),
    (
        EncoderConfig,
        {"backbone": {}},
        "backbone must be a ViTConfig or a SwinConfig or a DetectorResNetConfig, got {}",
    ),
    (SaliencyConfig, {"decoder_widths": (8,) * 2000}, "at most 1024 decoder_widths, got 2000"),
    (DPTDepthConfig, {"hooks": (5, 11, 17, 24)}, "hooks must be blocks 0 to 23"),
    (DPTDepthConfig, {"max_depth": NAN}, "max_depth must be a finite number or None, got nan"),
    (DPTDepthConfig, {"inversion": (1.0,)}, "inversion must be a list of 2, each a finite number or None"),
    (DPTDepthConfig, {"widths": (1, 2, 3)}, "widths must be a list of 4"),
    (DPTSegmentationConfig, {"classes": -1}, "classes must be at least 1, got -1"),
]


@pytest.mark.parametrize(("cls", "fields", "message"), WRONG, ids=str)
def test_fields_of_wrong_types_or_out_of_range(cls: type, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls(**fields)


def test_lists_become_tuples_as_deep_as_they_go() -> None:
    labels = Labels(["a"], [[1, 2, 3]])
    assert (labels.names, labels.colors) == (("a",), ((1, 2, 3),))
    assert hash(ViTConfig(position_grid=[3, 2], predictors=[1]))


@pytest.mark.parametrize(
    "change",
    [
        {"depth": 10**9},
        {"depth": -1},
        {"width": 10**15},
        {"heads": 0},
        {"mlp_ratio": NAN},
        {"position_grid": [10**9, 10**9]},
        {"position_grid": None},
        {"stem": {"depths": [10**9], "widths": [128], "stem_width": 32}},
        {"stem": {"depths": "many"}},
        {"stem": []},
        {"predictors": [[]]},
        {"mlp": ["gelu"]},
    ],
    ids=str,
)
def test_a_file_with_such_a_config_is_refused_before_anything_is_built(tmp_path: Path, change: dict) -> None:
    config = dataclasses.asdict(EncoderConfig())
    config["backbone"] |= change
    path = tmp_path / "model.safetensors"
    notes = {"format": FORMAT, "model": "encoder", "config": json.dumps(config)}
    save_file({"x": np.zeros(1, np.float32)}, path, notes)
    with pytest.raises(ValueError, match=r"model\.safetensors holds no config of a encoder model: "):
        hj.load(path)


@pytest.mark.parametrize("config", ["", "null", "[]", "3", '{"backbone": 3}', "[" * 100_000, '{"no": 1}'])
def test_a_file_with_no_config_at_all(tmp_path: Path, config: str) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": np.zeros(1, np.float32)}, path, {"format": FORMAT, "model": "encoder", "config": config})
    with pytest.raises(ValueError, match=r"model\.safetensors holds no config of a encoder model: "):
        hj.load(path)
