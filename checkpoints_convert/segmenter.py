"""Segmenter's checkpoints: upstream's checkpoint.pth with variant.yml, and Expedit-Segmenter's in mmsegmentation.

Source: rstrudel/segmenter, segm/model/factory.py and segm/train.py (what variant.yml says); Expedit-Segmenter,
    tools/prepocess_ckpt.py and configs/segmenter.
"""

from collections.abc import Mapping
from reprlib import repr as short

from checkpoints_convert.labels import class_fields
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    Row,
    Tensors,
    linear,
    row,
    same,
    shape_of,
    without_batch,
)
from checkpoints_convert.settings import Section, integer, require, section, side_lengths, text
from checkpoints_convert.vit import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Names,
    mmsegmentation,
    resizing,
    timm,
    vit_sections,
)
from checkpoints_convert.vit import normalisation as published_normalisation

NORMALISATIONS = {"vit": (HALF, HALF), "deit": (IMAGENET_MEAN, IMAGENET_STD)}
DECODER_HEAD_WIDTH = 64
"""Channels of a head of the mask transformer in the official code, whatever the encoder's."""
OVERLAPPING = ("cityscapes", "pascal_context")
"""Data sets whose windows are two thirds of their size apart; others lie side by side."""


def _decoder(prefix: str) -> tuple[Row, ...]:
    """The rows of both decoders; `prefix` is what the checkpoint calls the decoder."""
    return (
        row("decoder.kernel", f"{prefix}head.weight", linear),
        row("decoder.bias", f"{prefix}head.bias", same),
        row("decoder.projection.kernel", f"{prefix}proj_dec.weight", linear),
        row("decoder.projection.bias", f"{prefix}proj_dec.bias", same),
        row("decoder.class_embeddings", f"{prefix}cls_emb", without_batch),
        *timm(prefix).blocks("decoder."),
        row("decoder.norm.scale", f"{prefix}decoder_norm.weight", same),
        row("decoder.norm.bias", f"{prefix}decoder_norm.bias", same),
        row("decoder.token_projection", f"{prefix}proj_patch", same),
        row("decoder.class_projection", f"{prefix}proj_classes", same),
        row("decoder.mask_norm.scale", f"{prefix}mask_norm.weight", same),
        row("decoder.mask_norm.bias", f"{prefix}mask_norm.bias", same),
    )


def _config(
    tensors: Tensors,
    names: Names,
    decoder: str,
    given: Given,
    *sections: Section,
    window: tuple[int, int] | None,
    normalisation: str,
    dataset: str | None = None,
) -> Fields:
    """A `SegmenterConfig`. `window` is (size, stride); None: the size of training, as the data set's are cut."""
    masks = f"{decoder}mask_norm.weight" in tensors
    classes, *_ = shape_of(tensors, f"{decoder}{'mask_norm' if masks else 'head'}.weight", axes=1 if masks else 2)
    named = class_fields(classes, given, dataset)
    backbone = names.config(tensors, given, *sections)
    resize = {"position_resize": "bilinear", **resizing(given.settings)}
    if masks and backbone["width"] % DECODER_HEAD_WIDTH:
        raise ValueError(
            f"the mask transformer's heads are {DECODER_HEAD_WIDTH} channels wide: its width must be a multiple of "
            f"that, got {backbone['width']}"
        )
    trained = min(backbone["position_grid"]) * backbone["patch_size"]
    if window is None:
        window = (trained, trained * 2 // 3 if named["dataset"] in OVERLAPPING else trained)
        given.say(f"windows of {window[0]} pixels, {window[1]} apart: no settings say how images are cut")
    size, stride = window
    mean, std = NORMALISATIONS[normalisation]
    said_mean, said_std = published_normalisation(given.settings)
    return {
        "backbone": {"norm_epsilon": 1e-5, **backbone, **resize},
        **named,
        "decoder": "mask_transformer" if masks else "linear",
        "decoder_depth": sum(name.startswith(decoder) and name.endswith(".norm1.weight") for name in tensors),
        "window": {"size": size, "stride": stride},
        "preprocessing": {
            "size": size,
            "multiple": 1,
            "resize": "none",
            "mean": said_mean or mean,
            "std": said_std or std,
        },
    }


def _upstream(tensors: Tensors, given: Given) -> Fields:
    if not given.settings:
        raise ValueError(
            "the windows and the normalisation of a Segmenter stand in variant.yml: "
            "put it beside the checkpoint, or name it with --config"
        )
    net, data, inference = (
        _section(given.settings, name) for name in ("net_kwargs", "dataset_kwargs", "inference_kwargs")
    )
    _number(net, "n_heads")
    config = _config(
        tensors,
        timm("encoder."),
        "decoder.",
        given,
        net,
        window=(_number(inference, "window_size"), _number(inference, "window_stride")),
        normalisation=_normalisation(data if "normalization" in data else net),
        dataset=text(data, "dataset"),
    )
    _check(integer(net, "n_cls"), "n_cls", config["classes"])
    decoder = section(net, "decoder")
    _check(text(decoder, "name"), "a decoder", config["decoder"])
    if config["decoder"] == "mask_transformer":
        _check(integer(decoder, "n_layers", least=0), "n_layers of the decoder", config["decoder_depth"])
        _check(
            integer(decoder, "n_heads"), "n_heads of the decoder", config["backbone"]["width"] // DECODER_HEAD_WIDTH
        )
    return config


def _check(said: object, what: str, got: object) -> None:
    if said not in (None, got):
        raise ValueError(f"variant.yml is of another model: it says {what} {said}, the checkpoint has {got}")


def _section(settings: Section, name: str) -> Section:
    found = settings.get(name)
    if not isinstance(found, Mapping):
        raise ValueError(
            f"the settings must have a section {name}, as Segmenter's variant.yml has, got {short(found)}"
        )
    return found


def _number(settings: Section, name: str) -> int:
    value = integer(settings, name)
    if value is None:
        raise ValueError(f"{name} in the settings must be a positive integer, got None")
    return value


def _normalisation(settings: Section) -> str:
    name = settings.get("normalization")
    if not isinstance(name, str) or name not in NORMALISATIONS:
        raise ValueError(f"normalization in variant.yml must be {' or '.join(NORMALISATIONS)}, got {short(name)}")
    return name


def _mmsegmentation(tensors: Tensors, given: Given) -> Fields:
    config = _config(
        tensors,
        mmsegmentation(),
        "decode_head.",
        given,
        *vit_sections(given.settings),
        window=_slide(section(given.settings, "test_cfg")),
        normalisation="vit",
    )
    head, heads = section(given.settings, "decode_head"), config["backbone"]["width"] // DECODER_HEAD_WIDTH
    for names, got in ((("n_cls", "num_classes"), config["classes"]), (("n_heads", "num_heads"), heads)):
        for name in names:
            said = integer(head, name)
            if said not in (None, got) and (name[-5:] != "heads" or config["decoder"] == "mask_transformer"):
                raise ValueError(
                    f"the settings are of another model: they say decode_head.{name} {said}, not {got}"
                )
    return config


def _slide(test: Section) -> tuple[int, int] | None:
    """(size, stride) of the windows in mmsegmentation's test_cfg.

    Raises:
        ValueError: images are not cut into squares as far apart in both directions.
    """
    require(test, {"mode": ("slide",)} if "mode" in test else {})
    sides = side_lengths(test, "crop_size"), side_lengths(test, "stride")
    if None in sides:
        return None
    for name, pair in zip(("crop_size", "stride"), sides, strict=True):
        if pair and pair[0] != pair[1]:
            raise ValueError(f"test_cfg.{name} in the settings must be square, got {pair}")
    size, stride = (pair[0] for pair in sides if pair)
    return size, stride


CLASSIFIER = {r"encoder\.(head|head_dist)\..*": "head of the ImageNet classifier that the encoder was trained as"}

FAMILIES = (
    Family(
        name="segmenter",
        model="segmenter",
        fits=lambda tensors, settings: (
            "encoder.pos_embed" in tensors and bool({"decoder.cls_emb", "decoder.head.weight"} & tensors.keys())
        ),
        configure=_upstream,
        table=(*timm("encoder.").rows(), *_decoder("decoder.")),
        ignored=CLASSIFIER,
        settings_files=("variant.yml",),
    ),
    Family(
        name="segmenter-mmseg",
        model="segmenter",
        fits=lambda tensors, settings: {"backbone.pos_embed", "decode_head.cls_emb"} <= tensors.keys(),
        configure=_mmsegmentation,
        table=(*mmsegmentation().rows(), *_decoder("decode_head.")),
        ignored=CLASSIFIER,
        settings_files=("*.py",),
    ),
)
