"""Checkpoints of DPT and Depth Anything V2 in all their namings: configs, and where parameters come from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.dpt import DPTConfig, DPTDepthConfig, DPTSegmentationConfig
from tests.convert.checkpoints import (
    GRID,
    PATCH,
    WIDTH,
    Arrays,
    Shapes,
    random_arrays,
    timm_vit,
    transformers_dinov2,
)

DEPTH, LARGE = 12, 24
WIDTHS, HYBRID_WIDTHS, FUSION = (5, 6, 7, 8), (128, 128, 7, 8), 4
STEM = {"depths": (1, 2, 1), "widths": (128, 128, 256), "stem_width": 32}
KITTI, NYU = (0.00006016, 0.00579), (0.000305, 0.1378)
FAMILIES = {
    *("dpt", "dpt-kitti", "dpt-nyu", "dpt-ade20k", "dpt-transformers"),
    *(
        "depth-anything-v1",
        "depth-anything-v2",
        "depth-anything-v2-indoor",
        "depth-anything-v2-outdoor",
        "depth-anything-transformers",
    ),
}


def named(layers: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Weights of these shapes, and biases."""
    weights = {f"{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"{name}.bias": shape[:1] for name, shape in layers.items()}


def batch_norm(name: str) -> Shapes:
    vector = dict.fromkeys(
        (f"{name}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")), (FUSION,)
    )
    return {**vector, f"{name}.num_batches_tracked": ()}


def fusion(name: str, units: tuple[str, str], out: str, parts: tuple[str, str, str, str], norms: bool) -> Shapes:
    """A block that fuses: two units of two convolutions, with batch norms or biases, and a projection."""
    shapes = named({f"{name}.{out}": (FUSION, FUSION, 1, 1)})
    for unit in units:
        for convolution, norm in zip(parts[:2], parts[2:], strict=True):
            if norms:
                shapes[f"{name}.{unit}.{convolution}.weight"] = (FUSION, FUSION, 3, 3)
                shapes |= batch_norm(f"{name}.{unit}.{norm}")
            else:
                shapes |= named({f"{name}.{unit}.{convolution}": (FUSION, FUSION, 3, 3)})
    return shapes


def reassembled(projection: str, resize: str, first: int, widths: tuple[int, ...], numbers: range) -> Shapes:
    """The projections and resizings of the maps with these numbers; `first` is what the finest is called."""
    sides = {0: (widths[0], 4), 1: (widths[1], 2), 3: (widths[3], 3)}
    shapes = named({projection.format(i + first): (widths[i], WIDTH, 1, 1) for i in numbers})
    return shapes | named(
        {resize.format(i + first): (width, width, side, side) for i, (width, side) in sides.items() if i in numbers}
    )


def stem(first: str, first_norm: str, block: str) -> Shapes:
    """A stem whose bottlenecks are called `block`, with places for stage and number."""
    shapes: Shapes = {f"{first}.weight": (STEM["stem_width"], 3, 7, 7)}
    norms = {first_norm: STEM["stem_width"]}
    inputs = STEM["stem_width"]
    for stage, (depth, width) in enumerate(zip(STEM["depths"], STEM["widths"], strict=True)):
        for number in range(depth):
            name = block.format(stage, number)
            shapes |= {
                f"{name}.conv1.weight": (width // 4, inputs, 1, 1),
                f"{name}.conv2.weight": (width // 4, width // 4, 3, 3),
                f"{name}.conv3.weight": (width, width // 4, 1, 1),
            }
            norms |= {f"{name}.norm1": width // 4, f"{name}.norm2": width // 4, f"{name}.norm3": width}
            if number == 0:
                shapes[f"{name}.downsample.conv.weight"] = (width, inputs, 1, 1)
                norms[f"{name}.downsample.norm"] = width
            inputs = width
    return shapes | {f"{name}.{leaf}": (width,) for name, width in norms.items() for leaf in ("weight", "bias")}


def head(prefix: str, classes: int | None) -> Shapes:
    """The last layers, of a sequence."""
    if classes:
        return {
            f"{prefix}0.weight": (FUSION, FUSION, 3, 3),
            **batch_norm(f"{prefix}1"),
            **named({f"{prefix}4": (classes, FUSION, 1, 1)}),
        }
    return named(
        {
            f"{prefix}0": (FUSION // 2, FUSION, 3, 3),
            f"{prefix}2": (32, FUSION // 2, 3, 3),
            f"{prefix}4": (1, 32, 1, 1),
        }
    )


def official(*, hybrid: bool = False, classes: int | None = None, depth: int = DEPTH) -> Arrays:
    model = "pretrained.model."
    arrays = timm_vit(model, depth=depth).arrays
    widths, numbers = (HYBRID_WIDTHS, range(2, 4)) if hybrid else (WIDTHS, range(4))
    post = "pretrained.act_postprocess{}."
    shapes = reassembled(f"{post}3", f"{post}4", 1, widths, numbers)
    shapes |= named({f"{post.format(i + 1)}0.project.0": (WIDTH, 2 * WIDTH) for i in numbers})
    if hybrid:
        backbone = f"{model}patch_embed.backbone."
        shapes |= stem(f"{backbone}stem.conv", f"{backbone}stem.norm", backbone + "stages.{}.blocks.{}")
        shapes[f"{model}patch_embed.proj.weight"] = (WIDTH, STEM["widths"][-1], 1, 1)
    for number, width in enumerate(widths, start=1):
        shapes[f"scratch.layer{number}_rn.weight"] = (FUSION, width, 3, 3)
        units = ("resConfUnit1", "resConfUnit2")
        parts = ("conv1", "conv2", "bn1", "bn2")
        shapes |= fusion(f"scratch.refinenet{number}", units, "out_conv", parts, classes is not None)
    shapes |= head("scratch.output_conv.", classes)
    shapes |= named({f"{model}head": (10, WIDTH)})
    return arrays | random_arrays(shapes | (head("auxlayer.", classes) if classes else {}), seed=1)


def of_transformers(*, hybrid: bool = False, classes: int | None = None) -> Arrays:
    widths, numbers = (HYBRID_WIDTHS, range(2, 4)) if hybrid else (WIDTHS, range(4))
    embeddings, stage = "dpt.embeddings.", "neck.reassemble_stage."
    patches, pixels = ("", (STEM["widths"][-1], 1, 1)) if hybrid else ("patch_embeddings.", (3, PATCH, PATCH))
    shapes: Shapes = {
        f"{embeddings}cls_token": (1, 1, WIDTH),
        f"{embeddings}position_embeddings": (1, 1 + GRID * GRID, WIDTH),
        **named({f"{embeddings}{patches}projection": (WIDTH, *pixels)}),
        **named({"dpt.layernorm": (WIDTH,)}),
        **neck(widths, numbers, norms=classes is not None),
        **named({f"{stage}readout_projects.{i}.0": (WIDTH, 2 * WIDTH) for i in numbers}),
        **head("head.head.", classes),
        **(head("auxiliary_head.head.", classes) if classes else {}),
    }
    if hybrid:
        bit = f"{embeddings}backbone.bit."
        shapes |= stem(f"{bit}embedder.convolution", f"{bit}embedder.norm", bit + "encoder.stages.{}.layers.{}")
    for number in range(DEPTH):
        layer = f"dpt.encoder.layer.{number}."
        shapes |= named(
            {
                **{f"{layer}attention.attention.{part}": (WIDTH, WIDTH) for part in ("query", "key", "value")},
                f"{layer}attention.output.dense": (WIDTH, WIDTH),
                f"{layer}intermediate.dense": (2 * WIDTH, WIDTH),
                f"{layer}output.dense": (WIDTH, 2 * WIDTH),
                f"{layer}layernorm_before": (WIDTH,),
                f"{layer}layernorm_after": (WIDTH,),
            }
        )
    return random_arrays(shapes)


def neck(widths: tuple[int, ...], numbers: range, *, norms: bool) -> Shapes:
    stage = "neck.reassemble_stage.layers.{}."
    shapes = reassembled(f"{stage}projection", f"{stage}resize", 0, widths, numbers)
    for number, width in enumerate(widths):
        shapes[f"neck.convs.{number}.weight"] = (FUSION, width, 3, 3)
        units = ("residual_layer1", "residual_layer2")
        parts = ("convolution1", "convolution2", "batch_norm1", "batch_norm2")
        shapes |= fusion(f"neck.fusion_stage.layers.{number}", units, "projection", parts, norms)
    return shapes


def depth_anything(*, depth: int = DEPTH) -> Arrays:
    mask = random_arrays({"pretrained.mask_token": (1, WIDTH)})
    scratch = "depth_head.scratch."
    shapes = reassembled("depth_head.projects.{}", "depth_head.resize_layers.{}", 0, WIDTHS, range(4))
    for number, width in enumerate(WIDTHS, start=1):
        shapes[f"{scratch}layer{number}_rn.weight"] = (FUSION, width, 3, 3)
        units = ("resConfUnit1", "resConfUnit2")
        parts = ("conv1", "conv2", "", "")
        shapes |= fusion(f"{scratch}refinenet{number}", units, "out_conv", parts, norms=False)
    output = f"{scratch}output_conv"
    shapes |= named(
        {
            f"{output}1": (FUSION // 2, FUSION, 3, 3),
            f"{output}2.0": (32, FUSION // 2, 3, 3),
            f"{output}2.2": (1, 32, 1, 1),
        }
    )
    vit = timm_vit("pretrained.", scales=True, depth=depth).arrays
    return {**vit, **mask, **random_arrays(shapes, seed=1)}


def depth_anything_transformers() -> Arrays:
    shapes = neck(WIDTHS, range(4), norms=False) | named(
        {
            "head.conv1": (FUSION // 2, FUSION, 3, 3),
            "head.conv2": (32, FUSION // 2, 3, 3),
            "head.conv3": (1, 32, 1, 1),
        }
    )
    return transformers_dinov2("backbone.", depth=DEPTH).arrays | random_arrays(shapes, seed=1)


def preprocessing(size: int | tuple[int, int]) -> Preprocessing:
    half = (0.5, 0.5, 0.5)
    return Preprocessing(size, 32, "minimal", half, half, interpolation="cubic")


def vit(depth: int = DEPTH, **fields: object) -> ViTConfig:
    return ViTConfig(PATCH, WIDTH, depth, WIDTH // 64, **{"position_grid": (GRID, GRID), **fields})


BILINEAR = {"position_resize": "bilinear"}
OF_TRANSFORMERS = {**BILINEAR, "mlp_ratio": 2.0}
FUSED = {"hooks": (2, 5, 8, 11), "widths": WIDTHS, "fusion_width": FUSION}
HYBRID = {"hooks": (8, 11), "widths": HYBRID_WIDTHS, "fusion_width": FUSION}
ANYTHING = {
    **FUSED,
    "readout": "ignore",
    "norm_features": True,
    "resampling": "bilinear-align-corners",
    "preprocessing": Preprocessing(518, 14, "shortest", interpolation="cubic"),
}


def hybrid_vit(**fields: object) -> ViTConfig:
    return ViTConfig(
        16,
        WIDTH,
        DEPTH,
        WIDTH // 64,
        position_grid=(GRID, GRID),
        stem=ResNetConfig(**STEM),
        **{**BILINEAR, **fields},
    )


class Sample(NamedTuple):
    """A checkpoint, what is beside it, its family, whether that must be named, and the config that it becomes."""

    arrays: Arrays
    family: str
    config: DPTConfig
    named: bool = False
    settings: Mapping[str, object] = {}


SAMPLES = {
    "dpt": Sample(official(), "dpt", DPTDepthConfig(vit(**BILINEAR), **FUSED, preprocessing=preprocessing(384))),
    "dpt, large": Sample(
        official(depth=LARGE),
        "dpt",
        DPTDepthConfig(
            vit(LARGE, **BILINEAR), **{**FUSED, "hooks": (5, 11, 17, 23)}, preprocessing=preprocessing(384)
        ),
    ),
    **{
        f"{family}, hybrid": Sample(
            official(hybrid=True),
            family,
            DPTDepthConfig(hybrid_vit(), **HYBRID, preprocessing=preprocessing(size), inversion=inversion),
            named=True,
        )
        for family, size, inversion in (
            ("dpt", 384, None),
            ("dpt-kitti", (352, 1216), KITTI),
            ("dpt-nyu", (480, 640), NYU),
        )
    },
    "dpt-ade20k": Sample(
        official(classes=150),
        "dpt-ade20k",
        DPTSegmentationConfig(
            vit(**BILINEAR), **FUSED, preprocessing=preprocessing(480), classes=150, dataset=None
        ),
    ),
    "dpt-ade20k, hybrid, other classes": Sample(
        official(hybrid=True, classes=7),
        "dpt-ade20k",
        DPTSegmentationConfig(hybrid_vit(), **HYBRID, preprocessing=preprocessing(480), classes=7),
    ),
    "dpt-transformers": Sample(
        of_transformers(),
        "dpt-transformers",
        DPTDepthConfig(vit(**OF_TRANSFORMERS, norm_epsilon=1e-12), **FUSED, preprocessing=preprocessing(384)),
    ),
    "dpt-transformers, hybrid, its config.json": Sample(
        of_transformers(hybrid=True),
        "dpt-transformers",
        DPTDepthConfig(
            ViTConfig(
                16,
                WIDTH,
                DEPTH,
                4,
                position_grid=(GRID, GRID),
                stem=ResNetConfig(**STEM),
                norm_epsilon=1e-6,
                **OF_TRANSFORMERS,
            ),
            **{**HYBRID, "hooks": (3, 7)},
            preprocessing=preprocessing(384),
        ),
        settings={"num_attention_heads": 4, "layer_norm_eps": 1e-6, "backbone_out_indices": [0, 1, 3, 7]},
    ),
    "dpt-transformers, labels": Sample(
        of_transformers(classes=150),
        "dpt-transformers",
        DPTSegmentationConfig(
            vit(**OF_TRANSFORMERS, norm_epsilon=1e-12),
            **FUSED,
            preprocessing=preprocessing(480),
            classes=150,
            dataset=None,
        ),
    ),
    **{
        family: Sample(
            depth_anything(),
            family,
            DPTDepthConfig(vit(layer_scale=True, position_offset=0.1), **ANYTHING, max_depth=max_depth),
            named=True,
        )
        for family, max_depth in (
            ("depth-anything-v2", None),
            ("depth-anything-v2-indoor", 20.0),
            ("depth-anything-v2-outdoor", 80.0),
        )
    },
    "depth-anything-v1, of any depth": Sample(
        depth_anything(depth=7),
        "depth-anything-v1",
        DPTDepthConfig(vit(7, layer_scale=True, position_offset=0.1), **{**ANYTHING, "hooks": (3, 4, 5, 6)}),
        named=True,
    ),
    "depth-anything-v2, large": Sample(
        depth_anything(depth=LARGE),
        "depth-anything-v2",
        DPTDepthConfig(vit(LARGE, layer_scale=True, position_offset=0.1), **{**ANYTHING, "hooks": (4, 11, 17, 23)}),
        named=True,
    ),
    "depth-anything-transformers, relative": Sample(
        depth_anything_transformers(),
        "depth-anything-transformers",
        DPTDepthConfig(vit(layer_scale=True), **{**ANYTHING, "hooks": (0, 3, 6, 9)}),
        settings={
            "depth_estimation_type": "relative",
            "max_depth": 1,
            "backbone_config": {"out_features": ["stage1", "stage4", "stage7", "stage10"]},
        },
    ),
    "depth-anything-transformers, metric": Sample(
        depth_anything_transformers(),
        "depth-anything-transformers",
        DPTDepthConfig(
            ViTConfig(PATCH, WIDTH, DEPTH, 4, position_grid=(GRID, GRID), layer_scale=True),
            **ANYTHING,
            max_depth=80,
        ),
        settings={
            "depth_estimation_type": "metric",
            "max_depth": 80,
            "backbone_config": {"num_attention_heads": 4, "out_indices": [3, 6, 9, 12]},
        },
    ),
}


def written(sample: Sample, folder: Path) -> Path:
    if sample.settings:
        (folder / "config.json").write_text(json.dumps(sample.settings))
    np.savez(folder / "tiny.npz", **sample.arrays)
    return folder / "tiny.npz"


@pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
def test_configs_are_read_off(sample: Sample, tmp_path: Path) -> None:
    summary = convert(written(sample, tmp_path), family=sample.family if sample.named else None)
    assert summary.family == sample.family
    assert hj.load(summary.target).config == sample.config


def test_there_is_a_sample_of_every_family() -> None:
    assert {sample.family for sample in SAMPLES.values()} == FAMILIES


def converted(name: str, folder: Path):
    sample = SAMPLES[name]
    target = convert(written(sample, folder), family=sample.family if sample.named else None).target
    return hj.load(target), sample.arrays


def test_parameters_of_the_official_hybrid(tmp_path: Path) -> None:
    model, arrays = converted("dpt-kitti, hybrid", tmp_path)
    backbone = "pretrained.model.patch_embed.backbone."
    weight = arrays[f"{backbone}stages.1.blocks.1.conv2.weight"].astype(np.float64)
    found = model.backbone.stem.stages[1][1].convolution2.kernel[...]
    for channel, values in enumerate(weight):
        expected = (values - values.mean()) / np.sqrt(((values - values.mean()) ** 2).mean() + 1e-8)
        np.testing.assert_allclose(found[:, :, 3, channel], expected[3], rtol=1e-6)
    first = model.backbone.stem.stages[2][0]
    np.testing.assert_array_equal(
        first.shortcut_norm.bias[...], arrays[f"{backbone}stages.2.blocks.0.downsample.norm.bias"]
    )
    np.testing.assert_array_equal(
        model.backbone.patch_embedding.projection.kernel[...],
        arrays["pretrained.model.patch_embed.proj.weight"][:, :, 0, 0].T,
    )
    third, fourth = model.reassemble
    post = "pretrained.act_postprocess"
    np.testing.assert_array_equal(third.readout.kernel[...], arrays[f"{post}3.0.project.0.weight"].T)
    np.testing.assert_array_equal(third.projection.bias[...], arrays[f"{post}3.3.bias"])
    np.testing.assert_array_equal(fourth.downsampling.kernel[2, 0, 5], arrays[f"{post}4.4.weight"][:, 5, 2, 0])
    unit = model.fusions[3].unit2.convolution2
    np.testing.assert_array_equal(
        unit.kernel[0, 1, 2], arrays["scratch.refinenet4.resConfUnit2.conv2.weight"][:, 2, 0, 1]
    )
    assert model.fusions[3].unit1 is None
    np.testing.assert_array_equal(model.convolution2.bias[...], arrays["scratch.output_conv.2.bias"])
    np.testing.assert_array_equal(
        model.regression.kernel[...], arrays["scratch.output_conv.4.weight"][:, :, 0, 0].T
    )


def test_parameters_of_transformers_come_from_the_coarsest_map_on(tmp_path: Path) -> None:
    model, arrays = converted("dpt-transformers, labels", tmp_path)
    first, layer = model.reassemble[0], "neck.reassemble_stage.layers.0"
    tiles = first.upsampling.kernel[...].reshape(WIDTHS[0], 4, 4, WIDTHS[0])
    np.testing.assert_array_equal(tiles[3, 1, 2], arrays[f"{layer}.resize.weight"][3, :, 1, 2])
    np.testing.assert_array_equal(first.upsampling_bias[...], arrays[f"{layer}.resize.bias"])
    finest = "neck.fusion_stage.layers.3."
    np.testing.assert_array_equal(
        model.fusions[0].unit1.norm2.var[...], arrays[f"{finest}residual_layer1.batch_norm2.running_var"]
    )
    np.testing.assert_array_equal(model.norm.mean[...], arrays["head.head.1.running_mean"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dpt-kitti, hybrid", "name it with --model dpt or dpt-kitti or dpt-nyu"),
        (
            "depth-anything-v2",
            "--model depth-anything-v1 or depth-anything-v2 or depth-anything-v2-indoor or depth-anything-v2-out",
        ),
    ],
)
def test_what_the_depth_is_only_the_user_knows(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(written(SAMPLES[name], tmp_path))


def test_a_depth_anything_of_transformers_needs_its_config(tmp_path: Path) -> None:
    sample = SAMPLES["depth-anything-transformers, metric"]._replace(settings={})
    with pytest.raises(CheckpointError, match=r"relative or metric stands in the config\.json"):
        convert(written(sample, tmp_path))


def test_hooks_of_an_unknown_depth(tmp_path: Path) -> None:
    sample = SAMPLES["dpt"]._replace(arrays=official(depth=3))
    with pytest.raises(CheckpointError, match="are known for 12 or 24 blocks, got 3"):
        convert(written(sample, tmp_path))
