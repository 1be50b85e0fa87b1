"""Mask2Former with a Swin or a ResNet: detectron2's pickles, what was made of them, and transformers' folders.

Source: facebookresearch/Mask2Former, mask2former/modeling and configs; huggingface/transformers,
    src/transformers/models/mask2former/modeling_mask2former.py and models/swin/modeling_swin.py, of version 4
    (whose names the published folders have) and 5, and models/resnet/modeling_resnet.py.
"""

import json
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from checkpoints_convert import resnet, swin
from checkpoints_convert.dialects import DETECTRON2_SWIN
from checkpoints_convert.labels import same_segments, transformers_labels
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    Row,
    Settings,
    Tensors,
    concatenated,
    convolution,
    linear,
    patch_kernel,
    pointwise,
    row,
    same,
    shape_of,
)
from checkpoints_convert.settings import colour_statistics, integer, integers, number, require, section
from checkpoints_convert.vit import IMAGENET_MEAN, IMAGENET_STD
from hourglass_jax.imaging.segment_labels import DATASETS, segment_labels

LEVELS, POINTS = 3, 4
"""Maps that are read, and places in each: what both codes have for all checkpoints."""
ALL = ("panoptic", "instances", "segmentation")
SWITCHES = {"panoptic": "PANOPTIC_ON", "instances": "INSTANCE_ON", "segmentation": "SEMANTIC_ON"}
LARGE = 192
"""Channels of a Swin-L."""


class Published(NamedTuple):
    """What a data set's checkpoints were published with.

    Attributes:
        size: of the shorter side of images in pixels, and what the longer one must not exceed.
        tasks: of the checkpoints.
        object_threshold: of panoptic maps.
    """

    size: tuple[int, int]
    tasks: tuple[str, ...]
    object_threshold: float = 0.8


PUBLISHED = {
    "coco_panoptic": Published((800, 1333), ALL),
    "coco_instance": Published((800, 1333), ("instances",)),
    "ade20k": Published((640, 2560), ALL),
    "ade20k_instance": Published((640, 2560), ALL),
    "cityscapes": Published((1024, 2048), ALL),
    "cityscapes_instance": Published((1024, 2048), ("instances",)),
    "mapillary_vistas": Published((2048, 2048), ("panoptic", "segmentation"), object_threshold=0.0),
}
REGISTERED = {
    "coco_2017_val_panoptic": "coco_panoptic",
    "coco_2017_val": "coco_instance",
    "ade20k_instance_val": "ade20k_instance",
    "ade20k_panoptic_val": "ade20k",
    "ade20k_sem_seg_val": "ade20k",
    "cityscapes_fine_panoptic_val": "cityscapes",
    "cityscapes_fine_sem_seg_val": "cityscapes",
    "cityscapes_fine_instance_seg_val": "cityscapes_instance",
    "mapillary_vistas_panoptic_val": "mapillary_vistas",
    "mapillary_vistas_sem_seg_val": "mapillary_vistas",
}
"""How detectron2's names of data sets begin -> ours; longer ones first where one begins another."""


def _third(place: int, build: Callable[[np.ndarray], np.ndarray], packed: np.ndarray) -> np.ndarray:
    """Queries', keys' or values' part (0, 1, 2) of a projection that is packed along its first axis."""
    return build(np.split(packed, 3)[place])


def _affine(target: str, source: str, build: Callable[[np.ndarray], np.ndarray] = linear) -> tuple[Row, Row]:
    """The rows of a linear layer or a convolution; `source` may name alternatives, "a|b"."""
    return (
        row(f"{target}.kernel", _leaf(source, "weight"), build),
        row(f"{target}.bias", _leaf(source, "bias"), same),
    )


def _norm(target: str, source: str) -> tuple[Row, Row]:
    return row(f"{target}.scale", _leaf(source, "weight"), same), row(f"{target}.bias", _leaf(source, "bias"), same)


def _leaf(source: str, leaf: str) -> str:
    return "|".join(f"{each}.{leaf}" for each in source.split("|"))


def _packed(target: str, source: str) -> tuple[Row, ...]:
    """The rows of torch's multi-head attention, whose projections of queries, keys and values are one."""
    found = []
    for place, name in enumerate(("query", "key", "value")):
        found += [
            row(f"{target}.{name}.kernel", f"{source}.in_proj_weight", partial(_third, place, linear)),
            row(f"{target}.{name}.bias", f"{source}.in_proj_bias", partial(_third, place, same)),
        ]
    return (*found, *_affine(f"{target}.output", f"{source}.out_proj"))


def _pixel_decoder(prefixes: tuple[str, ...], encoder: str, names: Mapping[str, str]) -> tuple[Row, ...]:
    """The rows of a pixel decoder.

    Args:
        prefixes: before all of its names, alternatives.
        encoder: what stands before the layers of its encoder.
        names: of its parts.
    """

    def at(name: str) -> str:
        return "|".join(prefix + name for prefix in prefixes)

    layer, ours = f"{encoder}layers.*.", "pixel_decoder.layers.*."
    found = [
        *_affine("pixel_decoder.projections.*.convolution", at(f"{names['projection']}.*.0"), convolution),
        *_norm("pixel_decoder.projections.*.norm", at(f"{names['projection']}.*.1")),
        row("pixel_decoder.level_embeddings", at(names["level"]), same),
        *_norm(f"{ours}norm1", at(f"{layer}{names['norm1']}")),
        *_affine(f"{ours}mlp.expand", at(f"{layer}{names['expand']}")),
        *_affine(f"{ours}mlp.contract", at(f"{layer}{names['contract']}")),
        *_norm(f"{ours}norm2", at(f"{layer}{names['norm2']}")),
        row("pixel_decoder.lateral.convolution.kernel", _leaf(at(names["lateral"]), "weight"), convolution),
        *_norm("pixel_decoder.lateral.norm", at(names["lateral_norm"])),
        row("pixel_decoder.fusion.convolution.kernel", _leaf(at(names["fusion"]), "weight"), convolution),
        *_norm("pixel_decoder.fusion.norm", at(names["fusion_norm"])),
        *_affine("pixel_decoder.mask_features", at(names["masks"]), pointwise),
    ]
    for part, theirs in (
        ("value", "value_proj"),
        ("offsets", "sampling_offsets"),
        ("weights", "attention_weights"),
        ("output", "output_proj"),
    ):
        found += _affine(f"{ours}attention.{part}", at(f"{layer}self_attn.{theirs}"))
    return tuple(found)


PREDICTOR = "sem_seg_head.predictor."
OFFICIAL_SWIN = swin.rows(
    "backbone.", merging_stage=0, norms={stage: f"norm{stage}" for stage in range(swin.STAGES)}
)
OFFICIAL_HEAD = (
    *_pixel_decoder(
        ("sem_seg_head.pixel_decoder.", "sem_seg_head."),
        "transformer.encoder.",
        {
            "projection": "input_proj",
            "level": "transformer.level_embed",
            "norm1": "norm1",
            "expand": "linear1",
            "contract": "linear2",
            "norm2": "norm2",
            "lateral": "adapter_1",
            "lateral_norm": "adapter_1.norm",
            "fusion": "layer_1",
            "fusion_norm": "layer_1.norm",
            "masks": "mask_features",
        },
    ),
    row("decoder.queries", f"{PREDICTOR}query_feat.weight|{PREDICTOR}static_query.weight", same),
    row("decoder.query_positions", f"{PREDICTOR}query_embed.weight", same),
    row("decoder.level_embeddings", f"{PREDICTOR}level_embed.weight", same),
    *_packed("decoder.layers.*.cross", f"{PREDICTOR}transformer_cross_attention_layers.*.multihead_attn"),
    *_norm("decoder.layers.*.cross.norm", f"{PREDICTOR}transformer_cross_attention_layers.*.norm"),
    *_packed("decoder.layers.*.own", f"{PREDICTOR}transformer_self_attention_layers.*.self_attn"),
    *_norm("decoder.layers.*.own.norm", f"{PREDICTOR}transformer_self_attention_layers.*.norm"),
    *_affine("decoder.layers.*.mlp.expand", f"{PREDICTOR}transformer_ffn_layers.*.linear1"),
    *_affine("decoder.layers.*.mlp.contract", f"{PREDICTOR}transformer_ffn_layers.*.linear2"),
    *_norm("decoder.layers.*.norm", f"{PREDICTOR}transformer_ffn_layers.*.norm"),
    *_norm("decoder.norm", f"{PREDICTOR}decoder_norm"),
    *_affine("decoder.classifier", f"{PREDICTOR}class_embed"),
    *_affine("decoder.mask_layers.*", f"{PREDICTOR}mask_embed.layers.*"),
)

PIXEL_LEVEL, QUERIES = "model.pixel_level_module.", "model.transformer_module."
ENCODERS = (f"{PIXEL_LEVEL}encoder.", f"{PIXEL_LEVEL}encoder.swin.")
"""What transformers has before the names of a Swin, in the files of version 4 and of version 5."""


def _swin_rows() -> tuple[Row, ...]:
    """The rows of transformers' Swin, in both of its namings."""

    def at(*names: str) -> str:
        return "|".join(prefix + name for name in names for prefix in ENCODERS)

    block, ours = "encoder.layers.*.blocks.*.", "backbone.stages.*.blocks.*."
    attention = f"{block}attention."

    def projections(leaf: str) -> tuple[str, ...]:
        return tuple(
            at(f"{attention}self.{name}.{leaf}", f"{attention}{name[0]}_proj.{leaf}")
            for name in ("query", "key", "value")
        )

    found = [
        row(
            "backbone.patch_embedding.projection.kernel",
            at("embeddings.patch_embeddings.projection.weight"),
            patch_kernel,
        ),
        row("backbone.patch_embedding.projection.bias", at("embeddings.patch_embeddings.projection.bias"), same),
        *_norm("backbone.patch_norm", at("embeddings.norm")),
        *_norm(f"{ours}norm1", at(f"{block}layernorm_before")),
        row(f"{ours}attention.qkv.kernel", projections("weight"), linear),
        row(f"{ours}attention.qkv.bias", projections("bias"), concatenated),
        *_affine(f"{ours}attention.projection", at(f"{attention}output.dense", f"{attention}o_proj")),
        row(
            f"{ours}attention.position_bias.table",
            at(
                f"{attention}self.relative_position_bias_table",
                f"{attention}relative_position_bias.relative_position_bias_table",
            ),
            swin.square_table,
        ),
        *_norm(f"{ours}norm2", at(f"{block}layernorm_after")),
        *_affine(f"{ours}mlp.expand", at(f"{block}intermediate.dense", f"{block}mlp.fc1")),
        *_affine(f"{ours}mlp.contract", at(f"{block}output.dense", f"{block}mlp.fc2")),
    ]
    merging = "encoder.layers.*.downsample."
    found += _norm("backbone.stages.*.merging.norm", at(f"{merging}norm"))
    found.append(row("backbone.stages.*.merging.reduction.kernel", at(f"{merging}reduction.weight"), linear))
    for stage in range(swin.STAGES):
        found += _norm(f"backbone.norms.{stage}", f"{ENCODERS[0]}hidden_states_norms.stage{stage + 1}")
    return tuple(found)


def _split(target: str, source: str) -> tuple[Row, ...]:
    """The rows of an attention whose projections stand apart."""
    pairs = (("query", "q"), ("key", "k"), ("value", "v"), ("output", "out"))
    return tuple(each for ours, name in pairs for each in _affine(f"{target}.{ours}", f"{source}.{name}_proj"))


LAYER = f"{QUERIES}decoder.layers.*."
TRANSFORMERS_HEAD = (
    *_pixel_decoder(
        (f"{PIXEL_LEVEL}decoder.",),
        "encoder.",
        {
            "projection": "input_projections",
            "level": "level_embed",
            "norm1": "self_attn_layer_norm",
            "expand": "fc1",
            "contract": "fc2",
            "norm2": "final_layer_norm",
            "lateral": "adapter_1.0",
            "lateral_norm": "adapter_1.1",
            "fusion": "layer_1.0",
            "fusion_norm": "layer_1.1",
            "masks": "mask_projection",
        },
    ),
    row("decoder.queries", f"{QUERIES}queries_features.weight", same),
    row("decoder.query_positions", f"{QUERIES}queries_embedder.weight", same),
    row("decoder.level_embeddings", f"{QUERIES}level_embed.weight", same),
    *_packed("decoder.layers.*.cross", f"{LAYER}cross_attn"),
    *_norm("decoder.layers.*.cross.norm", f"{LAYER}cross_attn_layer_norm"),
    *_split("decoder.layers.*.own", f"{LAYER}self_attn"),
    *_norm("decoder.layers.*.own.norm", f"{LAYER}self_attn_layer_norm"),
    *_affine("decoder.layers.*.mlp.expand", f"{LAYER}fc1"),
    *_affine("decoder.layers.*.mlp.contract", f"{LAYER}fc2"),
    *_norm("decoder.layers.*.norm", f"{LAYER}final_layer_norm"),
    *_norm("decoder.norm", f"{QUERIES}decoder.layernorm"),
    *_affine("decoder.classifier", "class_predictor"),
    *_affine("decoder.mask_layers.*", f"{QUERIES}decoder.mask_predictor.mask_embedder.*.0"),
)


def _official_shapes(tensors: Tensors) -> dict[str, np.ndarray]:
    """transformers' tensors whose shapes the config is read off, by their official names."""
    names = (
        (r"^model\.pixel_level_module\.encoder\.(?:swin\.)?(?:encoder\.)?", "backbone."),
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"layernorm_before", "norm1"),
        (r"attention\.(self|relative_position_bias)\.relative", "attn.relative"),
        (r"(?<!attention\.)(intermediate\.dense|mlp\.fc1)", "mlp.fc1"),
        (r"^model\.pixel_level_module\.decoder\.encoder\.", "sem_seg_head.pixel_decoder.transformer.encoder."),
        (r"^model\.transformer_module\.queries_features", f"{PREDICTOR}query_feat"),
        (
            r"^model\.transformer_module\.decoder\.layers\.(\d+)\.fc1",
            rf"{PREDICTOR}transformer_ffn_layers.\1.linear1",
        ),
        (r"(pixel_decoder.*)\.fc1", r"\1.linear1"),
        (r"^class_predictor", f"{PREDICTOR}class_embed"),
    )
    found = {}
    for name, tensor in tensors.items():
        for theirs, official in names:
            name = re.sub(theirs, official, name)
        found[name] = tensor
    return found


def _shapes(tensors: Tensors, backbone: Fields) -> Fields:
    """The fields of a `Mask2FormerConfig` with this backbone, off the shapes of tensors of official names."""
    queries = next(
        (each for each in ("query_feat", "static_query") if f"{PREDICTOR}{each}.weight" in tensors), "query_feat"
    )
    count, width = shape_of(tensors, f"{PREDICTOR}{queries}.weight", axes=2)
    encoder = next(
        (each for each in ("sem_seg_head.pixel_decoder.", "sem_seg_head.") if f"{each}{OFFSETS}" in tensors),
        "sem_seg_head.pixel_decoder.",
    )
    heads = shape_of(tensors, f"{encoder}{OFFSETS}", axes=2)[0] / (2 * LEVELS * POINTS)
    if heads != int(heads):
        raise ValueError(f"every head must read {POINTS} places of {LEVELS} maps, got {heads} heads of that")
    return {
        "backbone": backbone,
        "classes": shape_of(tensors, f"{PREDICTOR}class_embed.weight", axes=2)[0] - 1,
        "queries": count,
        "width": width,
        "heads": int(heads),
        "points": POINTS,
        "encoder_layers": _count(tensors, f"{encoder}{LAYERS}", "linear1.weight"),
        "encoder_hidden": shape_of(tensors, f"{encoder}{LAYERS}0.linear1.weight", axes=2)[0],
        "decoder_layers": _count(tensors, f"{PREDICTOR}transformer_ffn_layers.", "linear1.weight"),
        "decoder_hidden": shape_of(tensors, f"{PREDICTOR}transformer_ffn_layers.0.linear1.weight", axes=2)[0],
    }


LAYERS = "transformer.encoder.layers."
OFFSETS = f"{LAYERS}0.self_attn.sampling_offsets.weight"


def _count(tensors: Tensors, before: str, after: str) -> int:
    return sum(bool(re.fullmatch(rf"{re.escape(before)}\d+\.{re.escape(after)}", name)) for name in tensors)


def _swin(tensors: Tensors, given: Given, said: Settings) -> Fields:
    """A `SwinConfig`; `said` is what settings say of the Swin, in timm's or transformers' words."""
    return swin.config(tensors, Given(settings=said, notes=given.notes), "backbone.")


def _official_swin(tensors: Tensors, given: Given) -> Fields:
    said = DETECTRON2_SWIN.read(section(section(given.settings, "MODEL"), "SWIN"), "MODEL.SWIN")
    return _official(tensors, given, _swin(tensors, given, said))


def _official_resnet(tensors: Tensors, given: Given) -> Fields:
    settings = section(section(given.settings, "MODEL"), "RESNETS")
    require(settings, {"STRIDE_IN_1X1": (False, True), "RES5_DILATION": (1,)})
    stride_first = _stride_first(settings, "STRIDE_IN_1X1", given)
    backbone = resnet.DETECTRON2.config(tensors, "backbone.", stride_first=stride_first)
    depth = integer(settings, "DEPTH")
    _check({
        "MODEL.RESNETS.DEPTH": (depth, 3 * sum(backbone["depths"]) + 2),
        "MODEL.RESNETS.RES2_OUT_CHANNELS": (settings.get("RES2_OUT_CHANNELS"), backbone["width"]),
        "MODEL.RESNETS.STEM_OUT_CHANNELS": (settings.get("STEM_OUT_CHANNELS"), backbone["stem_width"]),
    })  # fmt: skip
    return _official(tensors, given, backbone)


def _stride_first(settings: Settings, key: str, given: Given) -> bool:
    """Whether the 1 x 1 convolutions of a ResNet have the strides, which no tensor shows."""
    if key not in settings:
        given.say(
            "the strides of the ResNet are taken to lie in its convolutions of 3 x 3, as in all published "
            f"Mask2Formers: no settings say {key}"
        )
    return settings.get(key) is True


def _official(tensors: Tensors, given: Given, backbone: Fields) -> Fields:
    shapes, model = _shapes(tensors, backbone), section(given.settings, "MODEL")
    head, former = section(model, "SEM_SEG_HEAD"), section(model, "MASK_FORMER")
    _check({
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES": (head.get("NUM_CLASSES"), shapes["classes"]),
        "MODEL.MASK_FORMER.NUM_OBJECT_QUERIES": (former.get("NUM_OBJECT_QUERIES"), shapes["queries"]),
        "MODEL.MASK_FORMER.NHEADS": (former.get("NHEADS"), shapes["heads"]),
        "MODEL.MASK_FORMER.HIDDEN_DIM": (former.get("HIDDEN_DIM"), shapes["width"]),
        "MODEL.MASK_FORMER.PRE_NORM": (former.get("PRE_NORM"), False),
        "MODEL.SEM_SEG_HEAD.NORM": (head.get("NORM"), "GN"),
        "INPUT.FORMAT": (section(given.settings, "INPUT").get("FORMAT"), "RGB"),
    })  # fmt: skip
    _check_colours(model)
    fields = _purpose(shapes, given, _test_set(given.settings))
    size = fields.pop("size")
    test = section(section(model, "MASK_FORMER"), "TEST")
    if test:
        fields["tasks"] = tuple(name for name, switch in SWITCHES.items() if test.get(switch) is True)
    elif fields["tasks"] is None:
        raise ValueError(_unsaid(given.settings))
    for name, key in (("object_threshold", "OBJECT_MASK_THRESHOLD"), ("overlap_threshold", "OVERLAP_THRESHOLD")):
        if key in test:
            fields[name] = number(test, key, positive=False)
    detections = integer(section(given.settings, "TEST"), "DETECTIONS_PER_IMAGE")
    images = section(given.settings, "INPUT")
    shortest, longest = (integer(images, f"{side}_SIZE_TEST") for side in ("MIN", "MAX"))
    if shortest and longest:
        size = (shortest, longest)
    if size is None:
        raise ValueError(_unsaid(given.settings))
    if fields["dataset"] is None:
        given.say("the classes are of no data set that is known here: they are numbered, and all taken for things")
    return {
        **shapes,
        **fields,
        **({"detections": detections} if detections else {}),
        "preprocessing": _preprocessing(size),
    }


def _transformers_swin(tensors: Tensors, given: Given) -> Fields:
    official = _official_shapes(tensors)
    return _transformers(official, given, _swin(official, given, section(given.settings, "backbone_config")))


def _transformers_resnet(tensors: Tensors, given: Given) -> Fields:
    settings = section(given.settings, "backbone_config")
    require(settings, RESNET)
    stride_first = _stride_first(settings, "downsample_in_bottleneck", given)
    backbone = resnet.TRANSFORMERS.config(tensors, ENCODERS[0], stride_first=stride_first)
    depths = integers(settings, "depths")
    if depths not in (None, tuple(backbone["depths"])):
        raise ValueError(f"config.json is of another model: it says depths {depths}, not {backbone['depths']}")
    return _transformers(_official_shapes(tensors), given, backbone)


RESNET = {
    "layer_type": ("bottleneck",),
    "hidden_act": ("relu",),
    "downsample_in_first_stage": (False,),
    "downsample_in_bottleneck": (False, True),
    "num_channels": (3,),
}
"""What changes a ResNet's results in transformers' settings: the values that the one here has."""


def _transformers(tensors: Tensors, given: Given, backbone: Fields) -> Fields:
    shapes, settings = _shapes(tensors, backbone), given.settings
    if settings.get("model_type") not in (None, "mask2former"):
        raise ValueError(f"config.json must be of a mask2former, got {json.dumps(settings['model_type'])}")
    require(settings, {"pre_norm": (False,), "activation_function": ("relu",), "common_stride": (4,)})
    said = {"queries": "num_queries", "width": "hidden_dim", "heads": "num_attention_heads"}
    for name, key in said.items():
        if settings.get(key) not in (None, shapes[name]):
            raise ValueError(f"config.json is of another model: it says {key} {settings[key]}, not {shapes[name]}")
    labels = transformers_labels(settings)
    if labels is not None and len(labels.names) != shapes["classes"]:
        raise ValueError(
            f"config.json names {len(labels.names)} classes, but the checkpoint tells {shapes['classes']} apart"
        )
    fields = _purpose(shapes, given, None if labels is None else same_segments(labels))
    if fields["dataset"] is None and labels is not None:
        fields["labels"] = {"names": labels.names, "colors": labels.colors}
    if fields["tasks"] is None:
        fields["tasks"] = ALL
        given.say(
            "nothing says what it was trained for: panoptic, instances and segmentation are all offered, and "
            + ("every class" if fields["dataset"] is None else "what the data set counts")
            + " is taken for a thing"
        )
    size = fields.pop("size")
    if size is None:
        size = PUBLISHED["coco_panoptic"].size
        given.say(
            f"nothing says how large images are seen: {size[0]} and at most {size[1]} pixels are taken for it"
        )
    return {**shapes, **fields, "preprocessing": _preprocessing(size)}


def _purpose(shapes: Mapping[str, Any], given: Given, dataset: str | None) -> Fields:
    """The data set, and what was published for it: tasks and sizes of images, or None where that is not known."""
    dataset = given.dataset or dataset
    if dataset is None:
        return {"dataset": None, "tasks": None, "size": None}
    segment_labels(dataset, shapes["classes"])
    size, tasks, object_threshold = PUBLISHED[dataset]
    backbone = shapes["backbone"]
    is_swin, is_large = "window" in backbone, backbone["width"] == LARGE
    if dataset == "ade20k" and is_swin and backbone["width"] < 128:
        size = (512, 2048)
    if dataset in ("ade20k", "cityscapes", "mapillary_vistas") and shapes["queries"] == 100:
        # For panoptic maps Swin-L was published with 200 queries; smaller Swins, of Cityscapes alone, and ResNets
        # with 100, as for label maps. ResNets see ADE20K's images smaller for label maps than for others.
        tasks = ("segmentation",) if is_large or (is_swin and dataset == "ade20k") else None
        size = None if dataset == "ade20k" and not is_swin else size
    return {"dataset": dataset, "tasks": tasks, "size": size, "object_threshold": object_threshold}


def _test_set(settings: Settings) -> str | None:
    """The data set that detectron2's settings test on, if it is known here."""
    sets = section(settings, "DATASETS").get("TEST")
    names = [sets] if isinstance(sets, str) else list(sets) if isinstance(sets, list | tuple) else []
    longest_first = sorted(REGISTERED, key=len, reverse=True)
    return next(
        (REGISTERED[each] for name in names[:1] for each in longest_first if str(name).startswith(each)), None
    )


def _check_colours(model: Settings) -> None:
    """Raises ValueError if detectron2's settings ask for other colour statistics than ImageNet's."""
    for name, values in (("PIXEL_MEAN", IMAGENET_MEAN), ("PIXEL_STD", IMAGENET_STD)):
        said = colour_statistics(model, name)
        if said is not None and not np.allclose(said, [255 * value for value in values], atol=0.01):
            raise ValueError(f"the settings ask for MODEL.{name} {said}, which no model here has: only ImageNet's")


def _check(shown: Mapping[str, tuple[object, object]]) -> None:
    """Raises ValueError if what detectron2's settings say, None for nothing, is not what the tensors show."""
    for name, (said, got) in shown.items():
        if said not in (None, got):
            raise ValueError(f"the settings are of another model: they say {name} {said}, the checkpoint has {got}")


def _unsaid(settings: Settings) -> str:
    """What is said where nothing says what a checkpoint is for."""
    if settings.get("_BASE_"):
        return (
            f"the settings build on {settings['_BASE_']}, which is not read: name the resolved config.yaml that "
            "detectron2 writes beside its checkpoints, with --config"
        )
    return (
        "no tensor shows whether a Mask2Former is for panoptic maps, instances or label maps, and of which data "
        f"set: name its resolved YAML with --config, or the data set with --dataset ({', '.join(DATASETS)})"
    )


def _preprocessing(size: tuple[int, int]) -> Fields:
    return {"size": size[0], "longest": size[1], "mean": IMAGENET_MEAN, "std": IMAGENET_STD}


TRAINING = {r"criterion\..*": "weights of the loss, for training"}

FAMILIES = (
    Family(
        name="mask2former",
        model="mask2former",
        fits=lambda tensors, settings: (
            {f"{PREDICTOR}class_embed.weight", f"backbone.{swin.BLOCK}attn.qkv.weight"} <= tensors.keys()
        ),
        configure=_official_swin,
        table=(*OFFICIAL_SWIN, *OFFICIAL_HEAD),
        ignored={**swin.BUFFERS, **TRAINING},
        settings_files=("config.yaml",),
    ),
    Family(
        name="mask2former",
        model="mask2former",
        fits=lambda tensors, settings: (
            f"{PREDICTOR}class_embed.weight" in tensors and resnet.DETECTRON2.is_in(tensors, "backbone.")
        ),
        configure=_official_resnet,
        table=(*resnet.DETECTRON2.rows("backbone."), *OFFICIAL_HEAD),
        ignored={**resnet.COUNTS, **TRAINING},
        settings_files=("config.yaml",),
    ),
    Family(
        name="mask2former-transformers",
        model="mask2former",
        fits=lambda tensors, settings: (
            {"class_predictor.weight", f"{ENCODERS[0]}hidden_states_norms.stage1.weight"} <= tensors.keys()
        ),
        configure=_transformers_swin,
        table=(*_swin_rows(), *TRANSFORMERS_HEAD),
        ignored={
            rf"{re.escape(PIXEL_LEVEL)}encoder\.(swin\.)?layernorm\..*": "norm of the last map, which nothing uses",
            r".*relative_position_index": "follows from the window's side",
            **TRAINING,
        },
        settings_files=("config.json",),
    ),
    Family(
        name="mask2former-transformers",
        model="mask2former",
        fits=lambda tensors, settings: (
            "class_predictor.weight" in tensors and resnet.TRANSFORMERS.is_in(tensors, ENCODERS[0])
        ),
        configure=_transformers_resnet,
        table=(*resnet.TRANSFORMERS.rows(ENCODERS[0]), *TRANSFORMERS_HEAD),
        ignored={**resnet.COUNTS, **TRAINING},
        settings_files=("config.json",),
    ),
)
