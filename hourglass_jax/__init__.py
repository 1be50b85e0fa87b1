"""Trained vision transformers for dense prediction, faster, with the same weights and no training."""

from importlib import import_module
from typing import TYPE_CHECKING

from hourglass_jax.start import prepare_jax

if TYPE_CHECKING:
    from hourglass_jax.automatic_predictor import AutomaticPredictor as AutomaticPredictor
    from hourglass_jax.hub import from_state_dict as from_state_dict
    from hourglass_jax.hub import load as load
    from hourglass_jax.hub import save as save
    from hourglass_jax.models.registry import register_model as register_model
    from hourglass_jax.ops.clustering import auto_temperature as auto_temperature
    from hourglass_jax.ops.clustering import cluster_tokens as cluster_tokens
    from hourglass_jax.ops.pooling import pool_tokens as pool_tokens
    from hourglass_jax.ops.pooling import upsample_tokens as upsample_tokens
    from hourglass_jax.ops.reconstruction import reconstruct_tokens as reconstruct_tokens
    from hourglass_jax.ops.reconstruction import unpool_tokens as unpool_tokens
    from hourglass_jax.ops.targets import attention_form as attention_form
    from hourglass_jax.plans.act import ACT as ACT
    from hourglass_jax.plans.base import Plan as Plan
    from hourglass_jax.plans.base import TokenReduction as TokenReduction
    from hourglass_jax.plans.base import Tokens as Tokens
    from hourglass_jax.plans.dynamic_vit import DynamicViT as DynamicViT
    from hourglass_jax.plans.evit import EViT as EViT
    from hourglass_jax.plans.expedite import expedite as expedite
    from hourglass_jax.plans.files import load_plan as load_plan
    from hourglass_jax.plans.files import save_plan as save_plan
    from hourglass_jax.plans.hourglass import Hourglass as Hourglass
    from hourglass_jax.plans.pooling import Downsampling as Downsampling
    from hourglass_jax.plans.pooling import Pooling as Pooling
    from hourglass_jax.plans.presets import PRESETS as PRESETS
    from hourglass_jax.plans.presets import preset as preset
    from hourglass_jax.plans.registry import register_plan as register_plan
    from hourglass_jax.plans.staged_merging import StagedMerging as StagedMerging
    from hourglass_jax.plans.token_merging import TokenMerging as TokenMerging
    from hourglass_jax.predictor import Predictor as Predictor
    from hourglass_jax.prompt_predictor import PromptPredictor as PromptPredictor

prepare_jax()

_PUBLIC = {
    "auto_temperature": "ops.clustering",
    "cluster_tokens": "ops.clustering",
    "reconstruct_tokens": "ops.reconstruction",
    "unpool_tokens": "ops.reconstruction",
    "pool_tokens": "ops.pooling",
    "upsample_tokens": "ops.pooling",
    "attention_form": "ops.targets",
    "Plan": "plans.base",
    "TokenReduction": "plans.base",
    "Tokens": "plans.base",
    "Hourglass": "plans.hourglass",
    "TokenMerging": "plans.token_merging",
    "StagedMerging": "plans.staged_merging",
    "EViT": "plans.evit",
    "DynamicViT": "plans.dynamic_vit",
    "ACT": "plans.act",
    "Pooling": "plans.pooling",
    "Downsampling": "plans.pooling",
    "expedite": "plans.expedite",
    "load_plan": "plans.files",
    "save_plan": "plans.files",
    "PRESETS": "plans.presets",
    "preset": "plans.presets",
    "register_plan": "plans.registry",
    "Predictor": "predictor",
    "from_state_dict": "hub",
    "PromptPredictor": "prompt_predictor",
    "AutomaticPredictor": "automatic_predictor",
    "load": "hub",
    "register_model": "models.registry",
    "save": "hub",
}
"""Public name -> the module that it is imported from when it is first asked for."""

__all__ = [
    "ACT",
    "PRESETS",
    "AutomaticPredictor",
    "Downsampling",
    "DynamicViT",
    "EViT",
    "Hourglass",
    "Plan",
    "Pooling",
    "Predictor",
    "PromptPredictor",
    "StagedMerging",
    "TokenMerging",
    "TokenReduction",
    "Tokens",
    "attention_form",
    "auto_temperature",
    "cluster_tokens",
    "expedite",
    "from_state_dict",
    "load",
    "load_plan",
    "pool_tokens",
    "preset",
    "reconstruct_tokens",
    "register_model",
    "register_plan",
    "save",
    "save_plan",
    "unpool_tokens",
    "upsample_tokens",
]
__version__: str


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for, so that `import hourglass_jax` itself is immediate."""
    if name == "__version__":
        value: object = import_module("importlib.metadata").version("hourglass-jax")
    elif name in _PUBLIC:
        value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
