"""Properties that no tensor shows: settings and options are applied or refused, and nothing is guessed."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import Summary, convert
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.published import HEADS, heads_of
from checkpoints_convert.rules import Given
from checkpoints_convert.settings import read_settings
from tests.convert.checkpoints import (
    GRID,
    PATCH,
    WIDTH,
    Arrays,
    mmsegmentation_vit,
    random_arrays,
    segmenter,
    swag,
    timm_vit,
    transformers_dinov2,
    write_safetensors,
)
from tests.convert.test_dpt import depth_anything_transformers, of_transformers

OBLONG = {**timm_vit().arrays, "pos_embed": random_arrays({"p": (1, 1 + 16, WIDTH)})["p"]}
"""16 positions: 4 x 4 or 2 x 8."""


def converted(
    folder: Path, arrays: Arrays, beside: Mapping[str, object] | None = None, **options: object
) -> Summary:
    source = write_safetensors(folder / "tiny.pth", arrays)
    if beside is not None:
        (folder / "config.json").write_text(json.dumps(beside))
    return convert(source, **options)


@pytest.mark.parametrize(
    "settings",
    [
        {"model_args": {"num_heads": 4}},
        {"num_heads": 4},
        {"num_attention_heads": 4, "layer_norm_eps": 1e-6, "hidden_act": "gelu"},
        {
            "model_args": {
                "num_heads": 4,
                "embed_dim": WIDTH,
                "depth": 2,
                "patch_size": PATCH,
                "img_size": GRID * PATCH,
            }
        },
    ],
)
def test_heads_are_those_of_the_settings(tmp_path: Path, settings: dict) -> None:
    assert converted(tmp_path, timm_vit().arrays, settings, family="vit-timm").config["backbone"]["heads"] == 4


def test_the_users_heads_count_before_all_others(tmp_path: Path) -> None:
    summary = converted(tmp_path, timm_vit().arrays, {"num_heads": 4}, family="vit-timm", heads=8)
    assert summary.config["backbone"]["heads"] == 8


@pytest.mark.parametrize(("shape", "patch_size"), [((w, d), p) for (w, d), (_, ps) in HEADS.items() for p in ps])
def test_published_shapes_need_no_settings(shape: tuple[int, int], patch_size: int) -> None:
    assert heads_of(*shape, patch_size, Given(), None) == HEADS[shape][0]


@pytest.mark.parametrize(
    ("width", "depth", "patch_size"),
    [(1152, 27, 14), (1152, 27, 16), (768, 8, 16), (128, 2, 16), (384, 4, 16), (1536, 40, 32), (96, 12, 16)],
)
def test_other_shapes_are_refused_with_the_way_out(width: int, depth: int, patch_size: int) -> None:
    with pytest.raises(ValueError, match=r"no tensor shows how many heads .*: give --heads, or with --config"):
        heads_of(width, depth, patch_size, Given(), None)
    assert heads_of(width, depth, patch_size, Given(heads=16), None) == 16
    assert heads_of(width, depth, patch_size, Given(), 8) == 8


def test_one_head_of_a_narrow_vit_is_said_aloud(tmp_path: Path) -> None:
    summary = converted(tmp_path, timm_vit().arrays, family="vit-timm")
    assert any(note.startswith("1 head: no settings say how many") for note in summary.notes)
    assert any("grid is taken as square" in note for note in summary.notes)
    (tmp_path / "tiny.safetensors").unlink()
    said = {"num_heads": 4, "img_size": GRID * PATCH}
    assert converted(tmp_path, timm_vit().arrays, said, family="vit-timm").notes == ()


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"model_args": {"img_size": [2 * PATCH, 8 * PATCH]}}, {}),
        ({"pretrained_cfg": {"input_size": [3, 2 * PATCH, 8 * PATCH]}}, {}),
        ({"image_size": [2 * PATCH, 8 * PATCH]}, {}),
        ({"model_args": {"img_size": 4 * PATCH}}, {"grid": (2, 8)}),
        (None, {"grid": (2, 8)}),
    ],
)
def test_an_oblong_position_grid(tmp_path: Path, settings: dict | None, options: dict) -> None:
    summary = converted(tmp_path, OBLONG, settings, family="vit-timm", **options)
    model = hj.load(summary.target)
    assert model.config.backbone.position_grid == (2, 8)
    assert model.config.preprocessing.size == (2 * PATCH, 8 * PATCH)
    np.testing.assert_array_equal(model.backbone.position_embedding[1, 3], OBLONG["pos_embed"][0, 1 + 8 + 3])
    first = OBLONG["cls_token"][0, 0] + OBLONG["pos_embed"][0, 0]
    np.testing.assert_array_equal(model.backbone.special_tokens[0], first)


def test_a_grid_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"--grid says 3 x 5 positions, but the checkpoint has 17, of which 1 or"
    ):
        converted(tmp_path, OBLONG, family="vit-timm", grid=(3, 5))
    with pytest.raises(
        CheckpointError, match=r"the settings say images of 224 x 224 pixels, so 112 x 112 positions"
    ):
        converted(tmp_path, OBLONG, {"model_args": {"img_size": 224}}, family="vit-timm")


REFUSED = {
    "activation of transformers": (
        {"hidden_act": "quick_gelu"},
        "hidden_act 'quick_gelu', which no model here has",
    ),
    "activation of timm": ({"model_args": {"act_layer": "gelu_tanh"}}, "act_layer 'gelu_tanh', which no model"),
    "norm": ({"model_args": {"norm_layer": "rmsnorm"}}, "norm_layer 'rmsnorm', which no model here has"),
    "an unknown argument": ({"model_args": {"rotary": True}}, "an argument 'rotary' of timm, whose meaning is not"),
    "norms of queries": ({"model_args": {"qk_norm": True}}, "qk_norm True, which no model here has"),
    "interpolation": (
        {"pretrained_cfg": {"interpolation": "lanczos"}},
        "must be bilinear or bicubic, got 'lanczos'",
    ),
    "another width": ({"hidden_size": 768}, "of another model: they say hidden_size 768, the checkpoint has 64"),
    "another depth": ({"num_hidden_layers": 12}, "they say num_hidden_layers 12, the checkpoint has 2"),
    "another patch": ({"patch_size": 16}, "they say patch_size 16, the checkpoint has 2"),
    "heads of a text": ({"num_attention_heads": "4"}, "num_attention_heads in the settings must be a positive int"),
    "-1 heads": ({"num_heads": -1}, "num_heads in the settings must be a positive integer, got -1"),
    "heads of true": ({"num_heads": True}, "num_heads in the settings must be a positive integer, got True"),
    "5 heads": ({"num_heads": 5}, "width must be a multiple of heads, got width 64 and 5 heads"),
    "arguments of a list": ({"model_args": [1]}, "model_args in the settings must be a section of named settings"),
    "epsilon of NaN": (
        {"layer_norm_eps": float("nan")},
        "layer_norm_eps in the settings must be a positive number",
    ),
    "negative epsilon": ({"layer_norm_eps": -1e-6}, "layer_norm_eps in the settings must be a positive number"),
    "a mean of NaN": (
        {"pretrained_cfg": {"mean": [0.5, float("nan"), 0.5]}},
        "mean .* must be three finite numbers",
    ),
    "a mean of texts": ({"pretrained_cfg": {"mean": "half"}}, "mean in the settings must be three finite numbers"),
    "a deviation of 0": ({"pretrained_cfg": {"std": [0.5, 0, 0.5]}}, "std in the settings must be three positive"),
    "an infinite deviation": ({"pretrained_cfg": {"std": [1, 1, float("inf")]}}, "std .* must be three finite num"),
    "a size of 0": ({"model_args": {"img_size": 0}}, "img_size in the settings must be a positive integer, or two"),
    "a size of three": ({"img_size": [1, 2, 3]}, "img_size in the settings must be a positive integer, or two"),
    "an input of two": ({"pretrained_cfg": {"input_size": [3, 6]}}, "input_size in the settings must be channels,"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_settings_that_cannot_be_honoured_are_refused(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, timm_vit().arrays, settings, family="vit-timm")
    assert {each.name for each in tmp_path.iterdir()} == {"tiny.pth", "config.json"}


@pytest.mark.parametrize("epsilon", [1e-5, 1e-12])
def test_the_epsilon_of_transformers_settings(tmp_path: Path, epsilon: float) -> None:
    summary = converted(tmp_path, transformers_dinov2().arrays, {"layer_norm_eps": epsilon})
    assert summary.config["backbone"]["norm_epsilon"] == epsilon


def test_settings_that_are_named_are_read_for_families_without_a_file_of_their_own(tmp_path: Path) -> None:
    settings = tmp_path / "my.yml"
    settings.write_text("num_heads: 2\nnorm_eps: 1e-5\n")
    arrays = swag("layer_", "head.layers.head", classes=3).arrays
    backbone = converted(tmp_path, arrays, settings=settings).config["backbone"]
    assert (backbone["heads"], backbone["norm_epsilon"]) == (2, 1e-5)
    settings.write_text("optimizer: adam\n")
    with pytest.raises(CheckpointError, match=r"my\.yml holds no settings that are known here"):
        converted(tmp_path, arrays, settings=settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readout_type": "add"}, "readout_type 'add', which no model here has: only 'project'"),
        ({"reassemble_factors": [1, 1, 1, 0.5]}, "reassemble_factors .*, which no model here has"),
        ({"hidden_act": "relu"}, "hidden_act 'relu', which no model"),
        ({"backbone_out_indices": [0, 1, 2, 99]}, r"hooks must be blocks 0 to 11, got \(0, 1, 2, 99\)"),
        ({"backbone_out_indices": ["2", "5"]}, "backbone_out_indices in the settings must be a list of integers"),
        ({"backbone_out_indices": [2, 5]}, "expected 4 hooks"),
    ],
)
def test_settings_of_a_dpt_that_is_not_here(tmp_path: Path, change: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, of_transformers(), change)


ANYTHING = {"depth_estimation_type": "relative", "backbone_config": {"out_indices": [9, 10, 11, 12]}}


def test_the_blocks_of_a_depth_anything_are_those_of_its_settings(tmp_path: Path) -> None:
    """The last four are V1's; stage 0 is the patch embedding there."""
    assert converted(tmp_path, depth_anything_transformers(), ANYTHING).config["hooks"] == [8, 9, 10, 11]


@pytest.mark.parametrize(
    ("vit", "message"),
    [
        ({"model_type": "dinov2"}, "must say which blocks are fused, .* got None and out_features None"),
        ({"out_features": ["stem", "stage2", "stage3", "stage4"]}, "must say which blocks are fused"),
        ({"out_indices": [0, 1, 2, 3]}, "out_indices in the settings must be a list of integers of at least 1"),
        ({"out_indices": [3, 6, 9, 12], "hidden_act": "gelu_new"}, "hidden_act 'gelu_new', which no model here"),
    ],
)
def test_a_depth_anything_without_its_blocks_is_refused(tmp_path: Path, vit: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, depth_anything_transformers(), ANYTHING | {"backbone_config": vit})


def test_windows_that_no_settings_say_are_said_aloud(tmp_path: Path) -> None:
    arrays = segmenter(mmsegmentation_vit(), "decode_head.", classes=19, masks=True).arrays
    summary = converted(tmp_path, arrays)
    assert any(note.startswith("windows of 6 pixels, 6 apart: no settings say") for note in summary.notes)


YAML = {
    "an empty integer": ("num_heads: !!int ''\n", "got ValueError|got IndexError"),
    "no boolean": ("num_heads: !!bool x\n", "got KeyError"),
    "no date": ("num_heads: !!timestamp x\n", "got AttributeError"),
    "a list as a key": ("{? !!python/tuple [[1]] : 2}\n", "got "),
    "an escape sequence": ("a: !<tag:\x1b[31m> 1\n", "got "),
}


@pytest.mark.parametrize(("content", "message"), YAML.values(), ids=YAML)
def test_yaml_that_is_not_of_plain_values(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "settings.yml"
    path.write_text(content)
    with pytest.raises(CheckpointError, match=message) as raised:
        read_settings(path)
    assert str(raised.value).isprintable() and len(str(raised.value)) < 600


def test_settings_are_of_a_bounded_size(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b"[" + b" " * (1 << 24))
    with pytest.raises(CheckpointError, match="got more than 16,777,216 bytes of JSON"):
        read_settings(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": -1}, "--heads must be a positive integer, got -1"),
        ({"grid": (0, 9)}, "--grid must be a positive integer, got 0"),
        ({"dataset": "coco"}, "--dataset must be one of ade20k, .*, got 'coco'"),
        ({"dataset": "ade20k"}, "--dataset names classes, but a model of the kind encoder has none"),
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, timm_vit().arrays, family="vit-timm", **options)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("patch_embed.proj.weight", (0, 3, PATCH, PATCH)),
        ("patch_embed.proj.weight", (WIDTH, 3, PATCH, PATCH + 1)),
        ("blocks.0.mlp.fc2.weight", (WIDTH, 0)),
        ("pos_embed", (1, 0, WIDTH)),
        ("cls_token", ()),
        ("norm.weight", ()),
        ("norm.weight", (0,)),
        ("blocks.0.attn.qkv.weight", ()),
    ],
)
def test_tensors_without_axes_or_values_are_refused(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    arrays = timm_vit().arrays | {name: np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError, match=name.split("_")[0].split(".")[0]):
        converted(tmp_path, arrays, family="vit-timm")
