"""Settings of other projects in timm's words: for each of their keys, what becomes of it.

A key is taken over under timm's name, or must have one of the values that the models here have, or has no effect
on results (training, or what tensors show). In the sections that describe a model there is no fourth kind: a key
that is not listed is refused by name.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from reprlib import repr as short

from checkpoints_convert.settings import (
    RESIZING,
    Section,
    colour_statistics,
    integer,
    integers,
    number,
    require,
    section,
    text,
)

Values = Mapping[str, tuple[object, ...]]


@dataclass(frozen=True)
class Keys:
    """The keys of one section.

    Attributes:
        taken: theirs -> timm's.
        allowed: theirs -> the values that the models here have, the first one being what silence means.
        ignored: those without an effect on results.
    """

    taken: Mapping[str, str] = field(default_factory=dict)
    allowed: Values = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def read(self, said: Section, where: str) -> dict[str, object]:
        """What a section says, in timm's words.

        Raises:
            ValueError: a key is not known, or asks for something that no model here has.
        """
        known = {*self.taken, *self.allowed, *self.ignored}
        unknown = sorted(str(name)[:60] for name in said if name not in known)
        if unknown:
            raise ValueError(f"the settings have {where}.{unknown[0]}, whose meaning is not known here")
        require(said, {name: values for name, values in self.allowed.items() if name in said})
        return {ours: said[theirs] for theirs, ours in self.taken.items() if said.get(theirs) is not None}


_SWIN = Keys(
    taken={
        "PATCH_SIZE": "patch_size",
        "IN_CHANS": "in_chans",
        "EMBED_DIM": "embed_dim",
        "DEPTHS": "depths",
        "NUM_HEADS": "num_heads",
        "WINDOW_SIZE": "window_size",
        "QKV_BIAS": "qkv_bias",
    },
    allowed={"APE": (False,), "QK_SCALE": (None,), "PATCH_NORM": (True,)},
    ignored=("MLP_RATIO",),
)
MICROSOFT = {
    "swin": ("SWIN", _SWIN),
    "swinv2": ("SWINV2", Keys({**_SWIN.taken, "PRETRAINED_WINDOW_SIZES": "pretrained_window_sizes"},
                              _SWIN.allowed, _SWIN.ignored)),
}  # fmt: skip
"""MODEL.TYPE -> the section of the model, and its keys."""

DETECTRON2_SWIN = Keys(
    _SWIN.taken,
    _SWIN.allowed,
    (
        *("MLP_RATIO", "PRETRAIN_IMG_SIZE", "DROP_RATE", "ATTN_DROP_RATE", "DROP_PATH_RATE", "OUT_FEATURES"),
        *("USE_CHECKPOINT", "FROZEN_STAGES"),
    ),
)
"""MODEL.SWIN of Mask2Former in detectron2."""

DINOV2 = Keys(
    taken={
        "patch_size": "patch_size",
        "qkv_bias": "qkv_bias",
        "proj_bias": "proj_bias",
        "interpolate_antialias": "interpolate_antialias",
        "interpolate_offset": "interpolate_offset",
    },
    allowed={"ffn_bias": (True,)},
    ignored=(
        *("arch", "drop_path_rate", "layerscale", "drop_path_uniform", "pretrained_weights", "ffn_layer"),
        *("block_chunks", "num_register_tokens"),
    ),
)
ARCHITECTURES = {
    "vit_small": (384, 12, 6),
    "vit_base": (768, 12, 12),
    "vit_large": (1024, 24, 16),
    "vit_giant2": (1536, 40, 24),
}
"""student.arch of DINOv2 -> width, depth and heads."""

_MM_TRAINING = (
    *("type", "mlp_ratio", "drop_rate", "attn_drop_rate", "drop_path_rate", "norm_eval", "with_cp", "pretrained"),
    *("init_cfg", "use_checkpoint", "frozen_stages", "convert_weights", "norm_cfg", "act_cfg", "out_indices"),
)
MM_BACKBONES = {
    "VisionTransformer": Keys(
        taken={
            "img_size": "img_size",
            "patch_size": "patch_size",
            "in_channels": "in_chans",
            "embed_dims": "embed_dim",
            "num_layers": "depth",
            "num_heads": "num_heads",
            "qkv_bias": "qkv_bias",
            "interpolate_mode": "interpolate_mode",
        },
        allowed={
            "with_cls_token": (True,),
            "final_norm": (True,),
            "patch_norm": (False,),
            "pre_norm": (False,),
            "num_fcs": (2,),
            "resize_shape": (None,),
        },
        ignored=(*_MM_TRAINING, "output_cls_token", "frozen_exclude"),
    ),
    "SwinTransformer": Keys(
        taken={
            "patch_size": "patch_size",
            "in_channels": "in_chans",
            "in_chans": "in_chans",
            "embed_dims": "embed_dim",
            "embed_dim": "embed_dim",
            "depths": "depths",
            "num_heads": "num_heads",
            "window_size": "window_size",
            "qkv_bias": "qkv_bias",
        },
        allowed={
            "qk_scale": (None,),
            "patch_norm": (True,),
            "use_abs_pos_embed": (False,),
            "ape": (False,),
            "strides": ((4, 2, 2, 2), [4, 2, 2, 2]),
        },
        ignored=(*_MM_TRAINING, "pretrain_img_size"),
    ),
}
"""model.backbone.type of an mm config -> its keys."""
MM_SILENCE = {"img_size": 224, "num_heads": 12, "interpolate_mode": "bicubic", "norm_eps": 1e-5}
"""What a VisionTransformer is where its config does not say it."""


def in_timms_words(settings: Section) -> Section:
    """Settings in timm's words.

    Args:
        settings: of any project. Those of Microsoft's Swin, DINOv2, mmsegmentation and mmdetection are translated,
            all others are left as they are.

    Raises:
        ValueError: they ask for something that no model here has, or build on others that were not read.
    """
    for holds, translate in _DIALECTS:
        if holds(settings):
            arguments, published, others = translate(settings)
            others |= {name: arguments.pop(name) for name in (*RESIZING, "norm_eps") if name in arguments}
            return {"model_args": arguments, "pretrained_cfg": published, **others}
    return settings


_Translation = tuple[dict[str, object], dict[str, object], dict[str, object]]
"""Arguments of the model, what is known of published weights, and the rest."""


def _microsoft(settings: Section) -> _Translation:
    """Source: microsoft/Swin-Transformer, config.py and models/build.py."""
    bases = settings.get("BASE")
    if bases not in (None, "", [""], []):
        raise ValueError(f"the settings build on {short(bases)}, which is not read: name whole ones with --config")
    model, data = section(settings, "MODEL"), section(settings, "DATA")
    kind = text(model, "TYPE") or "swin"
    if kind not in MICROSOFT:
        raise ValueError(
            f"the settings ask for MODEL.TYPE {kind!r:.60}, which no model here has: only swin or swinv2"
        )
    name, keys = MICROSOFT[kind]
    arguments = keys.read(section(model, name), f"MODEL.{name}")
    if data.get("IMG_SIZE") is not None:
        arguments["img_size"] = data["IMG_SIZE"]
    published = {} if data.get("INTERPOLATION") is None else {"interpolation": data["INTERPOLATION"]}
    return arguments, published, {}


def _dinov2(settings: Section) -> _Translation:
    """Source: facebookresearch/dinov2, dinov2/configs/ssl_default_config.yaml and dinov2/models/__init__.py."""
    student, crops = section(settings, "student"), section(settings, "crops")
    arguments = DINOV2.read(student, "student")
    name = (text(student, "arch") or "").removesuffix("_memeff")
    if name and name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise ValueError(f"student.arch in the settings must be one of {known}, got {name!r:.60}")
    if name:
        shape = zip(("embed_dim", "depth", "num_heads"), ARCHITECTURES[name], strict=True)
        arguments |= dict(shape)
    if crops.get("global_crops_size") is not None:
        arguments["img_size"] = crops["global_crops_size"]
    return arguments, {}, {}


def _mm(settings: Section) -> _Translation:
    """Source: open-mmlab/mmsegmentation, mmseg/models/backbones/{vit,swin}.py and configs; Expedit-Segmenter."""
    model = section(settings, "model")
    backbone = section(model, "backbone")
    kind = text(backbone, "type")
    if kind not in MM_BACKBONES:
        raise ValueError(
            f"the settings ask for a backbone of type {short(kind)}, which no model here has: only "
            f"{' or '.join(MM_BACKBONES)}"
        )
    arguments = MM_BACKBONES[kind].read(backbone, "model.backbone")
    norm, activation = section(backbone, "norm_cfg"), section(backbone, "act_cfg")
    require({f"norm_cfg.{name}": value for name, value in norm.items()}, {"norm_cfg.type": ("LN",)})
    require({f"act_cfg.{name}": value for name, value in activation.items()}, {"act_cfg.type": ("GELU",)})
    if norm.get("eps") is not None:
        arguments["norm_eps"] = number(norm, "eps")
    if kind == "VisionTransformer":
        arguments = {**MM_SILENCE, **arguments}
        _check_last_block(backbone)
    published: dict[str, object] = {}
    colours = section(model, "data_preprocessor") or section(settings, "data_preprocessor")
    norms = section(settings, "img_norm_cfg")
    for where, order, silence in ((colours, "bgr_to_rgb", False), (norms, "to_rgb", True)):
        said = {name: colour_statistics(where, name) for name in ("mean", "std")}
        if not published and said["mean"] and said["std"]:
            require({order: where.get(order, silence)}, {order: (True,)})
            published = {name: [each / 255 for each in values or ()] for name, values in said.items()}
    return arguments, published, {"test_cfg": section(model, "test_cfg"), "decode_head": _head(model)}


def _check_last_block(backbone: Section) -> None:
    """Raises ValueError unless the last block's tokens are the ones that are used."""
    said, depth = backbone.get("out_indices"), integer(backbone, "num_layers")
    last = (
        said if said is None or type(said) is int else (integers(backbone, "out_indices", least=-1) or (None,))[-1]
    )
    if last not in (None, -1) and depth is not None and last != depth - 1:
        raise ValueError(
            f"the settings ask for out_indices {short(said)}, and not for the last block alone, {depth - 1}"
        )


def _head(model: Section) -> Section:
    heads = model.get("decode_head")
    return heads if isinstance(heads, Mapping) else {}


_DIALECTS: tuple[tuple[Callable[[Section], bool], Callable[[Section], _Translation]], ...] = (
    (lambda settings: isinstance(settings.get("model"), Mapping) and "backbone" in section(settings, "model"), _mm),
    (lambda settings: isinstance(settings.get("student"), Mapping), _dinov2),
    (
        lambda settings: isinstance(settings.get("MODEL"), Mapping) and "TYPE" in section(settings, "MODEL"),
        _microsoft,
    ),
)
"""Whether settings are a project's, and what they are in timm's words."""
