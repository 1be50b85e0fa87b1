"""All ViTs and Swins of timm by their shapes alone: a config is timm's own, or the conversion refuses.

The models are built on the meta device, which holds no weights; those of one shape are compared once.
"""

import re
from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from checkpoints_convert import swin, vit
from checkpoints_convert.rules import Family, Given, find_unused, recipes
from hourglass_jax.backbones.swin import EPSILON
from hourglass_jax.models.registry import abstract_model, flat_parameters

timm = pytest.importorskip("timm")

MODULES = {"vision_transformer": vit, "deit": vit, "swin_transformer": swin, "swin_transformer_v2": swin}
"""timm's modules, and ours that read their checkpoints."""
ACCEPTED = {
    *("vit_tiny_patch16_224", "vit_small_patch16_384", "vit_base_patch8_224", "vit_base_patch16_224"),
    *("vit_large_patch16_384", "vit_large_patch32_384", "vit_huge_patch14_224", "vit_giant_patch14_224"),
    *("vit_gigantic_patch14_224", "vit_small_patch14_dinov2", "vit_giant_patch14_reg4_dinov2", "test_vit"),
    *("deit_tiny_patch16_224", "deit_base_distilled_patch16_384", "deit3_large_patch16_224"),
    *("swin_tiny_patch4_window7_224", "swin_large_patch4_window12_384"),
}
"""Models that are converted without settings."""
WITH_SETTINGS = ACCEPTED | {"swinv2_base_window16_256", "swinv2_large_window12to24_192to384"}


def built(module: str) -> Iterator[tuple[str, torch.nn.Module]]:
    """The models of one of timm's modules, the first one of every shape and kind."""
    seen = set()
    for name in timm.list_models(module=module):
        with torch.device("meta"):
            skipped = {} if module.startswith("swin") else {"weight_init": "skip"}
            model = timm.create_model(name, pretrained=False, **skipped)
        shape = (
            tuple((name, tuple(each.shape)) for name, each in model.state_dict().items()),
            str(facts(model)),
            model.pretrained_cfg["mean"],
        )
        if shape not in seen:
            seen.add(shape)
            yield name, model


def facts(model: torch.nn.Module) -> dict[str, object]:
    """What timm's model computes with, where no tensor need show it, under the names of our configs."""
    if hasattr(model, "layers"):
        attentions = [stage.blocks[0].attn for stage in model.layers]
        units = [getattr(each, "pretrained_window_size", None) or each.window_size for each in attentions]
        windows = [each.window_size for each in attentions]
        pretrained = [unit if any(unit) else window for unit, window in zip(units, windows, strict=True)]
        return {
            "heads": tuple(each.num_heads for each in attentions),
            "window": windows[0],
            "pretrained_windows": tuple(pretrained),
            "epsilon": eps(model.norm),
            "activation": activation(model.layers[0].blocks[0]),
        }
    return {
        "heads": {getattr(getattr(block, "attn", None), "num_heads", None) for block in model.blocks},
        "position_grid": model.patch_embed.grid_size,
        "epsilon": {eps(model.norm), eps(getattr(model.blocks[0], "norm1", None))},
        "activation": activation(model.blocks[0]),
        "scale": {getattr(getattr(block, "attn", None), "scale", None) for block in model.blocks},
    }


def eps(norm: torch.nn.Module | None) -> float | None:
    return norm.eps if isinstance(norm, torch.nn.LayerNorm) else None


def activation(block: torch.nn.Module) -> str:
    act = getattr(getattr(block, "mlp", None), "act", None)
    return f"{type(act).__name__} {getattr(act, 'approximate', 'none')}"


def our_facts(config: Mapping[str, object]) -> dict[str, object]:
    """The same of a config."""
    backbone = config["backbone"]
    if "depths" in backbone:
        heads = backbone["width"] // backbone["head_width"]
        return {
            "heads": tuple(heads * 2**stage for stage in range(len(backbone["depths"]))),
            "window": (backbone["window"],) * 2,
            "pretrained_windows": tuple((each, each) for each in backbone["pretrained_windows"]),
            "epsilon": EPSILON,
            "activation": "GELU none",
        }
    return {
        "heads": {backbone["heads"]},
        "position_grid": tuple(backbone["position_grid"]),
        "epsilon": {backbone.get("norm_epsilon", 1e-6)},
        "activation": "SiLU none" if backbone["mlp"] == "swiglu" else "GELU none",
        "scale": {(backbone["width"] // backbone["heads"]) ** -0.5},
    }


def settings_of(model: torch.nn.Module) -> dict[str, object]:
    """timm's config.json."""
    known = {name: model.pretrained_cfg[name] for name in ("input_size", "mean", "std", "interpolation")}
    known = {name: list(value) if isinstance(value, tuple) else value for name, value in known.items()}
    return {"architecture": model.pretrained_cfg["architecture"], "pretrained_cfg": known}


def configs(tensors: Mapping[str, np.ndarray], settings: Mapping[str, object]) -> Iterator[tuple[Family, dict]]:
    """Of every family of encoders that takes these tensors, the config."""
    for family in (*vit.FAMILIES, *swin.FAMILIES):
        if family.fits(tensors, settings):
            try:
                yield family, family.configure(tensors, Given(settings))
            except ValueError:
                continue


def is_complete(family: Family, tensors: Mapping[str, np.ndarray], config: Mapping[str, object]) -> bool:
    """Whether the conversion finds a place for every tensor and a tensor for every parameter, in two blocks."""
    if "depth" in config["backbone"]:
        config = {**config, "backbone": {**config["backbone"], "depth": 2}}
        tensors = {name: each for name, each in tensors.items() if not re.match(r"blocks\.(?:[2-9]|\d\d)", name)}
    try:
        model = abstract_model(family.model, config)
        find_unused(family, tensors, recipes(family, tensors, flat_parameters(model), model.config))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize("module", MODULES)
def test_a_config_is_timms_own_or_the_conversion_refuses(module: str) -> None:
    wrong, accepted = [], {True: set(), False: set()}
    for name, model in built(module):
        tensors = {
            each: np.broadcast_to(np.float32(0), tuple(tensor.shape)) for each, tensor in model.state_dict().items()
        }
        for has_settings in (True, False):
            for family, config in configs(tensors, settings_of(model) if has_settings else {}):
                expected, found = facts(model), our_facts(config)
                if found == expected:
                    accepted[has_settings].add(name)
                elif is_complete(family, tensors, config):
                    wrong.append(f"{name} as {family.name}: {found}, but timm has {expected}")
                preprocessing = config["preprocessing"]
                if has_settings and (preprocessing["mean"], preprocessing["std"]) != (
                    tuple(model.pretrained_cfg["mean"]),
                    tuple(model.pretrained_cfg["std"]),
                ):
                    wrong.append(f"{name}: normalised with {preprocessing['mean']} and {preprocessing['std']}")
    assert not wrong, "\n".join(wrong)
    names = set(timm.list_models(module=module))
    assert accepted[False] >= ACCEPTED & names
    assert accepted[True] >= WITH_SETTINGS & names
