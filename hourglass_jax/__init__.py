"""Trained vision transformers for dense prediction, faster, with the same weights and no training."""

from importlib import import_module

from hourglass_jax.start import prepare_jax

prepare_jax()

_PUBLIC = {
    "auto_temperature": "ops.clustering",
    "cluster_tokens": "ops.clustering",
    "reconstruct_tokens": "ops.reconstruction",
    "unpool_tokens": "ops.reconstruction",
    "pool_tokens": "ops.pooling",
    "upsample_tokens": "ops.pooling",
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
    "Predictor": "predictor",
    "load": "hub",
    "save": "hub",
}

__all__ = sorted(_PUBLIC)


def __getattr__(name: str) -> object:
    """Imports a public name when it is first asked for, so that `import hourglass_jax` itself is immediate."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
