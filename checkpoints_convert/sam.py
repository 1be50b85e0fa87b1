"""Segment Anything: the official .pth files, and the folders of transformers.

Source: facebookresearch/segment-anything, segment_anything/build_sam.py and modeling; huggingface/transformers,
    src/transformers/models/sam/modeling_sam.py and convert_sam_to_hf.py.
"""

import re
from collections.abc import Callable

import numpy as np

from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    Row,
    Tensors,
    concatenated,
    convolution,
    linear,
    patch_kernel,
    pointwise,
    row,
    same,
    shape_of,
    transposed_convolution,
    without_batch,
)
from checkpoints_convert.settings import integer, number, require, section
from checkpoints_convert.vit import IMAGENET_MEAN, IMAGENET_STD, Names

ENCODER, PROMPTS, DECODER = "image_encoder.", "prompt_encoder.", "mask_decoder."
FREQUENCIES = f"{PROMPTS}pe_layer.positional_encoding_gaussian_matrix"
HEADS, EPSILON = 8, 1e-5
"""Of the decoder's attentions and norms in the official code."""
HQ = ("hf_token", "hf_mlp", "compress_vit_feat", "embedding_encoder", "embedding_maskfeature")
"""Parts of SAM-HQ's decoder, which SAM's has not."""


def _no_tokens(positions: np.ndarray) -> np.ndarray:
    """The special tokens of an encoder that has none, [0, C]."""
    return np.zeros((0, positions.shape[-1]), positions.dtype)


def _affine(target: str, source: str, build: Callable[[np.ndarray], np.ndarray] = linear) -> tuple[Row, Row]:
    return row(f"{target}.kernel", f"{source}.weight", build), row(f"{target}.bias", f"{source}.bias", same)


def _norm(target: str, source: str) -> tuple[Row, Row]:
    return row(f"{target}.scale", f"{source}.weight", same), row(f"{target}.bias", f"{source}.bias", same)


def _attention(target: str, source: str) -> tuple[Row, ...]:
    pairs = (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out"))
    return tuple(each for ours, name in pairs for each in _affine(f"{target}.{ours}", f"{source}.{name}_proj"))


def _encoder() -> tuple[Row, ...]:
    block = f"{ENCODER}blocks.*."
    names = Names(
        patches=f"{ENCODER}patch_embed.proj",
        positions=f"{ENCODER}pos_embed",
        special=(),
        norm1=f"{block}norm1",
        qkv=(f"{block}attn.qkv.",),
        projection=f"{block}attn.proj",
        norm2=f"{block}norm2",
        expand=f"{block}mlp.lin1",
        contract=f"{block}mlp.lin2",
        norm="",
    )
    return (
        *_affine("backbone.patch_embedding.projection", names.patches, patch_kernel),
        row("backbone.position_embedding", names.positions, without_batch),
        row("backbone.special_tokens", names.positions, _no_tokens),
        *names.blocks("backbone."),
        row("backbone.relative_positions.*.rows", f"{block}attn.rel_pos_h", same),
        row("backbone.relative_positions.*.columns", f"{block}attn.rel_pos_w", same),
        row("neck.projection.kernel", f"{ENCODER}neck.0.weight", pointwise),
        *_norm("neck.norm1", f"{ENCODER}neck.1"),
        row("neck.convolution.kernel", f"{ENCODER}neck.2.weight", convolution),
        *_norm("neck.norm2", f"{ENCODER}neck.3"),
    )


def _prompt_encoder() -> tuple[Row, ...]:
    ours = "prompt_encoder."
    return (
        row(f"{ours}frequencies", FREQUENCIES, same),
        row(f"{ours}kinds", tuple(f"{PROMPTS}point_embeddings.{n}.weight" for n in range(4)), concatenated),
        row(f"{ours}not_a_point", f"{PROMPTS}not_a_point_embed.weight", without_batch),
        row(f"{ours}no_mask", f"{PROMPTS}no_mask_embed.weight", without_batch),
        *_affine(f"{ours}mask_layers.0.projection", f"{PROMPTS}mask_downscaling.0", patch_kernel),
        *_norm(f"{ours}mask_norms.0", f"{PROMPTS}mask_downscaling.1"),
        *_affine(f"{ours}mask_layers.1.projection", f"{PROMPTS}mask_downscaling.3", patch_kernel),
        *_norm(f"{ours}mask_norms.1", f"{PROMPTS}mask_downscaling.4"),
        *_affine(f"{ours}mask_projection", f"{PROMPTS}mask_downscaling.6", pointwise),
    )


def _mask_decoder() -> tuple[Row, ...]:
    ours, layer = "mask_decoder.", f"{DECODER}transformer.layers.*."
    found = [
        row(f"{ours}tokens", (f"{DECODER}iou_token.weight", f"{DECODER}mask_tokens.weight"), concatenated),
        *_attention(f"{ours}layers.*.own", f"{layer}self_attn"),
        *_attention(f"{ours}layers.*.to_image", f"{layer}cross_attn_token_to_image"),
        *_attention(f"{ours}layers.*.to_tokens", f"{layer}cross_attn_image_to_token"),
        *_affine(f"{ours}layers.*.mlp.layers.0", f"{layer}mlp.lin1"),
        *_affine(f"{ours}layers.*.mlp.layers.1", f"{layer}mlp.lin2"),
        *_attention(f"{ours}to_image", f"{DECODER}transformer.final_attn_token_to_image"),
        *_norm(f"{ours}norm", f"{DECODER}transformer.norm_final_attn"),
        *_affine(f"{ours}upscale1", f"{DECODER}output_upscaling.0", transposed_convolution),
        *_norm(f"{ours}upscale_norm", f"{DECODER}output_upscaling.1"),
        *_affine(f"{ours}upscale2", f"{DECODER}output_upscaling.3", transposed_convolution),
    ]
    for place in range(1, 5):
        found += _norm(f"{ours}layers.*.norm{place}", f"{layer}norm{place}")
    for place in range(3):
        found += _affine(
            f"{ours}mask_layers.*.layers.{place}", f"{DECODER}output_hypernetworks_mlps.*.layers.{place}"
        )
        found += _affine(f"{ours}quality.layers.{place}", f"{DECODER}iou_prediction_head.layers.{place}")
    return tuple(found)


OFFICIAL = (*_encoder(), *_prompt_encoder(), *_mask_decoder())

MLP = r"^(mask_decoder\.(?:output_hypernetworks_mlps\.[\d*]+|iou_prediction_head))\.layers\."
RENAMED = (
    (r"^image_encoder\.neck\.0", "vision_encoder.neck.conv1"),
    (r"^image_encoder\.neck\.1", "vision_encoder.neck.layer_norm1"),
    (r"^image_encoder\.neck\.2", "vision_encoder.neck.conv2"),
    (r"^image_encoder\.neck\.3", "vision_encoder.neck.layer_norm2"),
    (r"^image_encoder\.patch_embed\.proj", "vision_encoder.patch_embed.projection"),
    (r"^image_encoder\.blocks", "vision_encoder.layers"),
    (r"^image_encoder", "vision_encoder"),
    (
        re.escape(FREQUENCIES),
        "shared_image_embedding.positional_embedding|prompt_encoder.shared_embedding.positional_embedding",
    ),
    (r"point_embeddings", "point_embed"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (rf"{MLP}0", r"\1.proj_in"),
    (rf"{MLP}1", r"\1.layers.0"),
    (rf"{MLP}2", r"\1.proj_out"),
    (r"\.norm(\d|_final_attn)", r".layer_norm\1"),
)
"""What transformers calls the parts, in this order."""


def transformers_name(official: str) -> str:
    """The name of a tensor in transformers' folders."""
    name = official
    for theirs, ours in RENAMED:
        name = re.sub(theirs, ours, name)
    return name


TRANSFORMERS = tuple(row(each.target, tuple(map(transformers_name, each.sources)), each.build) for each in OFFICIAL)


def _shapes(tensors: Tensors, name: Callable[[str], str]) -> Fields:
    """The fields of a `SamConfig` that show in the shapes of tensors, whose official names `name` translates."""

    def shape(official: str, axes: int) -> tuple[int, ...]:
        return shape_of(tensors, name(official), axes=axes)

    if any(each in tensor for tensor in tensors for each in HQ):
        raise ValueError(
            "this is a checkpoint of SAM-HQ, whose decoder has a token and layers of its own: expected one of SAM"
        )
    width, _, patch_size, columns = shape(f"{ENCODER}patch_embed.proj.weight", 4)
    if patch_size != columns:
        raise ValueError(f"patches must be square, got {patch_size} x {columns} pixels")
    _, *grid, _ = shape(f"{ENCODER}pos_embed", 4)
    depth = sum(
        re.fullmatch(re.escape(name(f"{ENCODER}blocks.*.norm1.weight")).replace(r"\*", r"\d+"), each) is not None
        for each in tensors
    )
    sides: dict[int, tuple[int, ...]] = {}
    head_width = width
    for index in range(depth):
        tables = [shape(f"{ENCODER}blocks.{index}.attn.rel_pos_{axis}", 2) for axis in "hw"]
        head_width = tables[0][1]
        sides[index] = tuple((offsets + 1) // 2 for offsets, _ in tables)
    global_blocks = tuple(index for index, pair in sides.items() if list(pair) == grid)
    windows = {pair for index, pair in sides.items() if index not in global_blocks}
    if len(windows) > 1 or any(rows != columns for rows, columns in windows):
        raise ValueError(f"windows must be square and of one size, got tables for {sorted(windows)}")
    if not depth or width % head_width:
        raise ValueError(f"heads of {head_width} channels do not make up a width of {width}, in {depth} blocks")
    side = next(iter(windows))[0] if windows else 14
    if grid[0] != grid[1]:
        raise ValueError(f"images must be square, got positions of {grid[0]} x {grid[1]} patches")
    return {
        "backbone": {
            "patch_size": patch_size,
            "width": width,
            "depth": depth,
            "heads": width // head_width,
            "mlp_ratio": shape(f"{ENCODER}blocks.0.mlp.lin1.weight", 2)[0] / width,
            "special_tokens": 0,
            "position_grid": tuple(grid),
            "position_resize": "bicubic-antialias",
            "windows": {"side": side, "global_blocks": global_blocks},
        },
        "width": shape(f"{DECODER}iou_token.weight", 2)[1],
        "cross_width": shape(f"{DECODER}transformer.final_attn_token_to_image.q_proj.weight", 2)[0],
        "layers": sum(
            re.fullmatch(r"mask_decoder\.transformer\.layers\.\d+\.mlp\.lin1\.weight", each) is not None
            for each in tensors
        ),
        "heads": HEADS,
        "hidden": shape(f"{DECODER}transformer.layers.0.mlp.lin1.weight", 2)[0],
        "quality_hidden": shape(f"{DECODER}iou_prediction_head.layers.0.weight", 2)[0],
        "mask_channels": shape(f"{PROMPTS}mask_downscaling.3.weight", 4)[0],
        "norm_epsilon": EPSILON,
        "preprocessing": {"size": grid[0] * patch_size, "mean": IMAGENET_MEAN, "std": IMAGENET_STD},
    }


def _official(tensors: Tensors, given: Given) -> Fields:
    return _shapes(tensors, lambda name: name)


def _transformers(tensors: Tensors, given: Given) -> Fields:
    fields = _shapes(tensors, lambda name: transformers_name(name).split("|")[0])
    encoder, prompts, decoder = (
        section(given.settings, f"{part}_config") for part in ("vision", "prompt_encoder", "mask_decoder")
    )
    require(
        encoder,
        {
            "hidden_act": ("gelu",),
            "layer_norm_eps": (1e-6,),
            "num_attention_heads": (fields["backbone"]["heads"],),
            "window_size": (fields["backbone"]["windows"]["side"],),
            "use_rel_pos": (True,),
            "use_abs_pos": (True,),
            "qkv_bias": (True,),
        },
    )
    require(prompts, {"hidden_act": ("gelu",), "layer_norm_eps": (1e-6,)})
    require(decoder, {"hidden_act": ("relu",), "num_multimask_outputs": (3,), "iou_head_depth": (3,)})
    fields["heads"] = integer(decoder, "num_attention_heads") or HEADS
    epsilon = number(decoder, "layer_norm_eps")
    if epsilon is not None and epsilon != EPSILON:
        fields["norm_epsilon"] = epsilon
        given.say(
            f"norms of the decoder's layers have an epsilon of {epsilon:g}, as config.json says; "
            f"the official model's have {EPSILON:g}"
        )
    return fields


FAMILIES = (
    Family(
        name="sam",
        model="sam",
        fits=lambda tensors, settings: {f"{ENCODER}neck.0.weight", f"{DECODER}iou_token.weight"} <= tensors.keys(),
        configure=_official,
        table=OFFICIAL,
        ignored={r"pixel_(mean|std)": "of the images' colours, which are ImageNet's"},
    ),
    Family(
        name="sam-transformers",
        model="sam",
        fits=lambda tensors, settings: (
            {"vision_encoder.neck.conv1.weight", f"{DECODER}iou_token.weight"} <= tensors.keys()
        ),
        configure=_transformers,
        table=TRANSFORMERS,
        ignored={
            r"(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding": (
                "the frequencies of positions, which are there twice"
            )
        },
        settings_files=("config.json",),
    ),
)
