"""Checkpoints of Swin V1 and V2 in every naming: configs, where parameters come from, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.encoder import EncoderConfig
from tests.convert.checkpoints import Arrays, random_arrays, write_safetensors

FAMILIES = {"swin", "swin-timm", "swin-detectron2"}
WIDTH, DEPTHS, HEADS, WINDOW, PATCH = 8, (1, 2, 1, 1), 2, 3, 4
BACKBONE = SwinConfig(WIDTH, DEPTHS, head_width=4, window=WINDOW, mlp_ratio=2.0)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def swin(
    *,
    prefix: str = "",
    version: int = 1,
    norms: tuple[str, ...] = ("norm",),
    merging_stage: int = 0,
    last: int = WINDOW,
) -> Arrays:
    """A checkpoint's weights; `last` is the side of the windows of its last stage."""
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        **{f"patch_embed.{name}": (WIDTH,) for name in ("proj.bias", "norm.weight", "norm.bias")},
    }
    for stage, depth in enumerate(DEPTHS):
        width, heads = WIDTH * 2**stage, HEADS * 2**stage
        side = 2 * (last if stage == 3 else WINDOW) - 1
        for number in range(depth):
            block = f"layers.{stage}.blocks.{number}."
            for name, inputs, outputs in (
                ("attn.proj", width, width), ("mlp.fc1", width, 2 * width), ("mlp.fc2", 2 * width, width),
            ):  # fmt: skip
                shapes |= {f"{block}{name}.weight": (outputs, inputs), f"{block}{name}.bias": (outputs,)}
            shapes |= {
                f"{block}{norm}.{leaf}": (width,) for norm in ("norm1", "norm2") for leaf in ("weight", "bias")
            }
            shapes[f"{block}attn.qkv.weight"] = (3 * width, width)
            if version == 1:
                shapes |= {
                    f"{block}attn.qkv.bias": (3 * width,),
                    f"{block}attn.relative_position_bias_table": (side**2, heads),
                }
            else:
                shapes |= {f"{block}attn.{name}_bias": (width,) for name in "qv"}
                shapes |= {
                    f"{block}attn.logit_scale": (heads, 1, 1),
                    f"{block}attn.cpb_mlp.0.weight": (512, 2),
                    f"{block}attn.cpb_mlp.0.bias": (512,),
                    f"{block}attn.cpb_mlp.2.weight": (heads, 512),
                }
        if stage < 3:
            merging, normed = f"layers.{stage + merging_stage}.downsample.", (4 if version == 1 else 2) * width
            shapes[f"{merging}reduction.weight"] = (2 * width, 4 * width)
            shapes |= {f"{merging}norm.{leaf}": (normed,) for leaf in ("weight", "bias")}
    for number, norm in enumerate(norms, start=4 - len(norms)):
        shapes |= {f"{norm}.{leaf}": (WIDTH * 2**number,) for leaf in ("weight", "bias")}
    return {prefix + name: array for name, array in random_arrays(shapes).items()}


def coordinates(side: int, unit: int) -> np.ndarray:
    """V2's buffer of coordinates for windows of this side, in units of others."""
    offsets = np.arange(1 - side, side) * 8 / (unit - 1)
    logarithms = (np.sign(offsets) * np.log2(np.abs(offsets) + 1) / 3).astype(np.float32)
    return np.stack(np.meshgrid(logarithms, logarithms, indexing="ij"), axis=-1)[None]


def buffers(prefix: str, version: int, units: tuple[int, ...]) -> Arrays:
    """What official checkpoints hold besides weights: images of 8 x 8 windows in the first stage's second block."""
    found = {f"{prefix}layers.0.blocks.1.attn_mask": np.zeros((64, 9, 9), np.float32)}
    for stage, depth in enumerate(DEPTHS):
        for number in range(depth):
            attention = f"{prefix}layers.{stage}.blocks.{number}.attn."
            found[f"{attention}relative_position_index"] = np.zeros((9, 9), np.int64)
            if version == 2:
                found[f"{attention}relative_coords_table"] = coordinates(WINDOW, units[stage])
    return found


def written(arrays: Arrays, folder: Path, settings: dict | None = None) -> Path:
    if settings is not None:
        (folder / "config.json").write_text(json.dumps(settings))
    return write_safetensors(folder / "checkpoint.bin", arrays)


def assert_same_weights(path: Path, arrays: Arrays, *, prefix: str = "", merging_stage: int = 0) -> None:
    """Of the second stage's second block and of what follows it."""
    backbone = hj.load(path).backbone
    block, theirs = backbone.stages[1].blocks[1], f"{prefix}layers.1.blocks.1."
    np.testing.assert_array_equal(block.attention.qkv.kernel[...], arrays[f"{theirs}attn.qkv.weight"].T)
    np.testing.assert_array_equal(block.mlp.contract.bias[...], arrays[f"{theirs}mlp.fc2.bias"])
    bias, attention = block.attention.qkv.bias[...], block.attention
    if backbone.config.version == 1:
        np.testing.assert_array_equal(bias, arrays[f"{theirs}attn.qkv.bias"])
        table = arrays[f"{theirs}attn.relative_position_bias_table"]
        np.testing.assert_array_equal(attention.position_bias.table[1, 3], table[5 + 3])
    else:
        q, v = (arrays[f"{theirs}attn.{name}_bias"] for name in "qv")
        np.testing.assert_array_equal(bias, np.concatenate([q, np.zeros_like(q), v]))
        np.testing.assert_array_equal(attention.logit_scale[...], arrays[f"{theirs}attn.logit_scale"][:, 0, 0])
        expected = arrays[f"{theirs}attn.cpb_mlp.2.weight"].T
        np.testing.assert_array_equal(attention.position_bias.contract.kernel[...], expected)
    merging = f"{prefix}layers.{1 + merging_stage}.downsample."
    np.testing.assert_array_equal(
        backbone.stages[1].merging.reduction.kernel[...], arrays[f"{merging}reduction.weight"].T
    )


@pytest.mark.parametrize("version", [1, 2])
def test_classifiers_of_microsoft(tmp_path: Path, version: int) -> None:
    units = (3, 3, 2, 2)
    extra = buffers("", version, units) | {"head.weight": np.zeros((2, 64)), "head.bias": np.zeros(2)}
    arrays = swin(version=version)
    summary = convert(written(arrays | extra, tmp_path))
    assert (summary.family, sum(summary.dropped.values())) == ("swin", len(extra))
    backbone = SwinConfig(
        *(WIDTH, DEPTHS, 4, WINDOW, version),
        pretrained_windows=units if version == 2 else (),
        shrink_windows=True,
        stage_norms=False,
        mlp_ratio=2.0,
    )
    preprocessing = Preprocessing(96, 32, interpolation="bicubic", mean=MEAN, std=STD)
    assert hj.load(summary.target).config == EncoderConfig(backbone, preprocessing)
    assert_same_weights(summary.target, arrays)


@pytest.mark.parametrize("version", [1, 2])
def test_classifiers_of_timm(tmp_path: Path, version: int) -> None:
    """A V1 whose last stage had smaller windows, and a V2 whose name alone says what its windows were."""
    arrays = swin(version=version, merging_stage=1, last=2) | {"head.fc.weight": np.zeros((2, 64))}
    settings = {
        "architecture": "swinv2_small_window2to3_64to96",
        "pretrained_cfg": {"input_size": [3, 128, 128], "mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]},
    }
    summary = convert(written(arrays, tmp_path, settings))
    assert (summary.family, sum(summary.dropped.values())) == ("swin-timm", 1)
    config = hj.load(summary.target).config
    assert (config.preprocessing.size, config.preprocessing.mean) == (128, (0.1, 0.2, 0.3))
    assert config.backbone.window == WINDOW
    assert config.backbone.pretrained_windows == ((3, 3, 3, 2) if version == 1 else (2, 2, 2, 2))
    assert_same_weights(summary.target, arrays, merging_stage=1)


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize("version", [1, 2])
def test_backbones_of_detectors(tmp_path: Path, version: int, prefix: str) -> None:
    arrays = swin(prefix=prefix, version=version, norms=("norm0", "norm1", "norm2", "norm3"))
    extra = buffers(prefix, version, (3,) * 4)
    if prefix:
        extra["sem_seg_head.predictor.query_feat.weight"] = np.zeros((2, 2))
    source = written(arrays | extra, tmp_path)
    if prefix:
        with pytest.raises(CheckpointError, match=r"head is not known here: .* with --model swin-detectron2"):
            convert(source)
    summary = convert(source, family="swin-detectron2")
    assert (summary.family, sum(summary.dropped.values())) == ("swin-detectron2", len(extra))
    backbone = SwinConfig(WIDTH, DEPTHS, 4, WINDOW, version, mlp_ratio=2.0)
    preprocessing = Preprocessing(800, 32, "shortest", MEAN, STD)
    assert hj.load(summary.target).config == EncoderConfig(backbone, preprocessing)
    assert_same_weights(summary.target, arrays, prefix=prefix)
    norms = hj.load(summary.target).backbone.norms
    np.testing.assert_array_equal(norms[2].scale[...], arrays[f"{prefix}norm2.weight"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"version": 2}, r"window of a Swin V2 does not show .* got none"),
        ({"last": 4}, r"expected windows of one size in all stages, got \[3, 3, 3, 4\]"),
    ],
)
def test_windows_that_are_not_known(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(written(swin(merging_stage=1, **options), tmp_path))


def test_a_classifiers_size_without_a_mask_or_settings(tmp_path: Path) -> None:
    assert hj.load(convert(written(swin(), tmp_path)).target).config.preprocessing.size == 8 * WINDOW * PATCH


ARGUMENTS = {"window_size": WINDOW, "img_size": 96, "depths": list(DEPTHS)}


def test_windows_and_units_of_timms_arguments(tmp_path: Path) -> None:
    """A window without published units has that of the map where it is larger."""
    arrays = swin(version=2, merging_stage=1)
    backbone = convert(written(arrays, tmp_path, {"model_args": ARGUMENTS | {"img_size": 32}})).config["backbone"]
    assert (backbone["window"], backbone["pretrained_windows"]) == (WINDOW, [3, 3, 2, 1])
    settings = {"model_args": ARGUMENTS | {"pretrained_window_sizes": [2, 2, 2, 1]}}
    assert convert(written(arrays, tmp_path, settings)).config["backbone"]["pretrained_windows"] == [2, 2, 2, 1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window_size": 2}, "they say window_size 2, the checkpoint has 3|they say window_size 2, it has 3"),
        ({"window_size": [3, 4]}, r"window_size in the settings must be square, got \(3, 4\)"),
        ({"depths": [2, 2, 18, 2]}, r"they say depths \(2, 2, 18, 2\), the checkpoint has"),
        ({"num_heads": [3, 6, 12, 24]}, r"they say num_heads \(3, 6, 12, 24\), the checkpoint has"),
        ({"embed_dim": 96}, r"they say embed_dim \(96,\), the checkpoint has"),
        ({"always_partition": True}, "always_partition True, which no model here has"),
        ({"act_layer": "relu"}, "act_layer 'relu', which no model here has"),
        ({"rotary": 1}, "an argument 'rotary' of timm"),
        ({"window_size": -3}, "window_size in the settings must be a positive integer"),
        ({"img_size": "96"}, "img_size in the settings must be a positive integer"),
    ],
)
def test_arguments_of_timm_that_cannot_be_honoured(tmp_path: Path, arguments: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(written(swin(merging_stage=1), tmp_path, {"model_args": ARGUMENTS | arguments}))


@pytest.mark.parametrize("options", [{"heads": 7}, {"grid": (3, 3)}])
def test_a_swin_takes_neither_heads_nor_a_grid(tmp_path: Path, options: dict) -> None:
    with pytest.raises(CheckpointError, match="leave --heads and --grid out"):
        convert(written(swin(), tmp_path), **options)
