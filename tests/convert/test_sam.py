"""Segment Anything's checkpoints from random arrays: configs, where parameters come from, and what is refused."""

from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.sam import transformers_name
from hourglass_jax.backbones.windowed import Windows
from hourglass_jax.models.sam import Sam
from tests.convert.checkpoints import Arrays, random_arrays
from tests.convert.test_swin import written as write

FAMILIES = {"sam", "sam-transformers"}
WIDTH, HEAD, DEPTH, PATCH, GRID, WINDOW, GLOBAL = 16, 8, 3, 4, 6, 2, (1,)
DECODER, CROSS, HIDDEN, QUALITY, CHANNELS = 16, 8, 20, 12, 8
LAYER = "mask_decoder.transformer.layers."


def affine(name: str, *shape: int, outputs: int | None = None) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": (shape[0] if outputs is None else outputs,)}


def norm(name: str, width: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def official(*, head: int = HEAD, windows: tuple[int, ...] = (WINDOW, GRID, WINDOW)) -> Arrays:
    """A checkpoint's weights; `windows` are the sides that the tables of each block are for."""
    shapes = {
        "image_encoder.pos_embed": (1, GRID, GRID, WIDTH),
        **affine("image_encoder.patch_embed.proj", WIDTH, 3, PATCH, PATCH),
        "image_encoder.neck.0.weight": (DECODER, WIDTH, 1, 1),
        **norm("image_encoder.neck.1", DECODER),
        "image_encoder.neck.2.weight": (DECODER, DECODER, 3, 3),
        **norm("image_encoder.neck.3", DECODER),
        "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, DECODER // 2),
        **{f"prompt_encoder.point_embeddings.{n}.weight": (1, DECODER) for n in range(4)},
        "prompt_encoder.not_a_point_embed.weight": (1, DECODER),
        "prompt_encoder.no_mask_embed.weight": (1, DECODER),
        **affine("prompt_encoder.mask_downscaling.0", CHANNELS // 4, 1, 2, 2),
        **norm("prompt_encoder.mask_downscaling.1", CHANNELS // 4),
        **affine("prompt_encoder.mask_downscaling.3", CHANNELS, CHANNELS // 4, 2, 2),
        **norm("prompt_encoder.mask_downscaling.4", CHANNELS),
        **affine("prompt_encoder.mask_downscaling.6", DECODER, CHANNELS, 1, 1),
        "mask_decoder.iou_token.weight": (1, DECODER),
        "mask_decoder.mask_tokens.weight": (4, DECODER),
        **affine("mask_decoder.output_upscaling.0", DECODER, DECODER // 4, 2, 2, outputs=DECODER // 4),
        **norm("mask_decoder.output_upscaling.1", DECODER // 4),
        **affine("mask_decoder.output_upscaling.3", DECODER // 4, DECODER // 8, 2, 2, outputs=DECODER // 8),
        **attention("mask_decoder.transformer.final_attn_token_to_image", CROSS),
        **norm("mask_decoder.transformer.norm_final_attn", DECODER),
    }
    for index, side in enumerate(windows):
        block = f"image_encoder.blocks.{index}."
        shapes |= {
            **norm(f"{block}norm1", WIDTH),
            **norm(f"{block}norm2", WIDTH),
            **affine(f"{block}attn.qkv", 3 * WIDTH, WIDTH),
            **affine(f"{block}attn.proj", WIDTH, WIDTH),
            **affine(f"{block}mlp.lin1", 2 * WIDTH, WIDTH),
            **affine(f"{block}mlp.lin2", WIDTH, 2 * WIDTH),
            f"{block}attn.rel_pos_h": (2 * side - 1, head),
            f"{block}attn.rel_pos_w": (2 * side - 1, head),
        }
    for index in range(2):
        layer = f"{LAYER}{index}."
        shapes |= attention(f"{layer}self_attn", DECODER)
        for name in ("cross_attn_token_to_image", "cross_attn_image_to_token"):
            shapes |= attention(f"{layer}{name}", CROSS)
        shapes |= {**affine(f"{layer}mlp.lin1", HIDDEN, DECODER), **affine(f"{layer}mlp.lin2", DECODER, HIDDEN)}
        for number in range(1, 5):
            shapes |= norm(f"{layer}norm{number}", DECODER)
    for number in range(3):
        for mask in range(4):
            outputs = DECODER // 8 if number == 2 else DECODER
            shapes |= affine(f"mask_decoder.output_hypernetworks_mlps.{mask}.layers.{number}", outputs, DECODER)
        outputs, inputs = 4 if number == 2 else QUALITY, QUALITY if number else DECODER
        shapes |= affine(f"mask_decoder.iou_prediction_head.layers.{number}", outputs, inputs)
    return random_arrays(shapes)


def attention(name: str, inner: int) -> dict[str, tuple[int, ...]]:
    shapes = {}
    for part in "qkv":
        shapes |= affine(f"{name}.{part}_proj", inner, DECODER)
    return {**shapes, **affine(f"{name}.out_proj", DECODER, inner)}


def transformers() -> Arrays:
    """A folder's weights: the frequencies stand there twice."""
    arrays = {transformers_name(name).split("|")[0]: array for name, array in official().items()}
    frequencies = arrays["shared_image_embedding.positional_embedding"]
    return {**arrays, "prompt_encoder.shared_embedding.positional_embedding": frequencies}


def check(model: Sam) -> None:
    config, arrays = model.config, official()
    assert config.backbone.windows == Windows(WINDOW, GLOBAL)
    assert (config.backbone.heads, config.backbone.depth, config.backbone.mlp_ratio) == (WIDTH // HEAD, DEPTH, 2)
    assert (config.width, config.cross_width, config.hidden) == (DECODER, CROSS, HIDDEN)
    assert (config.quality_hidden, config.mask_channels) == (QUALITY, CHANNELS)
    assert config.preprocessing.size == GRID * PATCH
    encoder = model.prompt_encoder
    kinds = np.concatenate([arrays[f"prompt_encoder.point_embeddings.{n}.weight"] for n in range(4)])
    np.testing.assert_array_equal(encoder.kinds[...], kinds)
    key = arrays[f"{LAYER}1.cross_attn_image_to_token.k_proj.weight"]
    np.testing.assert_array_equal(model.mask_decoder.layers[1].to_tokens.key.kernel[...], key.T)
    last = arrays["mask_decoder.output_hypernetworks_mlps.2.layers.2.weight"]
    np.testing.assert_array_equal(model.mask_decoder.mask_layers[2].layers[2].kernel[...], last.T)
    rows = arrays["image_encoder.blocks.2.attn.rel_pos_h"]
    np.testing.assert_array_equal(model.backbone.relative_positions[2].rows[...], rows)


def test_official_checkpoints(tmp_path: Path) -> None:
    summary = convert(write(official(), tmp_path))
    assert (summary.family, summary.model, summary.dropped) == ("sam", "sam", {})
    check(hj.load(summary.target))


def test_folders_of_transformers(tmp_path: Path) -> None:
    settings = {"mask_decoder_config": {"num_attention_heads": 4}, "vision_config": {"window_size": WINDOW}}
    summary = convert(write(transformers(), tmp_path, settings))
    assert summary.family == "sam-transformers"
    assert summary.dropped == {"the frequencies of positions, which are there twice": 1}
    model = hj.load(summary.target)
    check(model)
    assert model.config.heads == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda arrays: {**arrays, "mask_decoder.hf_token.weight": np.zeros((1, DECODER), np.float32)},
            "this is a checkpoint of SAM-HQ, .* expected one of SAM",
        ),
        (lambda arrays: official(windows=(2, 6, 3)), r"windows must be square and of one size, got tables for"),
        (lambda arrays: official(head=5), "heads of 5 channels do not make up a width of 16, in 3 blocks"),
        (
            lambda arrays: {n: a for n, a in arrays.items() if "iou_prediction_head.layers.1" not in n},
            r"has no tensor 'mask_decoder\.iou_prediction_head\.layers\.1\.bias'",
        ),
        (
            lambda arrays: {**arrays, "mask_decoder.extra": np.zeros(3, np.float32)},
            "holds 1 tensors that the sam model has no place for: mask_decoder.extra",
        ),
    ],
    ids=["SAM-HQ", "windows", "heads", "cut off", "another part"],
)
def test_other_checkpoints_are_refused(tmp_path: Path, change, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(write(change(official()), tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_config": {"num_attention_heads": 12}}, "ask for num_attention_heads 12, .* only 2"),
        ({"vision_config": {"layer_norm_eps": 1e-5}}, "ask for layer_norm_eps 1e-05, .* only 1e-06"),
        ({"mask_decoder_config": {"num_multimask_outputs": 2}}, "ask for num_multimask_outputs 2, .* only 3"),
    ],
)
def test_settings_of_another_model_are_refused(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(write(transformers(), tmp_path, settings))
