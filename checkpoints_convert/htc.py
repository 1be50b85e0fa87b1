"""Hybrid Task Cascade and Cascade Mask R-CNN of mmdetection 2 and 3, and of repositories that build on it.

Source: open-mmlab/mmdetection 2.28 and 3.3; SwinTransformer/Swin-Transformer-Object-Detection; czczup/ViT-Adapter,
    detection.
"""

from collections.abc import Callable, Mapping
from reprlib import repr as short

import numpy as np

from checkpoints_convert import swin
from checkpoints_convert.labels import labels_in
from checkpoints_convert.python_config import Unread, parse_python
from checkpoints_convert.resnet import COUNTS, TORCHVISION, folded_bias, folded_kernel
from checkpoints_convert.rules import (
    Build,
    Family,
    Fields,
    Given,
    Row,
    Tensors,
    convolution,
    linear,
    pointwise,
    row,
    same,
    shape_of,
    transposed_convolution,
)
from checkpoints_convert.settings import integer, integers, number
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.models.htc import STAGE_STDS, STRIDES
from hourglass_jax.models.htc_heads import BOX_BINS

COCO = "coco_instance"
HEAD, MASKS = "roi_head.bbox_head.", "roi_head.mask_head."
CLASSIFIER, REGRESSOR = f"{HEAD}0.fc_cls.weight", f"{HEAD}0.fc_reg.weight"
CONVOLUTION = f"{HEAD}0.shared_convs.0.conv.weight"
RESIDUAL = f"{MASKS}1.conv_res.conv.weight"
SEMANTIC = "roi_head.semantic_head.conv_embedding.conv.weight"
ATTENTION = "neck.0.attn.qkv.weight"
HEAD_WIDTH = 32
"""Channels of a head of the global attention, as ViT-Adapter has it."""


def _folded_kernel(weight: np.ndarray, *norm: np.ndarray) -> np.ndarray:
    """The kernel of a convolution and of the batch norm after it, if there is one."""
    return folded_kernel(weight, *norm) if norm else convolution(weight)


def _folded_bias(first: np.ndarray, *rest: np.ndarray) -> np.ndarray:
    """The bias of a convolution: its own, or that of the batch norm after it."""
    return folded_bias(first, *rest) if rest else first


def _flattened(weight: np.ndarray) -> np.ndarray:
    """The first linear layer of a box head, whose inputs are channels first in the checkpoint."""
    return weight.reshape(len(weight), -1, BOX_BINS, BOX_BINS).transpose(2, 3, 1, 0).reshape(-1, len(weight))


def _affine(target: str, source: str, build: Build = linear) -> tuple[Row, Row]:
    """The rows of a layer; `source` may name alternatives, "a|b"."""
    return (
        row(f"{target}.kernel", "|".join(f"{each}.weight" for each in source.split("|")), build),
        row(f"{target}.bias", "|".join(f"{each}.bias" for each in source.split("|")), same),
    )


def _norm(target: str, source: str) -> tuple[Row, Row]:
    return row(f"{target}.scale", f"{source}.weight", same), row(f"{target}.bias", f"{source}.bias", same)


def _heads() -> tuple[Row, ...]:
    """The rows of all that comes after the backbone."""
    attention, box, mask, semantic = "pyramid.attention", f"{HEAD}*.", f"{MASKS}*.", "roi_head.semantic_head."
    conv, norm = f"{box}shared_convs.*.conv", f"{box}shared_convs.*.bn"
    return (
        *_norm(f"{attention}.block.norm1", "neck.0.norm1"),
        *_affine(f"{attention}.block.attention.qkv", "neck.0.attn.qkv"),
        *_affine(f"{attention}.block.attention.projection", "neck.0.attn.proj"),
        *_norm(f"{attention}.block.norm2", "neck.0.norm2"),
        *_affine(f"{attention}.block.mlp.expand", "neck.0.ffn.fc1"),
        *_affine(f"{attention}.block.mlp.contract", "neck.0.ffn.fc2"),
        *_norm(f"{attention}.norm", "neck.0.final_norm"),
        *_affine("pyramid.laterals.*", "neck.lateral_convs.*.conv|neck.1.lateral_convs.*.conv", pointwise),
        *_affine("pyramid.outputs.*", "neck.fpn_convs.*.conv|neck.1.fpn_convs.*.conv", convolution),
        *_affine("proposal_head.convolution", "rpn_head.rpn_conv", convolution),
        *_affine("proposal_head.classifier", "rpn_head.rpn_cls", pointwise),
        *_affine("proposal_head.regressor", "rpn_head.rpn_reg", pointwise),
        row(
            "box_heads.*.convolutions.*.kernel",
            (f"{conv}.weight", f"{norm}.weight?", f"{norm}.running_var?"),
            _folded_kernel,
        ),
        row(
            "box_heads.*.convolutions.*.bias",
            (f"{norm}.weight?", f"{norm}.bias|{conv}.bias", f"{norm}.running_mean?", f"{norm}.running_var?"),
            _folded_bias,
        ),
        *_affine("box_heads.*.linear.0", f"{box}shared_fcs.0", _flattened),
        *_affine("box_heads.*.linear.*", f"{box}shared_fcs.*"),
        *_affine("box_heads.*.classifier", f"{box}fc_cls"),
        *_affine("box_heads.*.regressor", f"{box}fc_reg"),
        *_affine("mask_heads.*.residual", f"{mask}conv_res.conv", pointwise),
        *_affine("mask_heads.*.convolutions.*", f"{mask}convs.*.conv", convolution),
        *_affine("mask_heads.*.doubling", f"{mask}upsample", transposed_convolution),
        *_affine("mask_heads.*.classifier", f"{mask}conv_logits", pointwise),
        *_affine("semantic_branch.laterals.*", f"{semantic}lateral_convs.*.conv", pointwise),
        *_affine("semantic_branch.convolutions.*", f"{semantic}convs.*.conv", convolution),
        *_affine("semantic_branch.embedding", f"{semantic}conv_embedding.conv", pointwise),
    )


TEST, RPN = ("test_cfg", "rcnn"), ("test_cfg", "rpn")
REQUIRED: dict[tuple[str | int, ...], object] = {
    ("rpn_head", "anchor_generator", "scales"): (8,),
    ("rpn_head", "anchor_generator", "ratios"): (0.5, 1.0, 2.0),
    ("rpn_head", "anchor_generator", "strides"): STRIDES,
    ("rpn_head", "anchor_generator", "center_offset"): 0,
    ("rpn_head", "bbox_coder", "target_stds"): (1.0, 1.0, 1.0, 1.0),
    ("roi_head", "bbox_roi_extractor", "roi_layer", "sampling_ratio"): 0,
    ("roi_head", "bbox_roi_extractor", "featmap_strides"): STRIDES[:-1],
    ("roi_head", "bbox_roi_extractor", "finest_scale"): 56,
    ("roi_head", "mask_roi_extractor", "roi_layer", "sampling_ratio"): 0,
    **{
        ("roi_head", "bbox_head", stage, "bbox_coder", "target_stds"): stds for stage, stds in enumerate(STAGE_STDS)
    },
    (*TEST, "mask_thr_binary"): 0.5,
}
"""What changes a detector's results and no tensor shows: the values that the one here has."""

DEEPEST = 60
"""Containers inside one another: no setting that is asked for lies deeper."""


def _settings(given: Given) -> Mapping[str, object]:
    """The settings that the checkpoint holds as the text of a Python file; none where it has no such text."""
    meta = given.saved.get("meta")
    text = next((at(meta, name) for name in ("config", "cfg") if isinstance(at(meta, name), str)), None)
    if not isinstance(text, str):
        return {}
    try:
        return plain_settings(text)
    except ValueError as error:
        given.say(f"the settings in meta are passed over: {error}")
        return {}


def plain_settings(text: str) -> Mapping[str, object]:
    """The plain values of a config in Python, without what only running it would tell; lists are tuples.

    Raises:
        ValueError: see `parse_python`.
    """
    plain = _plain(parse_python(text.encode()))
    assert isinstance(plain, dict)
    return plain


def _plain(value: object, depth: int = 0) -> object:
    if depth > DEEPEST:
        return Unread()
    if isinstance(value, dict):
        parts = {name: _plain(part, depth + 1) for name, part in value.items() if isinstance(name, str)}
        return {name: part for name, part in parts.items() if not isinstance(part, Unread)}
    if isinstance(value, list | tuple):
        parts = tuple(_plain(part, depth + 1) for part in value)
        return Unread() if any(isinstance(part, Unread) for part in parts) else parts
    return value


def at(settings: object, *path: str | int) -> object:
    """What stands at a path of names and numbers, or None."""
    for step in path:
        if isinstance(settings, Mapping):
            settings = settings.get(step)
        elif isinstance(settings, tuple) and isinstance(step, int):
            settings = settings[step] if step < len(settings) else None
        else:
            return None
    return settings


def configure(tensors: Tensors, given: Given) -> Fields:
    """The fields of an `HTCConfig`: what shows in the tensors' shapes, and what the settings in meta say.

    Raises:
        ValueError: something shows nowhere, or settings are of another model or none that is here.
    """
    settings = _settings(given)
    model = at(settings, "model")
    classes = shape_of(tensors, CLASSIFIER, axes=2)[0] - 1
    fields: Fields = {
        "backbone": _backbone(tensors, given, at(model, "backbone")),
        "classes": classes,
        "width": shape_of(tensors, "rpn_head.rpn_conv.weight", axes=4)[0],
        "hidden": shape_of(tensors, CLASSIFIER, axes=2)[1],
        "box_head": "4conv1fc" if CONVOLUTION in tensors else "2fc",
        "class_agnostic": shape_of(tensors, REGRESSOR, axes=2)[0] == 4,
        "mask_flow": RESIDUAL in tensors,
        "semantic": SEMANTIC in tensors,
        "attention_heads": _attention_heads(tensors, given, model),
    }
    _check(model, at(settings, "test_cfg"))
    return {**fields, **_published(fields, given, model), **_said(settings, model), **_classes(classes, given)}


def _backbone(tensors: Tensors, given: Given, said: object) -> Fields:
    if TORCHVISION.is_in(tensors, "backbone."):
        return TORCHVISION.config(tensors, "backbone.", stride_first=at(said, "style") == "caffe")
    arguments = {}
    for name in ("window_size", "pretrained_window_sizes", "depths", "num_heads", "embed_dim", "embed_dims"):
        value = at(said, name)
        if value is not None:
            arguments[name.replace("dims", "dim")] = list(value) if isinstance(value, tuple) else value
    return swin.config(tensors, Given({"model_args": arguments}, notes=given.notes), "backbone.")


def _attention_heads(tensors: Tensors, given: Given, model: object) -> int | None:
    if ATTENTION not in tensors:
        return None
    said = at(model, "neck", 0, "num_head")
    if said is not None:
        return integer({"num_head": said}, "num_head")
    heads = max(1, shape_of(tensors, ATTENTION, axes=2)[1] // HEAD_WIDTH)
    given.say(
        f"no settings say how many heads the global attention has: {heads} of {HEAD_WIDTH} channels are taken"
    )
    return heads


def _published(fields: Fields, given: Given, model: object) -> Fields:
    """What the systems of these parts were published with."""
    is_cascade = not fields["mask_flow"] and not fields["semantic"]
    is_soft = not is_cascade and fields["box_head"] == "4conv1fc"
    found = {
        "score_threshold": 0.05 if is_cascade else 0.001,
        "suppression": {"method": "linear" if is_soft else "hard"},
        "preprocessing": {"size": 1400, "longest": 1600} if is_soft else {"size": 800, "longest": 1333},
    }
    if not isinstance(model, Mapping):
        name = "Cascade Mask R-CNN" if is_cascade else "HTC with 4conv1fc heads" if is_soft else "HTC"
        size, longest = found["preprocessing"].values()
        given.say(
            f"the checkpoint holds no settings: those of {name} are taken, images of up to {longest} x {size} "
            f"pixels, scores above {found['score_threshold']}, {'soft' if is_soft else 'hard'} suppression at 0.5"
        )
    return found


def _said(settings: Mapping[str, object], model: object) -> Fields:
    """The fields that settings give."""
    found: Fields = {}
    test = at(model, *TEST) or at(settings, *TEST)
    proposals = at(model, *RPN) or at(settings, *RPN)
    if isinstance(test, Mapping):
        threshold, detections = number(test, "score_thr", positive=False), integer(test, "max_per_img")
        found |= {} if threshold is None else {"score_threshold": threshold}
        found |= {"detections": detections} if detections else {}
        if isinstance(test.get("nms"), Mapping):
            found["suppression"] = _suppression(test["nms"])
    if isinstance(proposals, Mapping):
        kept = integer(proposals, "max_per_img") or integer(proposals, "max_num") or integer(proposals, "nms_post")
        best = integer(proposals, "nms_pre")
        overlap = at(proposals, "nms", "iou_threshold") or proposals.get("nms_thr")
        threshold = number({"iou_threshold": overlap}, "iou_threshold")
        found |= {"proposals": kept} if kept else {}
        found |= {"candidates": best} if best else {}
        found |= {"proposal_threshold": threshold} if threshold else {}
    preprocessing = _preprocessing(settings, model)
    return {**found, "preprocessing": preprocessing} if preprocessing else found


def _suppression(rule: Mapping[str, object]) -> Fields:
    kind = {"nms": "hard", "soft_nms": rule.get("method", "linear")}.get(str(rule.get("type", "nms")))
    if kind not in ("hard", "linear", "gaussian"):
        raise ValueError(f"the settings ask for the suppression {short(dict(rule))}, which is not known here")
    names = {"iou_threshold": "threshold", "iou_thr": "threshold", "min_score": "least", "sigma": "sigma"}
    values = {ours: number(rule, name, positive=False) for name, ours in names.items() if name in rule}
    return {"method": kind, **values}


def _preprocessing(settings: Mapping[str, object], model: object) -> Fields:
    """Size and normalisation of images in tests, where settings say both; nothing where they say neither."""
    places = (
        ("data", "test", "pipeline"),
        ("test_dataloader", "dataset", "pipeline"),
        ("test_pipeline",),
    )
    pipeline = next((steps for place in places if isinstance(steps := at(settings, *place), tuple)), ())
    found: Fields = {}
    for step in pipeline:
        scale = at(step, "img_scale") or (at(step, "scale") if at(step, "type") == "Resize" else None)
        if isinstance(scale, tuple) and len(scale) == 1:
            [scale] = scale
        if scale is not None:
            sides = integers({"img_scale": scale}, "img_scale", least=1) or ()
            if len(sides) != 2:
                raise ValueError(f"img_scale of the test in the settings must be two sides, got {short(scale)}")
            found |= {"size": min(sides), "longest": max(sides)}
    norm = at(model, "data_preprocessor") or settings.get("img_norm_cfg") or {}
    if at(norm, "to_rgb") is False or at(norm, "bgr_to_rgb") is False:
        raise ValueError("the settings ask for images of blue, green and red, which no model here takes")
    for name in ("mean", "std"):
        values = at(norm, name)
        if isinstance(values, tuple) and len(values) == 3:
            found[name] = [round((number({name: each}, name, positive=False) or 0.0) / 255, 9) for each in values]
    return found if "size" in found else {}


def _check(model: object, test: object) -> None:
    """Raises ValueError where settings ask for what no detector here does."""
    for path, value in REQUIRED.items():
        said = at(model, *path)
        if said is None and path[0] == "test_cfg":
            said = at(test, *path[1:])
        if said is not None and said != value:
            name = ".".join(map(str, path))
            raise ValueError(f"the settings ask for {name} {short(said)}, which no model here has: only {value}")


def _classes(classes: int, given: Given) -> Fields:
    """The data set and the names of the classes."""
    if given.dataset is not None:
        segment_labels(given.dataset, classes)
        return {"dataset": given.dataset}
    labels = labels_in(given.saved)
    if labels is None:
        if classes == len(segment_labels(COCO, None).names):
            given.say(f"{classes} classes without names: they are taken for COCO's")
            return {"dataset": COCO}
        given.say(f"{classes} classes without names: the checkpoint has none, and they are numbered")
        return {}
    if len(labels.names) != classes:
        raise ValueError(f"the checkpoint names {len(labels.names)} classes, but tells {classes} apart")
    if _comparable(labels) == _comparable(segment_labels(COCO, None)):
        return {"dataset": COCO}
    return {"labels": {"names": labels.names, "colors": labels.colors}}


def _comparable(labels: Labels) -> list[str]:
    return [name.strip().casefold().replace("_", " ") for name in labels.names]


def _fits(block: str) -> Callable[[Tensors, Mapping[str, object]], bool]:
    return lambda tensors, settings: {CLASSIFIER, f"{MASKS}0.conv_logits.weight", block} <= tensors.keys()


OWN_NAMES = (
    ("backbone.layers.", "backbone.stages."),
    (".attn.", ".attn.w_msa."),
    (".mlp.fc1.", ".ffn.layers.0.0."),
    (".mlp.fc2.", ".ffn.layers.1."),
    ("backbone.patch_embed.proj.", "backbone.patch_embed.projection."),
)
"""What Microsoft calls parts of a Swin, and what mmdetection's own code does."""
CHUNKS = (0, 2, 1, 3)
"""Which of Microsoft's four chunks of channels every fourth channel of mmdetection's merged patches is."""


def _official_names(tensors: Tensors) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in tensors.items():
        for official, own in OWN_NAMES:
            name = name.replace(own, official) if name.startswith("backbone.") else name
        found[name] = tensor
    return found


def _chunked(tensor: np.ndarray) -> np.ndarray:
    """A norm's parameters [4 C] or a reduction's weight [2 C, 4 C] with the channels in chunks."""
    apart = tensor.reshape(*tensor.shape[:-1], -1, len(CHUNKS))
    return apart.swapaxes(-1, -2)[..., list(CHUNKS), :].reshape(tensor.shape)


def _own_rows() -> tuple[Row, ...]:
    """The rows of a Swin with mmdetection's own names."""
    found = []
    for each in SWIN:
        sources = []
        for source in each.sources:
            for official, own in OWN_NAMES:
                source = source.replace(official, own)
            sources.append(source)
        build = each.build
        if ".merging." in each.target:
            build = (lambda weight: linear(_chunked(weight))) if build is linear else _chunked
        found.append(row(each.target, tuple(sources), build))
    return tuple(found)


SWIN = swin.rows("backbone.", merging_stage=0, norms={stage: f"norm{stage}" for stage in range(swin.STAGES)})
IGNORED = {
    r"backbone\..*\.relative_position_index": "follows from the window's side",
    r"roi_head\.semantic_head\.conv_logits\..*": "logits of the semantic branch, which nothing uses",
    **COUNTS,
}
FAMILIES = (
    Family(
        name="htc",
        model="htc",
        fits=_fits(f"backbone.{swin.BLOCK}attn.qkv.weight"),
        configure=configure,
        table=(*SWIN, *_heads()),
        ignored={**swin.BUFFERS, **IGNORED},
    ),
    Family(
        name="htc-mmdet",
        model="htc",
        fits=_fits("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"),
        configure=lambda tensors, given: configure(_official_names(tensors), given),
        table=(*_own_rows(), *_heads()),
        ignored=IGNORED,
    ),
    Family(
        name="htc-resnet",
        model="htc",
        fits=_fits("backbone.layer1.0.conv3.weight"),
        configure=configure,
        table=(*TORCHVISION.rows("backbone."), *_heads()),
        ignored=IGNORED,
    ),
)
"""Both systems with mmdetection's names of the heads; the Swin has Microsoft's names or mmdetection's own."""
