"""Models as single files: safetensors whose metadata says which model they hold and how it is configured."""

import dataclasses
import json
import typing
from collections.abc import Mapping
from importlib import import_module
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

FORMAT = "hourglass_jax"

MODELS = {
    "saliency": ("hourglass_jax.models.saliency", "Saliency", "SaliencyConfig"),
    "segmenter": ("hourglass_jax.models.segmenter", "Segmenter", "SegmenterConfig"),
    "swag": ("hourglass_jax.models.swag", "Swag", "SwagConfig"),
    "dpt-depth": ("hourglass_jax.models.dpt", "DPTDepth", "DPTDepthConfig"),
    "dpt-segmentation": ("hourglass_jax.models.dpt", "DPTSegmentation", "DPTSegmentationConfig"),
    "mask2former": ("hourglass_jax.models.mask2former", "Mask2Former", "Mask2FormerConfig"),
    "encoder": ("hourglass_jax.models.encoder", "Encoder", "EncoderConfig"),
}
"""Model name in the metadata -> module, class and config class."""


def header(model: nnx.Module) -> dict[str, str]:
    """What a model's file says of it.

    Raises:
        ValueError: the model is of none of the classes of `MODELS`.
    """
    names = {class_name: name for name, (_, class_name, _) in MODELS.items()}
    if type(model).__name__ not in names:
        raise ValueError(f"expected a model of {', '.join(names)}, got {type(model).__name__}")
    config = json.dumps(dataclasses.asdict(model.config))
    return {"format": FORMAT, "model": names[type(model).__name__], "config": config}


def abstract_model(name: str, config: Mapping[str, object], *, dtype: jnp.dtype = jnp.float32) -> nnx.Module:
    """The model `name` with shapes in place of parameters; `fill` gives it its weights.

    Raises:
        ValueError: the config has fields that this version does not know, or values that it does not accept.
    """
    module_name, class_name, config_name = MODELS[name]
    module = import_module(module_name)
    config = _config(getattr(module, config_name), config)
    # The initial values are never computed: one key does for all, and no stream of keys has to be traced.
    key = jax.random.key(0)
    rngs = SimpleNamespace(params=lambda: key)
    return nnx.eval_shape(lambda: getattr(module, class_name)(config, dtype=dtype, rngs=rngs))


def flat_parameters(model: nnx.Module) -> dict[str, jax.Array]:
    """Every array of a model by its dotted path, for example "backbone.blocks.0.attention.qkv.kernel".

    What a plan derived from them is left out.
    """
    state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Cache)))
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def fill(model: nnx.Module, parameters: Mapping[str, np.ndarray], source: str) -> None:
    """Gives `model` its parameters, all of them and no others; on CPU without a copy where they are aligned for it.

    Raises:
        ValueError: names or shapes differ; the message names both sides.
    """
    wanted = flat_parameters(model)
    missing, extra = sorted(wanted.keys() - parameters.keys()), sorted(parameters.keys() - wanted.keys())
    if missing or extra:
        raise ValueError(f"{source} does not fit its own config: missing {missing[:3]}, unexpected {extra[:3]}")
    for name, expected in wanted.items():
        if parameters[name].shape != expected.shape:
            raise ValueError(
                f"{source}: {name} must have shape {expected.shape}, got {tuple(parameters[name].shape)}"
            )
    state = nnx.state(model)
    leaves, structure = jax.tree_util.tree_flatten(state)
    assert len(leaves) == len(wanted)
    nnx.update(model, jax.tree_util.tree_unflatten(structure, jax.device_put([parameters[n] for n in wanted])))


def _config(cls: type, values: Mapping[str, object]) -> object:
    """A (nested) config dataclass from the plain values that JSON keeps of it."""
    types = typing.get_type_hints(cls)
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it knows {', '.join(types)}")
    nested = {}
    for name, value in values.items():
        alternatives = typing.get_args(types[name]) or (types[name],)
        configs = [each for each in alternatives if dataclasses.is_dataclass(each)]
        nested[name] = value if not configs or value is None else _config(_fitting(configs, value), value)
    return cls(**nested)


def _fitting(configs: list[type], values: Mapping[str, object]) -> type:
    """The first of these dataclasses that has all of these fields, or simply the first."""
    return next((each for each in configs if values.keys() <= each.__dataclass_fields__.keys()), configs[0])
