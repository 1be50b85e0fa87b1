"""Segmenter's checkpoints: upstream's checkpoint.pth with variant.yml, and Expedit-Segmenter's in mmsegmentation.

Source: rstrudel/segmenter, segm/model/factory.py and segm/train.py (what variant.yml says); Expedit-Segmenter,
    tools/prepocess_ckpt.py and configs/segmenter.
"""

from collections.abc import Mapping

from checkpoints_convert.rules import (
    Family,
    Row,
    Settings,
    Tensors,
    linear,
    row,
    same,
    shape_of,
    without_batch,
)
from checkpoints_convert.vit import HALF, IMAGENET_MEAN, IMAGENET_STD, Names, mmsegmentation, timm

NORMALISATIONS = {"vit": (HALF, HALF), "deit": (IMAGENET_MEAN, IMAGENET_STD)}
DATASETS = {150: "ade20k", 19: "cityscapes", 60: "pascal_context"}
"""By their number of classes."""
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
    *,
    heads: int | None,
    window: tuple[int, int] | None,
    normalisation: str,
    dataset: str | None,
) -> dict[str, object]:
    """A `SegmenterConfig`. `window` is (size, stride); None: the size of training, as the data set's are cut."""
    masks = f"{decoder}mask_norm.weight" in tensors
    classes, *_ = shape_of(tensors, f"{decoder}{'mask_norm' if masks else 'head'}.weight", axes=1 if masks else 2)
    dataset = dataset or DATASETS.get(classes)
    backbone = names.config(tensors, heads=heads)
    trained = backbone["position_grid"][0] * backbone["patch_size"]
    size, stride = window or (trained, trained * 2 // 3 if dataset in OVERLAPPING else trained)
    mean, std = NORMALISATIONS[normalisation]
    return {
        "backbone": {**backbone, "position_resize": "bilinear", "norm_epsilon": 1e-5},
        "classes": classes,
        "decoder": "mask_transformer" if masks else "linear",
        "decoder_depth": sum(name.startswith(decoder) and name.endswith(".norm1.weight") for name in tensors),
        "window": {"size": size, "stride": stride},
        "dataset": dataset if DATASETS.get(classes) == dataset else None,
        "preprocessing": {"size": size, "multiple": 1, "resize": "none", "mean": mean, "std": std},
    }


def _upstream(tensors: Tensors, settings: Settings) -> dict[str, object]:
    if not settings:
        raise ValueError(
            "the windows and the normalisation of a Segmenter stand in variant.yml: "
            "put it beside the checkpoint, or name it with --config"
        )
    net, data, inference = (
        _section(settings, name) for name in ("net_kwargs", "dataset_kwargs", "inference_kwargs")
    )
    config = _config(
        tensors,
        timm("encoder."),
        "decoder.",
        heads=_number(net, "n_heads"),
        window=(_number(inference, "window_size"), _number(inference, "window_stride")),
        normalisation=_normalisation(data if "normalization" in data else net),
        dataset=str(data["dataset"]) if "dataset" in data else None,
    )
    backbone = config["backbone"]
    expected = {
        "d_model": backbone["width"],
        "n_layers": backbone["depth"],
        "n_cls": config["classes"],
        "patch_size": backbone["patch_size"],
        "image_size": tuple(side * backbone["patch_size"] for side in backbone["position_grid"]),
    }
    for key, got in expected.items():
        said = tuple(net[key]) if isinstance(net.get(key), list) else net.get(key, got)
        if said != got:
            raise ValueError(f"variant.yml is of another model: it says {key} {said}, the checkpoint has {got}")
    return config


def _section(settings: Settings, name: str) -> Mapping[str, object]:
    section = settings.get(name)
    if not isinstance(section, Mapping):
        raise ValueError(
            f"the settings must have a section {name}, as Segmenter's variant.yml has, got {section!r}"
        )
    return section


def _number(section: Mapping[str, object], name: str) -> int:
    value = section.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} in variant.yml must be a positive integer, got {value!r}")
    return value


def _normalisation(section: Mapping[str, object]) -> str:
    name = section.get("normalization")
    if name not in NORMALISATIONS:
        raise ValueError(f"normalization in variant.yml must be {' or '.join(NORMALISATIONS)}, got {name!r}")
    return str(name)


def _mmsegmentation(tensors: Tensors, settings: Settings) -> dict[str, object]:
    return _config(
        tensors,
        mmsegmentation(),
        "decode_head.",
        heads=None,
        window=None,
        normalisation="vit",
        dataset=None,
    )


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
        settings_file="variant.yml",
    ),
    Family(
        name="segmenter-mmseg",
        model="segmenter",
        fits=lambda tensors, settings: {"backbone.pos_embed", "decode_head.cls_emb"} <= tensors.keys(),
        configure=_mmsegmentation,
        table=(*mmsegmentation().rows(), *_decoder("decode_head.")),
        ignored=CLASSIFIER,
    ),
)
