"""DINOv3's vision transformers in the namings of facebookresearch, transformers and timm, as encoders.

Their positions are rotary: weights hold nothing of them but, in the original's files, the periods.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from checkpoints_convert.rules import Family, Fields, Given, OfModel, Row, Settings, Tensors, row, shape_of
from checkpoints_convert.settings import (
    Section,
    colour_statistics,
    integer,
    number,
    require,
    section,
    side_lengths,
    text,
    vit_settings,
)
from checkpoints_convert.vit import (
    HEADS_DROPPED,
    IMAGENET_MEAN,
    IMAGENET_STD,
    MASK_DROPPED,
    Names,
    interpolation,
    model_arguments,
    normalisation,
    timm,
    trained_size,
)

HEADS = {(384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 20, (4096, 40): 32}
"""Width and depth -> heads. Source: facebookresearch/dinov3, dinov3/hub/backbones.py (S, S+, B, L, L+, H+, 7B)."""
BASE, EPSILON = 100.0, 1e-5
"""Of the frequencies, and of the norms, in all that is published."""
SIZE = 512
"""Pixels on a side of an image where no settings say it: positions are relative, so any size will do."""
SATELLITE = {"mean": (0.430, 0.411, 0.296), "std": (0.213, 0.156, 0.143)}
"""Of the weights for satellite images. Source: timm/models/eva.py (`vit_large_patch16_dinov3.sat493m`)."""
LOCAL_NORM = "local_cls_norm.weight"
"""Stands in the original's files of ViT-7B and, of ViT-L's, in that for satellite images alone."""
TIMM = re.compile(r"vit_[a-z0-9_]+_patch16_dinov3(_qkvb)?")
"""Architectures of timm. Others have tensors of the same names and other positions."""
TIMM_ARGUMENTS = frozenset((
    *("img_size", "patch_size", "in_chans", "num_classes", "global_pool", "embed_dim", "depth", "num_heads"),
    *("dynamic_img_size", "dynamic_img_pad", "drop_rate", "pos_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "init_values", "pretrained"),
))  # fmt: skip
"""Their arguments whose meaning is known here: shown by tensors, checked, or of training only."""
ALLOWED = {
    "hidden_act": ("gelu", "gelu_python"),
    "num_channels": (3,),
    "use_gated_mlp": (False,),
    "proj_bias": (True,),
    "mlp_bias": (True,),
}
"""What transformers' settings may ask for, the first one being what silence means."""


class HasBackbone(Protocol):
    """The config of a model with a ViT."""

    @property
    def backbone(self) -> "HasWidth": ...


class HasWidth(Protocol):
    """The config of a ViT."""

    @property
    def width(self) -> int: ...


@dataclass(frozen=True)
class Naming:
    """What a naming calls the parts of a DINOv3.

    Attributes:
        names: of its ViT.
        registers: of the register tokens.
        biases: of queries, keys and values, in a block; or of all three, and of the mask over them.
        gate: a part of an MLP that this naming has not.
    """

    names: Names
    registers: str
    biases: tuple[str, ...]
    gate: str | None = None

    def rows(self) -> tuple[Row, ...]:
        """The rows of an encoder."""
        bias = "backbone.blocks.*.attention.qkv.bias"
        return (
            *(each for each in self.names.rows(embeddings=False) if each.target != bias),
            row(bias, tuple(f"{name}?" for name in self.biases), OfModel(_joined if self._apart else _masked)),
            row("backbone.special_tokens", (*self.names.special, f"{self.registers}?"), _tokens),
        )

    def fits(self, tensors: Tensors) -> bool:
        """Whether tensors are those of this naming, with or without a gate in the MLP."""
        norm, *parts = (name.replace("*", "0") for name in (self.names.norm1, *self.names.expansion))
        wanted = {f"{part}.weight" for part in parts} | {f"{self.names.qkv[0].replace('*', '0')}weight"}
        gate = f"{self.gate}.weight".replace("*", "0")
        return {f"{norm}.weight", self.names.special[0], *wanted} <= tensors.keys() and gate not in tensors

    def special_tokens(self, tensors: Tensors) -> int:
        """How many class and register tokens there are."""
        names = (*self.names.special, self.registers)
        return sum(shape_of(tensors, name, axes=3)[1] for name in names if name in tensors)

    def check_biases(self, tensors: Tensors, depth: int) -> None:
        """Raises ValueError unless all blocks have the biases of the first one, which must be published ones."""
        known = ((), (0, 2), (0, 1, 2)) if self._apart else ((), (0,), (0, 1))
        for block in range(depth):
            names = [name.replace("*", str(block)) for name in self.biases]
            there = tuple(place for place, name in enumerate(names) if name in tensors)
            known = known if there not in known else (there,)
            if there not in known:
                raise ValueError(
                    "the biases of queries, keys and values must be the same ones in all blocks, and no key's "
                    f"alone: expected others of {', '.join(names)}"
                )

    @property
    def _apart(self) -> bool:
        return len(self.biases) == 3


def _tokens(*tokens: np.ndarray) -> np.ndarray:
    """Class and register tokens [1, n, C] as [S, C]."""
    return np.concatenate(tokens, axis=1)[0]


def _joined(config: HasBackbone, *biases: np.ndarray) -> np.ndarray:
    """The bias of queries, keys and values: of all three, of queries and values, or none."""
    if len(biases) == 2:
        biases = biases[0], np.zeros_like(biases[0]), biases[1]
    return np.concatenate(biases) if biases else _none(config)


def _masked(config: HasBackbone, bias: np.ndarray | None = None, mask: np.ndarray | None = None) -> np.ndarray:
    """The bias of queries, keys and values without the part of the keys, which a mask takes away; or none."""
    if bias is None:
        return _none(config)
    return bias if mask is None else bias * mask


def _none(config: HasBackbone) -> np.ndarray:
    return np.zeros(3 * config.backbone.width, np.float32)


def original(*, gated: bool) -> Naming:
    """The names of the first release.

    Source: facebookresearch/dinov3, dinov3/models/vision_transformer.py, dinov3/layers/{attention,ffn_layers}.py.
    """
    mlp = "blocks.*.mlp."
    names = replace(
        timm(),
        special=("cls_token",),
        expand=(f"{mlp}w1", f"{mlp}w2") if gated else f"{mlp}fc1",
        contract=f"{mlp}w3" if gated else f"{mlp}fc2",
    )
    return Naming(names, "storage_tokens", ("blocks.*.attn.qkv.bias", "blocks.*.attn.qkv.bias_mask"))


def timm_eva(*, gated: bool) -> Naming:
    """timm's names.

    Source: huggingface/pytorch-image-models, timm/models/eva.py.
    """
    block = "blocks.*."
    names = replace(
        timm(),
        special=("cls_token",),
        expand=(f"{block}mlp.fc1_g", f"{block}mlp.fc1_x") if gated else f"{block}mlp.fc1",
        contract=f"{block}mlp.fc2",
        scales=(f"{block}gamma_1", f"{block}gamma_2"),
    )
    return Naming(names, "reg_token", tuple(f"{block}attn.{part}_bias" for part in "qkv"))


def transformers(layers: str = "layer", norm: str = "norm", *, gated: bool) -> Naming:
    """Hugging Face's names; the layers are called otherwise in newer files, and they and the last norm in an EoMT.

    Source: huggingface/transformers, src/transformers/models/dinov3_vit/modeling_dinov3_vit.py and
        eomt_dinov3/modeling_eomt_dinov3.py.
    """
    layer = f"{layers}.*."
    names = Names(
        patches="embeddings.patch_embeddings",
        positions="",
        special=("embeddings.cls_token",),
        norm1=f"{layer}norm1",
        qkv=tuple(f"{layer}attention.{part}_proj." for part in "qkv"),
        projection=f"{layer}attention.o_proj",
        norm2=f"{layer}norm2",
        expand=(f"{layer}mlp.gate_proj", f"{layer}mlp.up_proj") if gated else f"{layer}mlp.up_proj",
        contract=f"{layer}mlp.down_proj",
        norm=norm,
        scales=(f"{layer}layer_scale1.lambda1", f"{layer}layer_scale2.lambda1"),
    )
    biases = tuple(f"{layer}attention.{part}_proj.bias" for part in "qkv")
    return Naming(names, "embeddings.register_tokens", biases, None if gated else f"{layer}mlp.gate_proj")


def preprocessing(patch_size: int, given: Given, said: tuple[int, int] | None) -> Fields:
    """How images are prepared, but for the colours; `said` is their size in the settings, (rows, columns)."""
    if said is None:
        given.say(f"images of {SIZE} x {SIZE} pixels: nothing says another size, and any will do (--size)")
    rows, columns = (max(1, side // patch_size) * patch_size for side in said or (SIZE, SIZE))
    return {
        "size": rows if rows == columns else (rows, columns),
        "multiple": patch_size,
        "resize": "longest" if rows == columns else "square",
        "interpolation": "bilinear",
    }


def backbone_config(naming: Naming, tensors: Tensors, given: Given, settings: Section) -> Fields:
    """The fields of a `ViTConfig`.

    Args:
        naming: of the tensors.
        tensors: the checkpoint.
        given: what is known besides.
        settings: of its ViT.

    Raises:
        ValueError: a setting is of another model or none that is here, or something shows nowhere.
    """
    said = vit_settings(settings)
    shape = naming.names.shape(tensors, said)
    naming.check_biases(tensors, shape["depth"])
    heads = given.heads or said.heads
    base = _base(settings)
    if "rope_embed.periods" in tensors:
        shown, shown_base = _of_periods(tensors["rope_embed.periods"], shape["width"])
        if (heads or shown, base or shown_base) != (shown, shown_base):
            raise ValueError(
                f"the periods of the positions are those of {shown} heads and base {shown_base:g}: "
                f"got {heads or shown} and {base or shown_base:g}"
            )
        heads, base = shown, shown_base
    heads = heads or HEADS.get((shape["width"], shape["depth"]))
    if heads is None:
        raise ValueError(
            f"no tensor shows how many heads a DINOv3 of {shape['depth']} blocks and {shape['width']} channels "
            "has: give --heads, or with --config the settings that say num_attention_heads"
        )
    if base is None:
        given.say(f"rotary positions of base {BASE:g}, which is that of all published weights: nothing says it")
    return {
        "norm_epsilon": EPSILON,
        **shape,
        "heads": heads,
        "special_tokens": naming.special_tokens(tensors),
        "position_grid": None,
        "rotary_base": base or BASE,
    }


def _base(settings: Section) -> float | None:
    """The base of the frequencies in transformers' settings, older or newer, where they say it."""
    parameters = section(settings, "rope_parameters")
    require(parameters, {"rope_type": ("default",)})
    return number(settings, "rope_theta") or number(parameters, "rope_theta")


def _of_periods(periods: np.ndarray, width: int) -> tuple[int, float]:
    """Heads and base: the i-th of n periods is base^(i / n), and a head is 4 n channels wide."""
    count = periods.size
    values = np.asarray(periods, np.float64).reshape(-1)
    if count < 2 or width % (4 * count) or not (np.isfinite(values).all() and values[-1] > 0):
        raise ValueError(f"rope_embed.periods must be positive numbers for heads of {width} channels, got {count}")
    base = float(f"{values[-1] ** (count / (count - 1)):.3g}")
    if not np.allclose(values, base ** (np.arange(count) / count), rtol=0.01):
        raise ValueError(f"rope_embed.periods must be powers of one base, got {values[:3]} ...")
    return width // (4 * count), base


def _of_original(naming: Naming) -> Callable[[Tensors, Given], Fields]:
    def configure(tensors: Tensors, given: Given) -> Fields:
        backbone = backbone_config(naming, tensors, given, given.settings)
        colours: Mapping[str, tuple[float, ...]] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        prepared = preprocessing(backbone["patch_size"], given, vit_settings(given.settings).size)
        if LOCAL_NORM in tensors and backbone["width"] == 1024:
            colours = SATELLITE
            given.say(f"colours as of satellite images: of ViT-L's weights only theirs have a {LOCAL_NORM}")
        elif LOCAL_NORM in tensors:
            given.say("colours as of photographs (LVD-1689M): nothing shows whether these are for satellite images")
        return {"backbone": backbone, "preprocessing": {**prepared, **colours}}

    return configure


def transformers_backbone(naming: Naming, tensors: Tensors, given: Given) -> Fields:
    """The fields of a `ViTConfig` from transformers' tensors and settings.

    Raises:
        ValueError: see `backbone_config`.
    """
    gated = len(naming.names.expansion) == 2
    known = {"hidden_act": ("silu",), "use_gated_mlp": (True,)} if gated else {}
    require(given.settings, {**ALLOWED, **known})
    settings = {name: value for name, value in given.settings.items() if name != "hidden_act"}
    backbone = backbone_config(naming, tensors, given, settings)
    said, there = integer(settings, "num_register_tokens", least=0), backbone["special_tokens"] - 1
    if said not in (None, there):
        raise ValueError(
            f"the settings are another model's: they say num_register_tokens {said}, the checkpoint has {there}"
        )
    return backbone


def _of_transformers(naming: Naming) -> Callable[[Tensors, Given], Fields]:
    def configure(tensors: Tensors, given: Given) -> Fields:
        backbone = transformers_backbone(naming, tensors, given)
        colours = {
            "mean": colour_statistics(given.settings, "image_mean") or IMAGENET_MEAN,
            "std": colour_statistics(given.settings, "image_std") or IMAGENET_STD,
        }
        prepared = preprocessing(backbone["patch_size"], given, side_lengths(given.settings, "image_size"))
        return {"backbone": backbone, "preprocessing": prepared | colours}

    return configure


def _of_timm(naming: Naming) -> Callable[[Tensors, Given], Fields]:
    def configure(tensors: Tensors, given: Given) -> Fields:
        architecture = text(given.settings, "architecture")
        if architecture is None or not TIMM.fullmatch(architecture):
            raise ValueError(
                "timm's tensors do not show their positions: beside the checkpoint, or with --config, timm's "
                f"config.json must name the architecture of a DINOv3, got {(architecture or 'none')[:60]}"
            )
        size = trained_size(given.settings)
        arguments = model_arguments(given.settings, TIMM_ARGUMENTS)
        settings = {**({"img_size": list(size)} if size else {}), **arguments}
        backbone = backbone_config(naming, tensors, given, settings)
        mean, std = normalisation(given.settings)
        prepared = preprocessing(backbone["patch_size"], given, vit_settings(settings).size) | {
            "mean": mean or IMAGENET_MEAN,
            "std": std or IMAGENET_STD,
            "interpolation": interpolation(given.settings) or "bicubic",
        }
        return {"backbone": backbone, "preprocessing": prepared}

    return configure


def _fits(naming: Naming, *needed: str) -> Callable[[Tensors, Settings], bool]:
    return lambda tensors, settings: naming.fits(tensors) and not {*needed}.isdisjoint(tensors)


PERIODS = {r"rope_embed\.periods": "periods of the positions: the config has their base"}

FAMILIES = (
    *(
        Family(
            name="dinov3",
            model="encoder",
            fits=_fits(naming, "storage_tokens", "rope_embed.periods"),
            configure=_of_original(naming),
            table=naming.rows(),
            ignored={**MASK_DROPPED, **PERIODS, r"local_cls_norm\..*": "a norm of training alone"},
        )
        for naming in (original(gated=False), original(gated=True))
    ),
    *(
        Family(
            name="dinov3-transformers",
            model="encoder",
            fits=_fits(naming, "embeddings.patch_embeddings.weight"),
            configure=_of_transformers(naming),
            table=naming.rows(),
            ignored={**MASK_DROPPED},
            settings_files=("config.json",),
            further_settings="preprocessor_config.json",
        )
        for layers in ("layer", "model.layer")
        for naming in (transformers(layers, gated=False), transformers(layers, gated=True))
    ),
    *(
        Family(
            name="dinov3-timm",
            model="encoder",
            fits=_fits(naming, "blocks.0.gamma_1"),
            configure=_of_timm(naming),
            table=naming.rows(),
            ignored=HEADS_DROPPED,
            settings_files=("config.json",),
        )
        for naming in (timm_eva(gated=False), timm_eva(gated=True))
    ),
)
