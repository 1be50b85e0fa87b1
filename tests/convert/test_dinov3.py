"""Checkpoints of DINOv3 in every naming: configs, where parameters come from, and what is refused."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.dinov3 import FAMILIES as ALL
from checkpoints_convert.rules import Given
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.registry import flat_parameters
from tests.convert.checkpoints import Arrays, random_arrays, write_safetensors

FAMILIES = {"dinov3", "dinov3-transformers", "dinov3-timm"}
WIDTH, DEPTH, HEADS, HIDDEN, REGISTERS, PATCH = 32, 2, 2, 48, 4, 4
BACKBONE = ViTConfig(
    PATCH,
    WIDTH,
    DEPTH,
    HEADS,
    mlp_ratio=1.5,
    special_tokens=1 + REGISTERS,
    position_grid=None,
    rotary_base=100.0,
    layer_scale=True,
    norm_epsilon=1e-5,
)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PERIODS = (100.0 ** (np.arange(4) / 4)).astype(np.float32)
"""Of heads of 16 channels."""
SETTINGS = {
    "model_type": "dinov3_vit",
    "hidden_size": WIDTH,
    "num_hidden_layers": DEPTH,
    "num_attention_heads": HEADS,
    "patch_size": PATCH,
    "image_size": 64,
    "num_register_tokens": REGISTERS,
    "layer_norm_eps": 1e-5,
    "hidden_act": "gelu",
    "use_gated_mlp": False,
    "rope_theta": 100.0,
}


def layers(*names: tuple[str, int, int]) -> dict[str, tuple[int, ...]]:
    """The shapes of linear layers, name, outputs and inputs."""
    return {
        f"{name}.{leaf}": (outputs, inputs) if leaf == "weight" else (outputs,)
        for name, outputs, inputs in names
        for leaf in ("weight", "bias")
    }


def original(*, gated: bool = False, biases: bool = True) -> Arrays:
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "storage_tokens": (1, REGISTERS, WIDTH),
        "mask_token": (1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        **{f"norm.{leaf}": (WIDTH,) for leaf in ("weight", "bias")},
    }
    expand = ("w1", "w2") if gated else ("fc1",)
    for number in range(DEPTH):
        block = f"blocks.{number}."
        shapes |= {f"{block}norm{i}.{leaf}": (WIDTH,) for i in (1, 2) for leaf in ("weight", "bias")}
        shapes |= {f"{block}ls{i}.gamma": (WIDTH,) for i in (1, 2)}
        shapes |= layers(
            (f"{block}attn.qkv", 3 * WIDTH, WIDTH),
            (f"{block}attn.proj", WIDTH, WIDTH),
            *((f"{block}mlp.{name}", HIDDEN, WIDTH) for name in expand),
            (f"{block}mlp.{'w3' if gated else 'fc2'}", WIDTH, HIDDEN),
        )
    arrays = random_arrays(shapes) | {"rope_embed.periods": PERIODS}
    mask = np.ones(3 * WIDTH, np.float32)
    mask[WIDTH : 2 * WIDTH] = 0
    for number in range(DEPTH):
        name = f"blocks.{number}.attn.qkv.bias"
        if biases:
            arrays[f"{name}_mask"] = mask
        else:
            del arrays[name]
    return arrays


def renamed(arrays: Arrays, names: Mapping[str, str]) -> Arrays:
    """With parts of names replaced, in this order."""
    found = {}
    for name, array in arrays.items():
        for old, new in names.items():
            name = name.replace(old, new)
        found[name] = array
    return found


def transformers(arrays: Arrays, prefix: str = "") -> Arrays:
    """The original's tensors as transformers has them."""
    names = {
        "blocks.": f"{prefix}layer.",
        "attn.proj": "attention.o_proj",
        "ls1.gamma": "layer_scale1.lambda1",
        "ls2.gamma": "layer_scale2.lambda1",
        "fc1": "up_proj",
        "fc2": "down_proj",
        "w1": "gate_proj",
        "w2": "up_proj",
        "w3": "down_proj",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "storage_tokens": "embeddings.register_tokens",
        "cls_token": "embeddings.cls_token",
        "mask_token": "embeddings.mask_token",
    }
    return renamed(
        {
            name.replace("attn.qkv", f"attention.{part}_proj"): each
            for name, array in arrays.items()
            if not name.endswith(("bias_mask", "periods"))
            for part, each in (zip("qkv", np.split(array, 3), strict=True) if "qkv" in name else [("", array)])
            if (part, name[-4:]) != ("k", "bias")
        },
        names,
    )


def timm(arrays: Arrays) -> Arrays:
    """The original's tensors as timm has them."""
    found = {}
    for name, array in arrays.items():
        if name.endswith("qkv.bias"):
            query, _, value = np.split(array, 3)
            found |= {name.replace("qkv.bias", "q_bias"): query, name.replace("qkv.bias", "v_bias"): value}
        elif not name.endswith(("bias_mask", "periods", "mask_token")):
            found[name] = array
    names = {"ls1.gamma": "gamma_1", "ls2.gamma": "gamma_2", "storage_tokens": "reg_token"}
    return renamed(found, names | {"w1": "fc1_g", "w2": "fc1_x", "w3": "fc2"})


def written(arrays: Arrays, folder: Path, **settings: object) -> Path:
    """A folder with a checkpoint and the files of settings, by the first parts of their names."""
    for name, values in settings.items():
        (folder / f"{name}.json").write_text(json.dumps(values))
    return write_safetensors(folder / "tiny.safetensors", arrays).rename(folder / "model.safetensors")


def encoder_config(size: int, interpolation: str = "bilinear", **fields: object) -> EncoderConfig:
    preprocessing = Preprocessing(size, PATCH, mean=MEAN, std=STD, interpolation=interpolation)
    return EncoderConfig(replace(BACKBONE, **fields), preprocessing)


def converted(source: Path, family: str, **options: object) -> Encoder:
    summary = convert(source, source.with_name("converted"), **options)
    assert summary.family == family
    return hj.load(summary.target)


GATED = pytest.mark.parametrize("gated", [False, True], ids=["GELU", "SwiGLU"])


@GATED
@pytest.mark.parametrize("biases", [True, False], ids=["biases", "no biases"])
def test_the_originals_names(tmp_path: Path, gated: bool, biases: bool) -> None:
    arrays = original(gated=gated, biases=biases)
    summary = convert(written(arrays, tmp_path), tmp_path / "converted")
    assert (summary.family, summary.dropped) == (
        "dinov3",
        {
            "stands for hidden patches in training": 1,
            "periods of the positions: the config has their base": 1,
        },
    )
    model = hj.load(summary.target)
    assert model.config == encoder_config(512, mlp="swiglu" if gated else "gelu")
    assert any("nothing says another size" in note for note in summary.notes)
    second, block = model.backbone.blocks[1], "blocks.1."
    special = np.concatenate([arrays["cls_token"][0], arrays["storage_tokens"][0]])
    np.testing.assert_array_equal(model.backbone.special_tokens[...], special)
    np.testing.assert_array_equal(second.attention.qkv.kernel[...], arrays[f"{block}attn.qkv.weight"].T)
    bias = np.zeros(3 * WIDTH, np.float32)
    if biases:
        bias = arrays[f"{block}attn.qkv.bias"].copy()
        bias[WIDTH : 2 * WIDTH] = 0
    np.testing.assert_array_equal(second.attention.qkv.bias[...], bias)
    np.testing.assert_array_equal(second.scale2[...], arrays[f"{block}ls2.gamma"])
    names = ("w1", "w2") if gated else ("fc1",)
    for leaf, found in (("weight", second.mlp.expand.kernel[...].T), ("bias", second.mlp.expand.bias[...])):
        expected = np.concatenate([arrays[f"{block}mlp.{name}.{leaf}"] for name in names])
        np.testing.assert_array_equal(found, expected)


@GATED
@pytest.mark.parametrize("prefix", ["", "model."])
def test_transformers_names_hold_the_same(tmp_path: Path, gated: bool, prefix: str) -> None:
    arrays = original(gated=gated)
    settings = SETTINGS | ({"hidden_act": "silu", "use_gated_mlp": True} if gated else {})
    satellite = {"image_mean": [0.43, 0.411, 0.296], "image_std": [0.213, 0.156, 0.143]}
    source = written(transformers(arrays, prefix), tmp_path, config=settings, preprocessor_config=satellite)
    found = converted(source, "dinov3-transformers")
    assert found.config.backbone == encoder_config(64, mlp="swiglu" if gated else "gelu").backbone
    assert (found.config.preprocessing.size, found.config.preprocessing.mean) == (64, (0.43, 0.411, 0.296))
    assert_same(found, converted(written(arrays, tmp_path), "dinov3"))


@GATED
def test_timms_names_hold_the_same(tmp_path: Path, gated: bool) -> None:
    arrays = original(gated=gated)
    published = {"input_size": [3, 64, 64], "mean": MEAN, "std": STD, "interpolation": "bicubic"}
    settings = {"architecture": "vit_small_patch16_dinov3_qkvb", "pretrained_cfg": published}
    found = converted(written(timm(arrays), tmp_path, config=settings), "dinov3-timm", heads=HEADS)
    assert found.config == encoder_config(64, "bicubic", mlp="swiglu" if gated else "gelu")
    assert_same(found, converted(written(arrays, tmp_path), "dinov3"))


def assert_same(one: Encoder, other: Encoder) -> None:
    found, expected = flat_parameters(one), flat_parameters(other)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_settings_of_newer_transformers(tmp_path: Path) -> None:
    settings = {**SETTINGS, "rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}
    del settings["rope_theta"]
    found = converted(written(transformers(original()), tmp_path, config=settings), "dinov3-transformers")
    assert found.config.backbone.rotary_base == 50


def test_published_shapes_have_known_heads_and_weights_of_satellite_images_their_colours(tmp_path: Path) -> None:
    """By the shapes of a ViT-L, of two blocks, its tensors cut down to what the config is read off."""
    [family, _] = [each for each in ALL if each.name == "dinov3"]
    tensors = {
        "patch_embed.proj.weight": np.empty((1024, 3, 16, 16), np.float32),
        "cls_token": np.empty((1, 1, 1024), np.float32),
        "storage_tokens": np.empty((1, 4, 1024), np.float32),
        "blocks.0.mlp.fc1.weight": np.empty((4096, 1024), np.float32),
        "blocks.0.mlp.fc2.weight": np.empty((1024, 4096), np.float32),
        **{f"blocks.{number}.norm1.weight": np.empty(1024, np.float32) for number in range(24)},
    }
    given = Given()
    assert family.configure(tensors, given)["preprocessing"]["mean"] == MEAN
    config = family.configure({**tensors, "local_cls_norm.weight": np.empty(1024, np.float32)}, given)
    assert config["preprocessing"]["mean"] == (0.43, 0.411, 0.296)
    assert config["backbone"] | {"layer_scale": True} == {
        **{"width": 1024, "depth": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4, "mlp": "gelu"},
        **{"special_tokens": 5, "position_grid": None, "rotary_base": 100, "layer_scale": True},
        "norm_epsilon": 1e-5,
    }
    assert [note.split(":")[0] for note in given.notes] == [
        "rotary positions of base 100, which is that of all published weights",
        "images of 512 x 512 pixels",
        "colours as of satellite images",
    ]


BIASES = [f"blocks.{block}.attn.qkv.bias" for block in range(DEPTH)]


def without(arrays: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name not in names}


@pytest.mark.parametrize(
    ("arrays", "settings", "message"),
    [
        (original() | {"rope_embed.periods": PERIODS**0.5 + 1}, {}, "must be powers of one base"),
        (original() | {"rope_embed.periods": np.ones(3, np.float32)}, {}, "for heads of 32 channels, got 3"),
        (without(original(), "blocks.1.attn.qkv.bias"), {}, "must be the same ones in all blocks"),
        (
            without(original(), "blocks.0.attn.qkv.bias", "blocks.1.attn.qkv.bias"),
            {},
            "the same ones in all blocks",
        ),
        (original() | {"cls_norm.weight": np.ones(WIDTH, np.float32)}, {}, "no place for: cls_norm.weight"),
        (
            without(original(), "rope_embed.periods"),
            {},
            "no tensor shows how many heads a DINOv3 of 2 blocks and 32",
        ),
        (
            without(original(gated=True), "blocks.0.mlp.w2.weight"),
            {},
            "is of no known family; the nearest is dinov3",
        ),
        (transformers(original()), {}, "no tensor shows how many heads"),
        (transformers(original()), {"hidden_act": "relu"}, "ask for hidden_act 'relu', which no model here has"),
        (transformers(original()), {"use_gated_mlp": True}, "ask for use_gated_mlp True"),
        (transformers(original()), SETTINGS | {"num_register_tokens": 5}, "tokens 5, the checkpoint has 4"),
        (transformers(original()), {"hidden_size": 64}, "they say hidden_size 64, the checkpoint has 32"),
        (transformers(original()), {"rope_parameters": {"rope_type": "yarn"}}, "ask for rope_type 'yarn'"),
        (
            without(transformers(original()), "layer.0.attention.v_proj.bias", "layer.1.attention.v_proj.bias"),
            {},
            "must be the same ones in all blocks, and no key's alone",
        ),
        (timm(original()), {}, "must name the architecture of a DINOv3, got none"),
        (timm(original()), {"architecture": "vit_small_patch16_lingbot"}, "DINOv3, got vit_small_patch16_lingbot"),
        (
            timm(original()),
            {"architecture": "vit_small_patch16_dinov3", "model_args": {"rope_temperature": 50}},
            "argument 'rope_temperature' of timm",
        ),
    ],
)
def test_what_is_not_known_is_refused(tmp_path: Path, arrays: Arrays, settings: dict, message: str) -> None:
    source = written(arrays, tmp_path, config=settings)
    with pytest.raises(ValueError, match=message) as refused:
        convert(source, tmp_path / "converted")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "converted").exists()


def test_periods_of_other_heads_than_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="those of 2 heads and base 100: got 4 and 100"):
        convert(written(original(), tmp_path), tmp_path / "converted", heads=4)
