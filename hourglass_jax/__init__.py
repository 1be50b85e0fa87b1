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
    "Hourglass": "hourglass",
    "Tokens": "tokens",
    "TokenReduction": "tokens",
    "TokenMerging": "reductions",
    "StagedMerging": "reductions",
    "EViT": "reductions",
    "DynamicViT": "reductions",
    "ACT": "reductions",
    "Pooling": "reductions",
    "Downsampling": "reductions",
    "expedite": "hourglass",
    "load_plan": "plans",
    "save_plan": "plans",
    "PRESETS": "presets",
    "preset": "presets",
    "Predictor": "inference.predictor",
    "load": "models.registry",
    "save": "models.registry",
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
