"""EoMT on DINOv2's ViT: what the authors' training saves and publishes, and transformers' folders, on DINOv3's too.

Source: tue-mps/eomt, models/{eomt,vit,scale_block}.py, training/lightning_module.py and configs/dinov2;
    huggingface/transformers, src/transformers/models/eomt/modeling_eomt.py, of version 4 (whose names the published
    folders have) and 5.
"""

import json
import re
from collections.abc import Mapping

import numpy as np

from checkpoints_convert import dinov3
from checkpoints_convert.dpt import tiles
from checkpoints_convert.labels import same_segments, transformers_labels
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    HasBackbone,
    OfModel,
    Row,
    Settings,
    Tensors,
    concatenated,
    linear,
    row,
    same,
    shape_of,
)
from checkpoints_convert.settings import integer, integers, number, section, side_lengths, text
from checkpoints_convert.vit import IMAGENET_MEAN, IMAGENET_STD, Names, timm
from hourglass_jax.imaging.segment_labels import DATASETS, segment_labels
from hourglass_jax.models.mask2former import TASKS

SEGMENTATION = ("segmentation",)
PUBLISHED = {
    ("coco_panoptic", 200): TASKS,
    ("coco_instance", 200): ("instances",),
    ("ade20k", 200): TASKS,
    ("ade20k", 100): SEGMENTATION,
    ("cityscapes", 100): SEGMENTATION,
}
"""The data set of a published checkpoint and its number of queries -> what it can be used for."""
TRAINED = {
    "MaskClassificationPanoptic": TASKS,
    "MaskClassificationInstance": ("instances",),
    "MaskClassificationSemantic": SEGMENTATION,
}
"""The class of a YAML's model -> what it trains for."""
REGISTERED = {
    "COCOPanoptic": "coco_panoptic",
    "COCOInstance": "coco_instance",
    "ADE20KPanoptic": "ade20k",
    "ADE20KSemantic": "ade20k",
    "CityscapesSemantic": "cityscapes",
}
"""The class of a YAML's data -> its classes."""

NETWORK = "network."
ENCODER = f"{NETWORK}encoder."
VIT = timm(f"{ENCODER}backbone.")


def _depthwise(weight: np.ndarray) -> np.ndarray:
    """A depthwise convolution [C, 1, rows, columns] as [rows, columns, C]."""
    return weight[:, 0].transpose(1, 2, 0)


def _affine(target: str, source: str) -> tuple[Row, Row]:
    """The rows of a linear layer."""
    return row(f"{target}.kernel", f"{source}.weight", linear), row(f"{target}.bias", f"{source}.bias", same)


def _head(queries: str, classifier: str, masks: tuple[str, str, str], scale: str, norm: str) -> tuple[Row, ...]:
    """The rows of all but the ViT; `scale` names the blocks that enlarge the map, `norm` the norm in them."""
    return (
        row("queries", queries, same),
        *_affine("classifier", classifier),
        *(each for place, name in enumerate(masks) for each in _affine(f"mask_layers.{place}", name)),
        row("scale_blocks.*.expansion.kernel", f"{scale}.*.conv1.weight", tiles),
        row("scale_blocks.*.expansion_bias", f"{scale}.*.conv1.bias", same),
        row("scale_blocks.*.depthwise", f"{scale}.*.conv2.weight", _depthwise),
        row("scale_blocks.*.norm.scale", f"{scale}.*.{norm}.weight", same),
        row("scale_blocks.*.norm.bias", f"{scale}.*.{norm}.bias", same),
    )


OFFICIAL = (
    *VIT.rows(),
    *_head(
        f"{NETWORK}q.weight",
        f"{NETWORK}class_head",
        (f"{NETWORK}mask_head.0", f"{NETWORK}mask_head.2", f"{NETWORK}mask_head.4"),
        f"{NETWORK}upscale",
        "norm",
    ),
)


TRANSFORMERS_HEAD = _head(
    "query.weight",
    "class_predictor",
    ("mask_head.fc1", "mask_head.fc2", "mask_head.fc3"),
    "upscale_block.block",
    "layernorm2d",
)


def _transformers_vit() -> Names:
    """transformers' names of the ViT; the gate of SwiGLU stands before what it is multiplied with."""
    layer = "layers.*."
    return Names(
        patches="embeddings.patch_embeddings.projection",
        positions="embeddings.position_embeddings.weight",
        special=("embeddings.cls_token", "embeddings.register_tokens"),
        norm1=f"{layer}norm1",
        qkv=tuple(f"{layer}attention.{part}_proj." for part in "qkv"),
        projection=f"{layer}attention.out_proj",
        norm2=f"{layer}norm2",
        expand=f"{layer}mlp.fc1|{layer}mlp.weights_in",
        contract=f"{layer}mlp.fc2|{layer}mlp.weights_out|{layer}mlp.down_proj",
        norm="layernorm",
        scales=(f"{layer}layer_scale1.lambda1", f"{layer}layer_scale2.lambda1"),
    )


def _special(class_token: np.ndarray, registers: np.ndarray) -> np.ndarray:
    """The class token and the registers [1, n, C] as [S, C]; they have no positions."""
    return np.concatenate([class_token, registers], axis=1)[0]


def _positions(config: HasBackbone, positions: np.ndarray) -> np.ndarray:
    """Position embeddings [P, C] as [rows, columns, C]."""
    return positions.reshape(*config.backbone.position_grid, -1)


def _transformers_rows() -> tuple[Row, ...]:
    names = _transformers_vit()
    expand = "backbone.blocks.*.mlp.expand."
    gated = {
        f"{expand}{ours}": row(
            f"{expand}{ours}",
            (
                f"{_leaf(names.expansion[0], theirs)}|layers.*.mlp.gate_proj.{theirs}",
                f"layers.*.mlp.up_proj.{theirs}?",
            ),
            build,
        )
        for ours, theirs, build in (("kernel", "weight", linear), ("bias", "bias", concatenated))
    }
    return (
        *(gated.get(each.target, each) for each in names.rows(embeddings=False)),
        row("backbone.special_tokens", names.special, _special),
        row("backbone.position_embedding", names.positions, OfModel(_positions)),
        *TRANSFORMERS_HEAD,
    )


def _leaf(names: str, leaf: str) -> str:
    return "|".join(f"{each}.{leaf}" for each in names.split("|"))


TRANSFORMERS = _transformers_rows()


def _official_shapes(tensors: Tensors) -> dict[str, np.ndarray]:
    """transformers' tensors that the config is read off, by their official names."""
    names = (
        (r"embeddings\.patch_embeddings\.projection\.weight", f"{ENCODER}backbone.patch_embed.proj.weight"),
        (r"embeddings\.cls_token", f"{ENCODER}backbone.cls_token"),
        (r"embeddings\.register_tokens", f"{ENCODER}backbone.reg_token"),
        (r"layers\.(\d+)\.norm1\.weight", rf"{ENCODER}backbone.blocks.\1.norm1.weight"),
        (r"layers\.0\.layer_scale1\.lambda1", f"{ENCODER}backbone.blocks.0.ls1.gamma"),
        (r"layers\.0\.mlp\.(?:fc1|weights_in)\.weight", f"{ENCODER}backbone.blocks.0.mlp.fc1.weight"),
        (r"layers\.0\.mlp\.(?:fc2|weights_out|down_proj)\.weight", f"{ENCODER}backbone.blocks.0.mlp.fc2.weight"),
        (r"query\.weight", f"{NETWORK}q.weight"),
        (r"class_predictor\.weight", f"{NETWORK}class_head.weight"),
        (r"attn_mask_probs", f"{NETWORK}attn_mask_probs"),
    )
    found = {}
    for name, tensor in tensors.items():
        for theirs, official in names:
            if re.fullmatch(theirs, name):
                found[re.sub(theirs, official, name)] = tensor
    positions = tensors.get("embeddings.position_embeddings.weight")
    if positions is not None:
        found[f"{ENCODER}backbone.pos_embed"] = positions[None]
    gate, value = (tensors.get(f"layers.0.mlp.{name}_proj.weight") for name in ("gate", "up"))
    if gate is not None and value is not None:
        found[f"{ENCODER}backbone.blocks.0.mlp.fc1.weight"] = concatenated(gate, value)
    return found


def _shapes(tensors: Tensors, given: Given, backbone: Fields | None = None) -> Fields:
    """The fields of an `EoMTConfig` that tensors of official names show, and settings beside them.

    The backbone is DINOv2's unless another one's config is given.
    """
    settings = given.settings
    blocks = integer(settings, "num_blocks")
    masked: tuple[int, ...] = ()
    backbone = backbone or VIT.config(tensors, given, settings) | {"position_resize": "bicubic-antialias"}
    if f"{NETWORK}attn_mask_probs" in tensors:
        [count] = shape_of(tensors, f"{NETWORK}attn_mask_probs", axes=1)
        if blocks not in (None, count):
            raise ValueError(f"the settings are of another model: they say num_blocks {blocks}, not {count}")
        shares, blocks = tensors[f"{NETWORK}attn_mask_probs"], count
        masked = tuple(backbone["depth"] - count + int(place) for place in np.flatnonzero(shares > 0))
        if any(0 < share < 1 for share in shares):
            given.say(
                "masked attention was being phased out when this was saved: here all queries of such blocks have it"
            )
    if blocks is None:
        raise ValueError(
            "no tensor shows how many of the last blocks hold the queries: name the settings that say num_blocks "
            "with --config"
        )
    queries = shape_of(tensors, f"{NETWORK}q.weight", axes=2)[0]
    if integer(settings, "num_queries") not in (None, queries):
        raise ValueError(
            f"the settings are of another model: they say num_queries {settings['num_queries']}, not {queries}"
        )
    return {
        "backbone": backbone,
        "classes": shape_of(tensors, f"{NETWORK}class_head.weight", axes=2)[0] - 1,
        "queries": queries,
        "query_blocks": blocks,
        "masked_blocks": masked,
    }


def _official(tensors: Tensors, given: Given) -> Fields:
    mean, std = (_statistics(tensors, f"{ENCODER}pixel_{name}") for name in ("mean", "std"))
    if std is not None and not any(std):
        raise ValueError(
            "its ViT's weights are differences from the pretrained ones (its pixel_std is 0), as published for "
            "DINOv3: add these first"
        )
    if f"{ENCODER}backbone.pos_embed" not in tensors:
        raise ValueError(OTHER_VIT)
    model, data = (section(given.settings, name) for name in ("model", "data"))
    task, dataset = (_class(each) for each in (model, data))
    if task not in (None, *TRAINED):
        raise ValueError(f"class_path of the model must be one of {', '.join(TRAINED)}, got {task!r:.60}")
    arguments = section(model, "init_args")
    fields = _purpose(_shapes(tensors, given), given, REGISTERED.get(dataset or ""), TRAINED.get(task or ""))
    if fields["tasks"] is None:
        raise ValueError(
            "no tensor shows whether an EoMT is for panoptic maps, instances or label maps, and of which data set: "
            f"name its YAML with --config, or the data set with --dataset ({', '.join(DATASETS)})"
        )
    if fields["dataset"] is None:
        stuff = integers(section(data, "init_args"), "stuff_classes")
        if stuff is not None:
            fields["things"] = tuple(label for label in range(fields["classes"]) if label not in stuff)
        given.say(
            "the classes are of no data set that is known here: they are numbered"
            + (", and all taken for things" if stuff is None else "")
        )
    for ours, theirs in (("object_threshold", "mask_thresh"), ("overlap_threshold", "overlap_thresh")):
        if theirs in arguments:
            fields[ours] = number(arguments, theirs, positive=False)
    return _prepared(fields, mean or IMAGENET_MEAN, std or IMAGENET_STD)


OTHER_VIT = "it is an EoMT on another ViT than DINOv2's (DINOv3's has rotary positions), which is not known here"


def _class(part: Mapping[str, object]) -> str | None:
    """The last part of the name of a class in Lightning's YAML."""
    path = text(part, "class_path")
    return None if path is None else path.rpartition(".")[2]


def _statistics(tensors: Tensors, name: str) -> tuple[float, ...] | None:
    """Mean or deviation of colours that the encoder holds, [1, 3, 1, 1], where it does."""
    if name not in tensors:
        return None
    return tuple(round(float(each), 6) for each in tensors[name].astype(np.float64).ravel())


def _transformers(tensors: Tensors, given: Given) -> Fields:
    _check_type(given.settings, "eomt")
    if "embeddings.position_embeddings.weight" not in tensors:
        raise ValueError(OTHER_VIT)
    shape_of(tensors, "embeddings.position_embeddings.weight", axes=2)
    return _of_transformers(_shapes(_official_shapes(tensors), given), given)


def _check_type(settings: Settings, known: str) -> None:
    if settings.get("model_type") not in (None, known):
        raise ValueError(f"config.json must be of an {known}, got {json.dumps(settings['model_type'])}")


def _transformers_dinov3(tensors: Tensors, given: Given) -> Fields:
    """An EoMT on DINOv3's ViT, whose tensors show no size of images and no epsilon of the norms."""
    _check_type(given.settings, "eomt_dinov3")
    if DINOV3.gate is not None and f"{DINOV3.gate}.weight".replace("*", "0") in tensors:
        raise ValueError(
            "it is an EoMT on a DINOv3 with SwiGLU, whose head transformers gives the ViT's activation: only those "
            "with GELU are known here"
        )
    size, epsilon = side_lengths(given.settings, "image_size"), number(given.settings, "layer_norm_eps")
    if size is None or epsilon is None:
        raise ValueError(
            "no tensor of an EoMT on DINOv3 shows the size of its images: its config.json must lie beside the "
            "checkpoint, or be named with --config, and say image_size and layer_norm_eps"
        )
    backbone = dinov3.transformers_backbone(DINOV3, tensors, given)
    return _of_transformers(_shapes(_official_shapes(tensors), given, backbone), given, size)


def _of_transformers(shapes: Fields, given: Given, size: tuple[int, int] | None = None) -> Fields:
    """The fields of an `EoMTConfig` from what shows, and transformers' labels; see `_prepared`."""
    labels = transformers_labels(given.settings)
    if labels is not None and len(labels.names) != shapes["classes"]:
        raise ValueError(
            f"config.json names {len(labels.names)} classes, but the checkpoint tells {shapes['classes']} apart"
        )
    fields = _purpose(shapes, given, None if labels is None else same_segments(labels), None)
    if fields["dataset"] is None and labels is not None:
        fields["labels"] = {"names": labels.names, "colors": labels.colors}
    if fields["tasks"] is None:
        fields["tasks"] = TASKS
        possible = [each for each in DATASETS if len(segment_labels(each, None).names) == shapes["classes"]]
        hint = f"; if the classes are those of {' or '.join(possible)}, say so with --dataset" if possible else ""
        given.say(
            "nothing says what it was trained for: panoptic, instances and segmentation are all offered, and "
            + ("every class" if fields["dataset"] is None else "what the data set counts")
            + f" is taken for a thing{hint}"
        )
    return _prepared(fields, IMAGENET_MEAN, IMAGENET_STD, size)


def _purpose(shapes: Fields, given: Given, dataset: str | None, tasks: tuple[str, ...] | None) -> Fields:
    """The shapes, the data set, and the tasks that were published for it; None where that is not known."""
    dataset = given.dataset or dataset
    if dataset is not None:
        segment_labels(dataset, shapes["classes"])
        tasks = tasks or PUBLISHED.get((dataset, shapes["queries"]))
    return {**shapes, "dataset": dataset, "tasks": tasks}


def _prepared(
    fields: Fields, mean: tuple[float, ...], std: tuple[float, ...], size: tuple[int, int] | None = None
) -> Fields:
    """The fields with how images are prepared: in windows for label maps alone, else as squares with black.

    Their size is that of the position embedding, unless it is given, (rows, columns).
    """
    backbone = fields["backbone"]
    rows, columns = size or (side * backbone["patch_size"] for side in backbone["position_grid"])
    statistics = {"multiple": 1, "mean": mean, "std": std}
    if rows != columns:
        return {
            **fields,
            "padding": "patches",
            "preprocessing": statistics | {"size": (rows, columns), "resize": "square"},
        }
    if fields["tasks"] != SEGMENTATION:
        return {**fields, "preprocessing": statistics | {"size": rows, "resize": "longest"}}
    window = {"size": rows, "stride": None}
    return {**fields, "window": window, "preprocessing": statistics | {"size": rows, "resize": "shortest"}}


def _has(*names: str):
    """Whether a checkpoint has these tensors."""

    def fits(tensors: Tensors, settings: Settings) -> bool:
        return set(names) <= tensors.keys()

    return fits


LOSS = {r"criterion\..*": "weights of the loss, for training"}
SHARES = "the share of queries with a mask, part of the config"
IN_TRANSFORMERS = _has("query.weight", "class_predictor.weight", "upscale_block.block.0.conv1.weight")
DINOV3 = dinov3.transformers("layers", "layernorm", gated=False)
DINOV3_PATCHES = "embeddings.patch_embeddings.weight"
"""What embeds the patches where the ViT is DINOv3's."""

FAMILIES = (
    Family(
        name="eomt",
        model="eomt",
        fits=_has(f"{NETWORK}q.weight", f"{NETWORK}class_head.weight", f"{NETWORK}mask_head.4.weight"),
        configure=_official,
        table=OFFICIAL,
        ignored={
            rf"{re.escape(ENCODER)}pixel_(mean|std)": "colours' mean and deviation, part of the preprocessing",
            rf"{re.escape(NETWORK)}attn_mask_probs": SHARES,
            **LOSS,
        },
        settings_files=("config.json",),
    ),
    Family(
        name="eomt-transformers",
        model="eomt",
        fits=lambda tensors, settings: IN_TRANSFORMERS(tensors, settings) and DINOV3_PATCHES not in tensors,
        configure=_transformers,
        table=TRANSFORMERS,
        ignored={r"attn_mask_probs": SHARES, **LOSS},
        settings_files=("config.json",),
    ),
    Family(
        name="eomt-dinov3-transformers",
        model="eomt",
        fits=lambda tensors, settings: IN_TRANSFORMERS(tensors, settings) and DINOV3_PATCHES in tensors,
        configure=_transformers_dinov3,
        table=(*DINOV3.rows(), *TRANSFORMERS_HEAD),
        ignored={r"attn_mask_probs": SHARES, **LOSS},
        settings_files=("config.json",),
    ),
)
