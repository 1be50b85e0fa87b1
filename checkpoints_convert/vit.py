"""Vision transformers in the namings that their checkpoints use: as rows for every system, and as encoders."""

import re
from dataclasses import dataclass

from checkpoints_convert.rules import (
    Family,
    Row,
    Settings,
    Tensors,
    concatenated,
    linear,
    patch_kernel,
    row,
    same,
    shape_of,
    special_tokens,
    square_grid,
    square_side,
)
from hourglass_jax.backbones.vit import heads_of

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Names:
    """What a naming calls the parts of a ViT; a block's name holds "*" for its number.

    "weight" and "bias" are added to the names of `qkv`, ".weight" and ".bias" to the others; `qkv` in several parts
    is one below the other; "a|b" and "?" are as in `rules.Row`.
    """

    patches: str
    positions: str
    special: tuple[str, ...]
    norm1: str
    qkv: tuple[str, ...]
    projection: str
    norm2: str
    expand: str
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
                row(f"{target}special_tokens", (self.positions, *self.special), special_tokens),
                row(f"{target}position_embedding", self.positions, square_grid),
            )
        return rows

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
            row(f"{block}mlp.expand.kernel", _leaf(self.expand, "weight"), linear),
            row(f"{block}mlp.expand.bias", _leaf(self.expand, "bias"), same),
            row(f"{block}mlp.contract.kernel", _leaf(self.contract, "weight"), linear),
            row(f"{block}mlp.contract.bias", _leaf(self.contract, "bias"), same),
        )
        if self.scales:
            rows += tuple(row(f"{block}scale{i}", name, same) for i, name in enumerate(self.scales, start=1))
        return rows

    def config(self, tensors: Tensors, *, heads: int | None = None) -> dict[str, object]:
        """The fields of a `ViTConfig` that show in the tensors' shapes.

        Args:
            tensors: the checkpoint.
            heads: their number if it is known; otherwise it follows from the width.
        """
        width, _, patch_size, _ = shape_of(tensors, f"{self.patches}.weight", axes=4)
        heads = heads or heads_of(width)
        hidden = shape_of(tensors, self._present(self.contract, tensors), axes=2)[1]
        expanded = shape_of(tensors, self._present(self.expand, tensors), axes=2)[0]
        side = square_side(shape_of(tensors, self.positions, axes=3)[1])
        tokens = [name.removesuffix("?") for each in self.special for name in each.removesuffix("?").split("|")]
        number = re.compile(re.escape(f"{self.norm1}.weight").replace(r"\*", r"\d+"))
        return {
            "patch_size": patch_size,
            "width": width,
            "depth": sum(number.fullmatch(name) is not None for name in tensors),
            "heads": heads,
            "mlp_ratio": hidden / width,
            "mlp": "swiglu" if expanded == 2 * hidden else "gelu",
            "special_tokens": sum(shape_of(tensors, name, axes=3)[1] for name in tokens if name in tensors),
            "position_grid": (side, side),
            "layer_scale": self.scales is not None and self.scales[0].replace("*", "0") in tensors,
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

    def configure(tensors: Tensors, settings: Settings) -> dict[str, object]:
        heads = settings.get("num_attention_heads")
        backbone = names.config(tensors, heads=heads if isinstance(heads, int) else None)
        registers = backbone["special_tokens"] > 1
        if antialias or registers:
            backbone["position_resize"] = "bicubic-antialias"
        else:
            backbone |= {"position_resize": "bicubic", "position_offset": offset}
        seen_mean, seen_std = normalisation(settings)
        preprocessing = {
            "size": backbone["position_grid"][0] * backbone["patch_size"],
            "multiple": backbone["patch_size"],
            "interpolation": "bicubic",
            "mean": seen_mean or mean,
            "std": seen_std or std,
        }
        return {"backbone": backbone, "preprocessing": preprocessing}

    return configure


def normalisation(settings: Settings) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Mean and standard deviation of timm's config.json, where it is given."""
    seen = settings.get("pretrained_cfg")
    seen = seen if isinstance(seen, dict) else {}
    return tuple(tuple(seen[name]) if isinstance(seen.get(name), list) else None for name in ("mean", "std"))


def _dynamic_vit(tensors: Tensors, settings: Settings) -> dict[str, object]:
    """A DeiT with prediction modules, whose position embedding its code resizes bilinearly."""
    config = _encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD)(tensors, settings)
    config["backbone"] |= {"position_resize": "bilinear", "predictors": PREDICTORS}
    return config


def _prediction_modules() -> tuple[Row, ...]:
    """The rows of DynamicViT's prediction modules, which the checkpoint numbers by themselves."""
    rows = []
    for number, block in enumerate(PREDICTORS):
        target, source = f"backbone.blocks.{block}.predictor.", f"score_predictor.{number}."
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
        return plain and (mean is None or (mean == IMAGENET_MEAN) == imagenet)

    return fits


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
        fits=lambda tensors, settings: {BLOCK, SCALE, "mask_token"} <= tensors.keys(),
        configure=_encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD, offset=0.1, antialias=False),
        table=TIMM.rows(),
        ignored=MASK_DROPPED,
    ),
    Family(
        name="dinov2-timm",
        model="encoder",
        fits=lambda tensors, settings: {BLOCK, SCALE} <= tensors.keys() and "mask_token" not in tensors,
        configure=_encoder(TIMM, mean=IMAGENET_MEAN, std=IMAGENET_STD),
        table=TIMM.rows(),
        ignored=HEADS_DROPPED,
        settings_file="config.json",
    ),
    *(
        Family(
            name="dinov2-transformers",
            model="encoder",
            fits=lambda tensors, settings, prefix=prefix: f"{prefix}embeddings.mask_token" in tensors,
            configure=_encoder(transformers_dinov2(prefix), mean=IMAGENET_MEAN, std=IMAGENET_STD, antialias=False),
            table=transformers_dinov2(prefix).rows(),
            ignored={**MASK_DROPPED, r"classifier\..*": HEADS_DROPPED[r"(head|head_dist|pre_logits)\..*"]},
            settings_file="config.json",
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
            settings_file="config.json",
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
