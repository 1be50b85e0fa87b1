"""Settings as other projects write them: YAML of Microsoft's Swin and DINOv2, Python of mmsegmentation."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from checkpoints_convert import dpt, saliency, segmenter, swag, swin, vit
from checkpoints_convert.convert import Summary, convert
from checkpoints_convert.dialects import in_timms_words
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.python_config import parse_python
from checkpoints_convert.rules import Family, Given, Tensors
from checkpoints_convert.settings import MATTERS, Watched, read_settings, vit_settings
from checkpoints_convert.vit import resizing, vit_sections
from tests.convert.checkpoints import (
    GRID,
    PATCH,
    WIDTH,
    Arrays,
    mmsegmentation_vit,
    prediction_modules,
    random_arrays,
    timm_vit,
    transformers_dinov2,
    write_safetensors,
)
from tests.convert.checkpoints import segmenter as segmenter_arrays
from tests.convert.checkpoints import swag as swag_arrays
from tests.convert.test_dpt import depth_anything_transformers, of_transformers, official
from tests.convert.test_swin import DEPTHS, WINDOW
from tests.convert.test_swin import WIDTH as SWIN_WIDTH
from tests.convert.test_swin import swin as swin_arrays

MICROSOFT = f"""
MODEL:
  TYPE: swin
  NAME: swin_tiny
  SWIN:
    EMBED_DIM: {SWIN_WIDTH}
    DEPTHS: {[*DEPTHS]}
    NUM_HEADS: [2, 4, 8, 16]
    WINDOW_SIZE: {WINDOW}
DATA:
  IMG_SIZE: 128
  INTERPOLATION: bilinear
"""


def converted(folder: Path, arrays: Arrays, beside: dict[str, str], **options: object) -> Summary:
    source = write_safetensors(folder / "swin_tiny_epoch_3.pth", arrays)
    for name, content in beside.items():
        (folder / name).write_text(content)
    return convert(source, **options)


@pytest.mark.parametrize("name", ["swin_tiny.yaml", "config.json"])
def test_microsofts_settings_beside_a_swin(tmp_path: Path, name: str) -> None:
    """Its trainer writes YAML that is called config.json."""
    config = converted(tmp_path, swin_arrays(), {name: MICROSOFT}).config
    assert (config["preprocessing"]["size"], config["preprocessing"]["interpolation"]) == (128, "bilinear")


def test_the_settings_of_a_swin_v2_say_its_windows(tmp_path: Path) -> None:
    settings = MICROSOFT.replace("TYPE: swin", "TYPE: swinv2").replace("  SWIN:", "  SWINV2:")
    settings = settings.replace("WINDOW_SIZE", "PRETRAINED_WINDOW_SIZES: [3, 3, 2, 2]\n    WINDOW_SIZE")
    backbone = converted(tmp_path, swin_arrays(version=2), {"swin_tiny.yaml": settings}).config["backbone"]
    assert (backbone["window"], backbone["pretrained_windows"]) == (WINDOW, [3, 3, 2, 2])


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("TYPE: swin\n", "TYPE: swin_moe\n", "MODEL.TYPE 'swin_moe', which no model here has: only swin or swinv2"),
        ("    WINDOW_SIZE", "    APE: true\n    WINDOW_SIZE", "ask for APE True, which no model here has"),
        ("    WINDOW_SIZE", "    ROPE: true\n    WINDOW_SIZE", "MODEL.SWIN.ROPE, whose meaning is not known here"),
        ("[2, 4, 8, 16]", "[3, 6, 12, 24]", r"they say num_heads \(3, 6, 12, 24\), the checkpoint has"),
        ("WINDOW_SIZE: 3", "WINDOW_SIZE: 2", "they say window_size 2, the checkpoint has 3"),
        ("MODEL:", "BASE: [other.yaml]\nMODEL:", r"build on \['other.yaml'\], which is not read"),
        ("IMG_SIZE: 128", "IMG_SIZE: -1", "img_size in the settings must be a positive integer"),
        ("  TYPE: swin", "  TYPE: [swin]", "TYPE in the settings must be a text"),
    ],
)
def test_settings_of_microsoft_that_cannot_be_honoured(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in MICROSOFT
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, swin_arrays(), {"swin_tiny.yaml": MICROSOFT.replace(before, after)})


def test_the_settings_of_another_checkpoint_are_not_taken(tmp_path: Path) -> None:
    config = converted(tmp_path, swin_arrays(), {"swin_base.yaml": MICROSOFT, ".swin_tiny.yaml": MICROSOFT}).config
    assert config["preprocessing"]["size"] == 8 * WINDOW * 4


DINOV2 = {
    "student": {"arch": "vit_giant2", "patch_size": 14, "num_register_tokens": 4, "ffn_layer": "swiglufused"},
    "crops": {"global_crops_size": 518, "local_crops_size": 98},
    "optim": {"eps": 1e-8},
}


def test_what_dinov2s_settings_say() -> None:
    said = vit_settings(*vit_sections(in_timms_words(DINOV2)))
    assert (said.heads, said.size) == (24, (518, 518))
    assert {what: value for what, value in said.shown.values()} == {"width": 1536, "depth": 40, "patch_size": 14}
    memory_efficient = {"student": {"arch": "vit_small_memeff"}}
    assert vit_settings(*vit_sections(in_timms_words(memory_efficient))).heads == 6


def test_dinov2s_settings_say_how_positions_are_resized(tmp_path: Path) -> None:
    arrays = {**timm_vit(scales=True).arrays, **random_arrays({"mask_token": (1, WIDTH)})}
    settings = {"student": {"patch_size": PATCH, "interpolate_antialias": True, "interpolate_offset": 0.0}}
    backbone = converted(tmp_path, arrays, {"config.yaml": json.dumps(settings)}).config["backbone"]
    assert (backbone["position_resize"], backbone["position_offset"]) == ("bicubic-antialias", 0.0)
    (tmp_path / "swin_tiny_epoch_3.safetensors").unlink()
    (tmp_path / "config.yaml").unlink()
    backbone = converted(tmp_path, arrays, {}).config["backbone"]
    assert (backbone["position_resize"], backbone["position_offset"]) == ("bicubic", 0.1)


@pytest.mark.parametrize(
    ("student", "message"),
    [
        ({"arch": "vit_huge"}, "student.arch in the settings must be one of vit_small, .*, got 'vit_huge'"),
        ({"arch": "vit_small"}, "they say embed_dim 384, the checkpoint has 64"),
        ({"ffn_bias": False}, "ask for ffn_bias False, which no model here has"),
        ({"untie_cls": True}, "student.untie_cls, whose meaning is not known here"),
        (
            {"interpolate_antialias": "yes"},
            "interpolate_antialias in the settings must be true or false, got 'yes'",
        ),
        ({"patch_size": 14}, "they say patch_size 14, the checkpoint has 2"),
    ],
)
def test_settings_of_dinov2_that_cannot_be_honoured(tmp_path: Path, student: dict, message: str) -> None:
    arrays = {**timm_vit(scales=True).arrays, **random_arrays({"mask_token": (1, WIDTH)})}
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, arrays, {"config.yaml": json.dumps({"student": student})})


SEGMENTER = segmenter_arrays(mmsegmentation_vit(), "decode_head.", classes=19, masks=True).arrays
SIDE = GRID * PATCH
BASE = f"""
norm = dict(type="LN", eps=1e-5, requires_grad=True)
model = dict(
    type="EncoderDecoder",
    backbone=dict(
        type="VisionTransformer", img_size=({SIDE}, {SIDE}), patch_size={PATCH}, embed_dims={WIDTH}, num_layers=2,
        num_heads=8, out_indices=(0, 1), final_norm=True, norm_cfg=norm, act_cfg=dict(type="GELU"),
        interpolate_mode="bilinear",
    ),
    decode_head=dict(n_cls=19, n_heads=1, d_ff=4 * 64),
    test_cfg=dict(mode="slide", crop_size=(4, 4), stride=(3, 3)),
)
img_norm_cfg = dict(mean=[127.5, 51, 255], std=[51.0, 51.0, 102], to_rgb=True)
"""
CONFIG = """
import os
_base_ = ["./_base_/model.py"]
os.system(f"touch {os.path.dirname(__file__)}/executed")
model = dict(
    backbone=dict(num_heads=4, norm_cfg=dict(_delete_=True, type="LN", eps=1e-6), interpolate_mode="bicubic"),
)
optimizer = dict(_delete_=True, type="SGD", lr=0.001 / 8)
"""


def in_mmseg(folder: Path, config: str = CONFIG, base: str = BASE, **beside: object) -> dict:
    (folder / "_base_").mkdir()
    (folder / "_base_/model.py").write_text(base)
    if config:
        (folder / "segmenter_vit-t.py").write_text(config)
    source = folder / "segmenter_vit-t_iter_1.pth"
    source.write_bytes(pickle.dumps({"state_dict": SEGMENTER, **beside}))
    return convert(source).config


def test_the_config_of_mmsegmentation_is_read_and_not_run(tmp_path: Path) -> None:
    config = in_mmseg(tmp_path)
    backbone, preprocessing = config["backbone"], config["preprocessing"]
    assert (backbone["heads"], backbone["norm_epsilon"], backbone["position_resize"]) == (4, 1e-6, "bicubic")
    assert config["window"] == {"kind": "SlidingWindow", "size": 4, "stride": 3}
    np.testing.assert_allclose(preprocessing["mean"], [0.5, 0.2, 1])
    np.testing.assert_allclose(preprocessing["std"], [0.2, 0.2, 0.4])
    assert not (tmp_path / "executed").exists()


def test_a_folder_of_a_training_run_has_its_config(tmp_path: Path) -> None:
    folder = tmp_path / "segmenter_vit-t"
    folder.mkdir()
    (folder / "segmenter_vit-t.py").write_text(BASE)
    (folder / "other.py").write_text("import antigravity")
    (folder / "latest.pth").write_bytes(pickle.dumps({"state_dict": SEGMENTER}))
    assert convert(folder / "latest.pth").config["backbone"]["heads"] == 8


def test_a_script_beside_a_checkpoint_is_no_config(tmp_path: Path) -> None:
    script = (
        "import torch\nmodel = torch.hub.load('x')\nmean = [0, 0, 0]\nwith open('y') as file:\n    print(file)\n"
    )
    assert in_mmseg(tmp_path, script)["preprocessing"]["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("name", ["config", "cfg"])
def test_the_config_in_a_checkpoint_is_read(tmp_path: Path, name: str) -> None:
    """mmcv and mmengine write it there with all that it builds on."""
    assert in_mmseg(tmp_path, "", meta={name: BASE})["window"]["stride"] == 3
    (tmp_path / "segmenter_vit-t_iter_1.safetensors").unlink()
    broken = BASE.replace('"VisionTransformer"', '"BEiT"')
    (tmp_path / "segmenter_vit-t_iter_1.pth").write_bytes(
        pickle.dumps({"state_dict": SEGMENTER, "meta": {name: broken}})
    )
    with pytest.raises(CheckpointError, match=r"in the checkpoint: .* type 'BEiT', .*; name another with --config"):
        convert(tmp_path / "segmenter_vit-t_iter_1.pth")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            "_base_ = '../models/absent.py'",
            r"segmenter_vit-t.py: the config builds on ../models/absent.py, which is",
        ),
        ("_base_ = 'mmseg::a.py'", "builds on mmseg::a.py, which is not read"),
        ("_base_ = '/etc/passwd'", "builds on /etc/passwd, which is not there: name the whole one with --config"),
        ("_base_ = ['segmenter_vit-t.py']", "more than 32 configs that one builds on"),
        ("_base_ = [x for x in y]", "which is no name of a file"),
        ("with read_base():\n    from .a import *", "builds on imports, which are not read"),
        ("model = dict(", "expected a config in Python, got SyntaxError"),
        ("model = " + "[" * 500 + "]" * 500, "expected a config in Python, got "),
        ("x = [0]\n" + "".join(f"x = [{', '.join('x' * 20)}]\n" for _ in range(9)), "more than 100,000 values"),
        ("#" * (1 << 18) + "\n", "more than 262,144 bytes of a config"),
    ],
)
def test_a_config_that_is_not_there_or_too_much(tmp_path: Path, config: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        in_mmseg(tmp_path, config)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (
            "num_heads=8",
            "num_heads=HEADS",
            "num_heads in the settings must be a positive integer, got no plain value",
        ),
        ("num_heads=8, ", "", "width must be a multiple of heads, got width 64 and 12 heads"),
        ("num_heads=8", "num_heads=5", "width must be a multiple of heads, got width 64 and 5 heads"),
        ("num_heads=8", "num_heads=8, rotary=True", "model.backbone.rotary, whose meaning is not known here"),
        ('type="GELU"', 'type="QuickGELU"', "act_cfg.type 'QuickGELU', which no model here has"),
        ("final_norm=True", "final_norm=False", "final_norm False, which no model here has"),
        ('"VisionTransformer"', '"BEiT"', "a backbone of type 'BEiT', which no model here has"),
        ("(0, 1)", "(0, )", "not for the last block alone, 1"),
        ("n_heads=1", "n_heads=2", "they say decode_head.n_heads 2, not 1"),
        ("n_cls=19", "n_cls=150", "they say decode_head.n_cls 150, not 19"),
        ('"slide"', '"whole"', "mode 'whole', which no model here has: only 'slide'"),
        ("(4, 4)", "(4, 6)", r"test_cfg.crop_size in the settings must be square, got \(4, 6\)"),
        ("to_rgb=True", "to_rgb=False", "to_rgb False, which no model here has"),
        ('"bilinear"', '"nearest"', "interpolate_mode in the settings must be bilinear or bicubic, got 'nearest'"),
    ],
)
def test_a_config_of_mmsegmentation_that_cannot_be_honoured(
    tmp_path: Path, before: str, after: str, message: str
) -> None:
    assert before in BASE
    with pytest.raises(CheckpointError, match=message):
        in_mmseg(tmp_path, BASE.replace(before, after))


def test_a_config_of_mmdetection_beside_a_swin(tmp_path: Path) -> None:
    arrays = swin_arrays(prefix="backbone.", norms=("norm0", "norm1", "norm2", "norm3"))
    config = (
        "model = dict(data_preprocessor=dict(mean=[51, 51, 51], std=[51, 51, 51], bgr_to_rgb=True),\n"
        f"  backbone=dict(type='SwinTransformer', embed_dims={SWIN_WIDTH}, depths={[*DEPTHS]},\n"
        f"  num_heads=[2, 4, 8, 16], window_size={WINDOW}, patch_norm=True, convert_weights=True),\n"
        "  test_cfg=dict(rpn=dict(nms_pre=1000)))\n"
    )
    found = converted(tmp_path, arrays, {"swin_tiny.py": config}).config
    np.testing.assert_allclose(found["preprocessing"]["mean"], [0.2] * 3)
    (tmp_path / "swin_tiny_epoch_3.safetensors").unlink()
    with pytest.raises(CheckpointError, match="use_abs_pos_embed True, which no model here has"):
        converted(tmp_path, arrays, {"swin_tiny.py": config.replace("patch_norm", "use_abs_pos_embed")})


def test_plain_values_of_python() -> None:
    found = parse_python(
        b'a = 1\nb = dict(c=a, d=[-2.5, "x", None], e=4 * 3, f={"g": (True,)})\na.h = 3\ni: int = 4'
    )
    assert found["b"] == {"c": 1, "d": [-2.5, "x", None], "e": found["b"]["e"], "f": {"g": (True,)}}
    assert repr(found["b"]["e"]) == "no plain value"
    assert found.keys() == {"a", "b"}


def families() -> dict[str, tuple[Family, Tensors, dict]]:
    """Families, tensors of each, and settings without which its config cannot be read off them."""
    masks = random_arrays({"mask_token": (1, WIDTH)})
    by_name = {family.name: family for module in (vit, swin, swag, dpt, segmenter) for family in module.FAMILIES}
    scaled = timm_vit(scales=True).arrays
    anything = {"depth_estimation_type": "relative", "backbone_config": {"out_indices": [9, 10, 11, 12]}}
    variant = {
        "net_kwargs": {"normalization": "vit", "n_heads": 1, "n_cls": 19},
        "dataset_kwargs": {},
        "inference_kwargs": {"window_size": 6, "window_stride": 6},
    }
    upstream = segmenter_arrays(timm_vit("encoder."), "decoder.", classes=19, masks=True).arrays
    found = {
        "vit-timm": (timm_vit().arrays, {}),
        "dinov2-transformers": (transformers_dinov2().arrays, {}),
        "dinov2": ({**scaled, **masks}, {}),
        "dinov2-timm": (scaled, {}),
        "dynamicvit": ({**timm_vit(depth=10).arrays, **prediction_modules(3)}, {}),
        "swin": (swin_arrays(), {}),
        "swin-timm": (swin_arrays(merging_stage=1), {}),
        "swag": (swag_arrays("layer_", "head.layers.head", classes=3).arrays, {}),
        "swag-torchvision": (swag_arrays("encoder_layer_", "heads.head", classes=3).arrays, {}),
        "segmenter": (upstream, variant),
        "segmenter-mmseg": (SEGMENTER, {}),
        "dpt": (official(), {}),
        "dpt-transformers": (of_transformers(), {}),
        "depth-anything-transformers": (depth_anything_transformers(), anything),
    }
    cases = {}
    for name, (tensors, settings) in found.items():
        fitting = [f for m in (vit, swin, swag, dpt, segmenter, saliency) for f in getattr(m, "FAMILIES", ())
                   if f.name == name and f.fits(tensors, {})]  # fmt: skip
        cases[name] = ((fitting or [by_name[name]])[0], tensors, settings)
    detector = swin_arrays(norms=("norm0", "norm1", "norm2", "norm3"))
    [plain] = [f for f in swin.FAMILIES if f.name == "swin-detectron2" and f.fits(detector, {})]
    cases["swin-detectron2"] = (plain, detector, {})
    return cases


CASES = families()
STRANGE = {
    "layer_norm_eps": 0.125,
    "eps": 0.125,
    "hidden_act": "relu",
    "act_layer": "relu",
    "num_heads": 3,
    "num_attention_heads": 3,
    "n_heads": 3,
    "img_size": 9998,
    "image_size": 9998,
    "patch_size": 97,
    "embed_dim": 97,
    "hidden_size": 97,
    "depth": 97,
    "window_size": 1,
    "qkv_bias": False,
    "mean": [0.125, 0.25, 0.5],
    "std": [0.125, 0.25, 0.5],
    "interpolation": "lanczos",
    "interpolate_mode": "nearest",
    "interpolate_offset": 0.375,
}


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        (name, setting)
        for name in CASES
        for setting in STRANGE
        if name != "swin-detectron2"
        or setting not in ("img_size", "image_size")  # a detector's images have any size
    ],
)
def test_no_setting_that_matters_is_passed_over(name: str, setting: str) -> None:
    """It is refused, or another config comes of it; the section is the one where such a checkpoint has it."""
    assert setting in MATTERS
    family, tensors, settings = CASES[name]
    before = family.configure(tensors, Given(settings=Watched(settings)))
    section = {"segmenter": "net_kwargs", "depth-anything-transformers": "backbone_config"}.get(name)
    said = {setting: STRANGE[setting]}
    changed = {**settings, section: {**settings[section], **said}} if section else {**settings, **said}
    if name == "segmenter" and setting in ("mean", "std", "interpolation", "interpolate_mode", "interpolate_offset",
                                           "window_size"):  # fmt: skip
        changed = {**settings, **said}
    watched = Watched(changed)
    try:
        after = family.configure(tensors, Given(settings=watched))
    except ValueError:
        return
    assert after != before or watched.passed_over()


def test_a_setting_that_nobody_asks_for_is_refused(tmp_path: Path) -> None:
    arrays = swag_arrays("layer_", "head.layers.head", classes=3).arrays
    (tmp_path / "my.yml").write_text("num_heads: 2\nmean: [0.5, 0.5, 0.5]\n")
    with pytest.raises(CheckpointError, match=r"say mean \[0.5, 0.5, 0.5\], which a conversion of the family swag"):
        converted(tmp_path, arrays, {}, settings=tmp_path / "my.yml")


BIT = {
    "model_type": "bit",
    "depths": [1, 2, 1],
    "hidden_act": "relu",
    "layer_type": "bottleneck",
    "global_padding": "SAME",
    "num_groups": 32,
    "num_channels": 3,
    "embedding_dynamic_padding": True,
    "width_factor": 1,
    "output_stride": 32,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"depths": [3, 4, 9]}, r"they say depths \(3, 4, 9\), the checkpoint has \[1, 2, 1\]"),
        ({"layer_type": "preactivation"}, "layer_type 'preactivation', which no model here has"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu', which no model here has: only 'relu'"),
        (
            {"hidden_size": 7},
            "say backbone_config.hidden_size 7, which a conversion of the family dpt-transformers",
        ),
    ],
)
def test_the_stem_of_a_hybrid_is_that_of_its_settings(tmp_path: Path, change: dict, message: str | None) -> None:
    """As transformers writes them for published hybrids."""
    settings = {"hidden_act": "gelu", "qkv_bias": True, "backbone_config": BIT | change}
    arrays = of_transformers(hybrid=True)
    if message is None:
        assert converted(tmp_path, arrays, {"config.json": json.dumps(settings)}).model == "dpt-depth"
        return
    with pytest.raises(CheckpointError, match=message):
        converted(tmp_path, arrays, {"config.json": json.dumps(settings)})


def test_a_config_that_is_no_plain_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a plain file"):
        read_settings(tmp_path)
    with pytest.raises(CheckpointError, match=r"absent.py: no such file"):
        read_settings(tmp_path / "absent.py")


def test_how_positions_are_resized_is_said_in_two_ways() -> None:
    assert resizing({"interpolate_mode": "bilinear"}) == {"position_resize": "bilinear"}
    assert resizing({"interpolate_antialias": False}) == {"position_resize": "bicubic"}
    assert resizing({}) == {}
