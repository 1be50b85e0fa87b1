"""Vision transformers with the tensor names of their code bases: rows for every system, and encoders."""

import re
from dataclasses import dataclass

from checkpoints_convert.published import HEADS, grid_of, heads_of
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    OfModel,
    Row,
    Settings,
    Tensors,
    concatenated,
    linear,
    patch_kernel,
    position_grid,
    row,
    same,
    shape_of,
    special_tokens,
)
from checkpoints_convert.settings import (
    Section,
    ViTSettings,
    colour_statistics,
    number,
    section,
    side_lengths,
    text,
    vit_settings,
)

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Names:
    """The names that a code base gives to the parts of a ViT; "*" is the number of a block.

    "weight" and "bias" are added to the names of `qkv`, ".weight" and ".bias" to the others; `qkv` and `expand` in
    several parts are one below the other; "a|b" and "?" are as in `rules.Row`.
    """

    patches: str
    positions: str
    special: tuple[str, ...]
    norm1: str
    qkv: tuple[str, ...]
    projection: str
    norm2: str
    expand: str | tuple[str, ...]
    contract: str
    norm: str
    scales: tuple[str, str] | None = None

    def rows(self, target: str = "backbone.", *, embeddings: bool = True) -> tuple[Row, ...]:
        """The rows of a ViT at `target`; without `embeddings`, none for its special tokens and positions."""
        rows = (
            row(f"{target}patch_embedding.projection.kernel", f"{self.patches}.weight", patch_kernel),
            row(f"{target}patch_embedding.projection.bias", f"{self.patches}.bias", same),
            *self.blocks(target),
            row(f"{target}norm.scale", f"{self.norm}.weight", same),
            row(f"{target}norm.bias", f"{self.norm}.bias", same),
        )
        if embeddings:
            rows += (
                row(f"{target}special_tokens", (self.positions, *self.special), OfModel(special_tokens)),
                row(f"{target}position_embedding", self.positions, OfModel(position_grid)),
            )
        return rows

    @property
    def expansion(self) -> tuple[str, ...]:
        """The parts of `expand`."""
        return (self.expand,) if isinstance(self.expand, str) else self.expand

    def blocks(self, target: str) -> tuple[Row, ...]:
        """The rows of the blocks at `target` alone."""
        block = f"{target}blocks.*."
        rows = (
            row(f"{block}norm1.scale", f"{self.norm1}.weight", same),
            row(f"{block}norm1.bias", f"{self.norm1}.bias", same),
            row(f"{block}attention.qkv.kernel", tuple(f"{name}weight" for name in self.qkv), linear),
            row(f"{block}attention.qkv.bias", tuple(f"{name}bias" for name in self.qkv), concatenated),
            row(f"{block}attention.projection.kernel", f"{self.projection}.weight", linear),
            row(f"{block}attention.projection.bias", f"{self.projection}.bias", same),
            row(f"{block}norm2.scale", f"{self.norm2}.weight", same),
            row(f"{block}norm2.bias", f"{self.norm2}.bias", same),
            row(f"{block}mlp.expand.kernel", tuple(_leaf(part, "weight") for part in self.expansion), linear),
            row(f"{block}mlp.expand.bias", tuple(_leaf(part, "bias") for part in self.expansion), concatenated),
            row(f"{block}mlp.contract.kernel", _leaf(self.contract, "weight"), linear),
            row(f"{block}mlp.contract.bias", _leaf(self.contract, "bias"), same),
        )
        if self.scales:
            rows += tuple(row(f"{block}scale{i}", name, same) for i, name in enumerate(self.scales, start=1))
        return rows

    def config(self, tensors: Tensors, given: Given, *sections: Section, stride: int = 1) -> Fields:
        """The fields of a `ViTConfig`: what shows in the tensors' shapes, and what settings or the user say.

        Args:
            tensors: the checkpoint.
            given: what is known besides.
            sections: of its settings, those that describe the ViT.
            stride: pixels on a side of what stands for a pixel, where a stem comes before the patches.

        Raises:
            ValueError: a setting is of another model or none that is here, or something shows nowhere.
        """
        said = vit_settings(*sections)
        shape = self.shape(tensors, said, stride=stride)
        width, depth, patch_size = (shape[name] for name in ("width", "depth", "patch_size"))
        tokens = [
            sum(shape_of(tensors, name, axes=3)[1] for name in each.removesuffix("?").split("|") if name in tensors)
            for each in self.special
        ]
        if said.size is None and given.grid is None and (width, depth) not in HEADS:
            given.say("the position grid is taken as square: no settings say what it is, nor does --grid")
        own = sum(
            count for name, count in zip(self.special, tokens, strict=True) if "reg" not in name.split(".")[-1]
        )
        grid = grid_of(
            shape_of(tensors, self.positions, axes=3)[1],
            tuple(dict.fromkeys((own, 0, sum(tokens)) if said.size or given.grid else (own, 0))),
            patch_size,
            given,
            said.size,
        )
        return {
            **shape,
            "heads": heads_of(width, depth, patch_size, given, said.heads),
            "special_tokens": sum(tokens),
            "position_grid": grid,
        }

    def shape(self, tensors: Tensors, said: ViTSettings, *, stride: int = 1) -> Fields:
        """The fields of a `ViTConfig` that show in the tensors' shapes or in settings, without heads and tokens.

        Raises:
            ValueError: the settings are of another model, or something shows nowhere.
        """
        width, _, patch_size, columns = shape_of(tensors, f"{self.patches}.weight", axes=4)
        if patch_size != columns:
            raise ValueError(f"patches must be square, got {patch_size} x {columns} pixels")
        patch_size *= stride
        hidden = shape_of(tensors, self._present(self.contract, tensors), axes=2)[1]
        parts = (self._present(part, tensors) for part in self.expansion)
        expanded = sum(shape_of(tensors, part, axes=2)[0] for part in parts)
        number = re.compile(re.escape(f"{self.norm1}.weight").replace(r"\*", r"\d+"))
        depth = sum(number.fullmatch(name) is not None for name in tensors)
        shown = {"width": width, "depth": depth, "patch_size": patch_size}
        for name, (what, value) in said.shown.items():
            if value != shown[what]:
                raise ValueError(
                    f"the settings are of another model: they say {name} {value}, the checkpoint has {shown[what]}"
                )
        return {
            **shown,
            "mlp_ratio": hidden / width,
            "mlp": "swiglu" if expanded == 2 * hidden else "gelu",
            "layer_scale": self.scales is not None and self.scales[0].replace("*", "0") in tensors,
            **({"norm_epsilon": said.epsilon} if said.epsilon else {}),
        }

    @staticmethod
    def _present(name: str, tensors: Tensors) -> str:
        alternatives = [each.replace("*", "0") for each in _leaf(name, "weight").split("|")]
        return next((each for each in alternatives if each in tensors), alternatives[0])


def _leaf(name: str, leaf: str) -> str:
    return "|".join(f"{each}.{leaf}" for each in name.split("|"))


def timm(prefix: str = "") -> Names:
    """timm's names, which DeiT, DINOv2 and Segmenter share.

    Source: huggingface/pytorch-image-models, timm/models/vision_transformer.py; facebookresearch/dinov2,
        dinov2/models/vision_transformer.py (`register_tokens`, and `w12` and `w3` of SwiGLU).
    """
    block = f"{prefix}blocks.*."
    return Names(
        patches=f"{prefix}patch_embed.proj",
        positions=f"{prefix}pos_embed",
        special=(f"{prefix}cls_token", f"{prefix}dist_token?", f"{prefix}reg_token|{prefix}register_tokens?"),
        norm1=f"{block}norm1",
        qkv=(f"{block}attn.qkv.",),
        projection=f"{block}attn.proj",
        norm2=f"{block}norm2",
        expand=f"{block}mlp.fc1|{block}mlp.w12",
        contract=f"{block}mlp.fc2|{block}mlp.w3",
        norm=f"{prefix}norm",
        scales=(f"{block}ls1.gamma", f"{block}ls2.gamma"),
    )


def mmsegmentation(prefix: str = "backbone.") -> Names:
    """mmsegmentation's names.

    Source: Expedit-Segmenter, mmseg/models/backbones/vit.py and tools/prepocess_ckpt.py.
    """
    block = f"{prefix}layers.*."
    return Names(
        patches=f"{prefix}patch_embed.projection",
        positions=f"{prefix}pos_embed",
        special=(f"{prefix}cls_token",),
        norm1=f"{block}ln1",
        qkv=(f"{block}attn.attn.in_proj_",),
        projection=f"{block}attn.attn.out_proj",
        norm2=f"{block}ln2",
        expand=f"{block}ffn.layers.0.0",
        contract=f"{block}ffn.layers.1",
        norm=f"{prefix}ln1",
    )


def transformers_dinov2(prefix: str = "") -> Names:
    """Hugging Face's DINOv2 names, with and without registers.

    Source: huggingface/transformers, src/transformers/models/dinov2/modeling_dinov2.py.
    """
    layer = f"{prefix}encoder.layer.*."
    return Names(
        patches=f"{prefix}embeddings.patch_embeddings.projection",
        positions=f"{prefix}embeddings.position_embeddings",
        special=(f"{prefix}embeddings.cls_token", f"{prefix}embeddings.register_tokens?"),
        norm1=f"{layer}norm1",
        qkv=tuple(f"{layer}attention.attention.{part}." for part in ("query", "key", "value")),
        projection=f"{layer}attention.output.dense",
        norm2=f"{layer}norm2",
        expand=f"{layer}mlp.fc1|{layer}mlp.weights_in",
        contract=f"{layer}mlp.fc2|{layer}mlp.weights_out",
        norm=f"{prefix}layernorm",
        scales=(f"{layer}layer_scale1.lambda1", f"{layer}layer_scale2.lambda1"),
    )


def transformers_dpt(prefix: str = "dpt.", *, hybrid: bool = False) -> Names:
    """The names of Hugging Face's DPT.

    Source: huggingface/transformers, src/transformers/models/dpt/modeling_dpt.py.
    """
    layer = f"{prefix}encoder.layer.*."
    return Names(
        patches=f"{prefix}embeddings.{'' if hybrid else 'patch_embeddings.'}projection",
        positions=f"{prefix}embeddings.position_embeddings",
        special=(f"{prefix}embeddings.cls_token",),
        norm1=f"{layer}layernorm_before",
        qkv=tuple(f"{layer}attention.attention.{part}." for part in ("query", "key", "value")),
        projection=f"{layer}attention.output.dense",
        norm2=f"{layer}layernorm_after",
        expand=f"{layer}intermediate.dense",
        contract=f"{layer}output.dense",
        norm=f"{prefix}layernorm",
    )


def _encoder(
    names: Names, *, mean: tuple[float, ...], std: tuple[float, ...], offset: float = 0.0, antialias: bool = True
):
    """How to configure an encoder from tensors with these names.

    DINOv2's first release resizes its position embedding with an offset and without antialiasing, transformers'
    without both, until registers came; timm with antialiasing.
    """

    def configure(tensors: Tensors, given: Given) -> Fields:
        backbone = names.config(tensors, given, *vit_sections(given.settings))
        registers = backbone["special_tokens"] > 1
        if antialias or registers:
            backbone["position_resize"] = "bicubic-antialias"
        else:
            backbone |= {"position_resize": "bicubic", "position_offset": offset}
        backbone |= resizing(given.settings)
        seen_mean, seen_std = normalisation(given.settings)
        rows, columns = (length * backbone["patch_size"] for length in backbone["position_grid"])
        preprocessing = {
            "size": rows if rows == columns else (rows, columns),
            "multiple": backbone["patch_size"],
            "resize": "longest" if rows == columns else "square",
            "interpolation": interpolation(given.settings) or "bicubic",
            "mean": seen_mean or mean,
            "std": seen_std or std,
        }
        return {"backbone": backbone, "preprocessing": preprocessing}

    return configure


def resizing(settings: Settings) -> Fields:
    """How settings say that a position embedding is resized, in mmsegmentation's words or DINOv2's.

    Raises:
        ValueError: a value is of another kind.
    """
    mode, antialias = text(settings, "interpolate_mode"), settings.get("interpolate_antialias")
    offset = number(settings, "interpolate_offset", positive=False)
    if mode not in (None, "bilinear", "bicubic"):
        raise ValueError(f"interpolate_mode in the settings must be bilinear or bicubic, got {mode!r:.60}")
    if not isinstance(antialias, bool | None):
        raise ValueError(f"interpolate_antialias in the settings must be true or false, got {antialias!r:.60}")
    found: Fields = {} if offset is None else {"position_offset": offset}
    if antialias is not None:
        found["position_resize"] = "bicubic-antialias" if antialias else "bicubic"
    return found | ({} if mode is None else {"position_resize": mode})


MODEL_ARGUMENTS = frozenset((
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("mlp_ratio", "qkv_bias", "qk_norm", "proj_bias", "init_values", "class_token", "pos_embed", "no_embed_class"),
    *("reg_tokens", "pre_norm", "final_norm", "fc_norm", "dynamic_img_size", "dynamic_img_pad", "drop_rate"),
    *("pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate", "drop_path_rate", "weight_init"),
    *("fix_init", "embed_layer", "norm_layer", "act_layer", "block_fn", "mlp_layer", "embed_norm_layer"),
    *("scale_attn_norm", "scale_mlp_norm", "strict_img_size", "distilled", "pretrained", "no_pre_logits"),
))  # fmt: skip
"""Arguments of timm's ViTs whose meaning is known here: shown by tensors, checked, or of training only."""


def vit_sections(settings: Settings) -> tuple[Section, ...]:
    """The sections of settings that describe a ViT: timm's arguments, if there are any, and the settings.

    timm's settings say the size of the images of published weights, too, which counts where nothing else is said.

    Raises:
        ValueError: an argument is not known.
    """
    published = trained_size(settings)
    return model_arguments(settings, MODEL_ARGUMENTS), settings, {"img_size": published} if published else {}


def model_arguments(settings: Settings, known: frozenset[str]) -> Section:
    """The arguments that timm's settings give to the model.

    Raises:
        ValueError: an argument is not among those whose meaning is known.
    """
    arguments = section(settings, "model_args")
    unknown = sorted(str(name)[:60] for name in arguments if name not in known)
    if unknown:
        raise ValueError(f"the settings have an argument {unknown[0]!r} of timm, whose meaning is not known here")
    return arguments


def trained_size(settings: Settings) -> tuple[int, int] | None:
    """(rows, columns) of the images of training in timm's settings, in pixels, where they say it."""
    size = _pretrained(settings).get("input_size")
    if size is None:
        return None
    if not isinstance(size, list | tuple) or len(size) != 3:
        raise ValueError(f"input_size in the settings must be channels, rows and columns, got {size!r:.60}")
    return side_lengths({"input_size": list(size[1:])}, "input_size")


def normalisation(settings: Settings) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of timm's config.json, where it is given."""
    published = _pretrained(settings)
    return colour_statistics(published, "mean"), colour_statistics(published, "std")


def interpolation(settings: Settings) -> str | None:
    """The interpolation of images in timm's config.json, where it is given."""
    name = text(_pretrained(settings), "interpolation")
    if name not in ("bilinear", "bicubic", None):
        raise ValueError(f"interpolation in the settings must be bilinear or bicubic, got {name!r:.60}")
    return name


def _pretrained(settings: Settings) -> Section:
    """What timm says of published weights; older files have it among the settings themselves."""
    return section(settings, "pretrained_cfg") if "pretrained_cfg" in settings else settings


def _dynamic_vit(tensors: Tensors, given: Given) -> Fields:
    """A DeiT with prediction modules, whose position embedding its code resizes bilinearly."""
    config = _encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD)(tensors, given)
    config["backbone"] |= {"position_resize": "bilinear", "predictors": PREDICTORS}
    return config


def _prediction_modules() -> tuple[Row, ...]:
    """The rows of DynamicViT's prediction modules, which the checkpoint numbers by themselves."""
    rows = []
    for place, block in enumerate(PREDICTORS):
        target, source = f"backbone.blocks.{block}.predictor.", f"score_predictor.{place}."
        rows += [
            row(f"{target}norm.scale", f"{source}in_conv.0.weight", same),
            row(f"{target}norm.bias", f"{source}in_conv.0.bias", same),
        ]
        layers = {
            "embedding": "in_conv.1",
            "hidden1": "out_conv.0",
            "hidden2": "out_conv.2",
            "classifier": "out_conv.4",
        }
        for ours, theirs in layers.items():
            rows += [
                row(f"{target}{ours}.kernel", f"{source}{theirs}.weight", linear),
                row(f"{target}{ours}.bias", f"{source}{theirs}.bias", same),
            ]
    return tuple(rows)


def _plain(*, imagenet: bool):
    """Whether a checkpoint is a ViT without LayerScale, whose settings, if any, have ImageNet's mean or another."""

    def fits(tensors: Tensors, settings: Settings) -> bool:
        mean, _ = normalisation(settings)
        plain = BLOCK in tensors and SCALE not in tensors and PREDICTOR not in tensors
        return plain and not _rotary(tensors) and (mean is None or (mean == IMAGENET_MEAN) == imagenet)

    return fits


def _rotary(tensors: Tensors) -> bool:
    """Whether tensors are those of a DINOv3, which has no position embedding (`checkpoints_convert.dinov3`)."""
    return not ROTARY.isdisjoint(tensors)


ROTARY = frozenset((
    *("storage_tokens", "rope_embed.periods", "blocks.0.gamma_1"),
    *("layer.0.attention.q_proj.weight", "model.layer.0.attention.q_proj.weight"),
))  # fmt: skip
"""Names of tensors that mark a DINOv3: the original's, timm's (and other models of its Eva), transformers'."""
HEADS_DROPPED = {
    r"(head|head_dist|pre_logits)\..*": "classification head: an encoder ends with its features",
}
MASK_DROPPED = {r"(.*\.)?mask_token": "stands for hidden patches in training"}
TIMM = timm()
BLOCK, SCALE = "blocks.0.attn.qkv.weight", "blocks.0.ls1.gamma"
PREDICTOR = "score_predictor.0.in_conv.0.weight"
PREDICTORS = (3, 6, 9)
"""The blocks before which all of DynamicViT's checkpoints of plain ViTs have their prediction modules."""

FAMILIES = (
    Family(
        name="dinov2",
        model="encoder",
        fits=lambda tensors, settings: {BLOCK, SCALE, "mask_token"} <= tensors.keys() and not _rotary(tensors),
        configure=_encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD, offset=0.1, antialias=False),
        table=TIMM.rows(),
        ignored=MASK_DROPPED,
        settings_files=("config.yaml",),
    ),
    Family(
        name="dinov2-timm",
        model="encoder",
        fits=lambda tensors, settings: (
            {BLOCK, SCALE} <= tensors.keys() and "mask_token" not in tensors and not _rotary(tensors)
        ),
        configure=_encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        table=TIMM.rows(),
        ignored=HEADS_DROPPED,
        settings_files=("config.json",),
    ),
    *(
        Family(
            name="dinov2-transformers",
            model="encoder",
            fits=lambda tensors, settings, prefix=prefix: (
                f"{prefix}embeddings.mask_token" in tensors and not _rotary(tensors)
            ),
            configure=_encoder(transformers_dinov2(prefix), mean=IMAGENET_MEAN, std=IMAGENET_STD, antialias=False),
            table=transformers_dinov2(prefix).rows(),
            ignored={**MASK_DROPPED, r"classifier\..*": HEADS_DROPPED[r"(head|head_dist|pre_logits)\..*"]},
            settings_files=("config.json",),
        )
        for prefix in ("", "dinov2.", "dinov2_with_registers.")
    ),
    *(
        Family(
            name=name,
            model="encoder",
            fits=_plain(imagenet=mean == IMAGENET_MEAN),
            configure=_encoder(TIMM, mean=mean, std=std),
            table=TIMM.rows(),
            ignored=HEADS_DROPPED,
            settings_files=("config.json",),
        )
        for name, mean, std in (("vit-timm", HALF, HALF), ("deit-timm", IMAGENET_MEAN, IMAGENET_STD))
    ),
    Family(
        name="dynamicvit",
        model="encoder",
        fits=lambda tensors, settings: {BLOCK, PREDICTOR} <= tensors.keys(),
        configure=_dynamic_vit,
        table=(*TIMM.rows(), *_prediction_modules()),
        ignored=HEADS_DROPPED,
    ),
)
"""Encoders. Plain ViTs (AugReg: mean 0.5) and DeiTs (ImageNet's mean) differ in their preprocessing only: which one
it is, timm's config.json says, or the user."""
