"""Models as single files: safetensors whose metadata says which model they hold and how it is configured."""

import dataclasses
import json
import typing
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.metadata import entry_points
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.models.base import BaseModel, Model

FORMAT = "hourglass_jax"
VERSION = 2
"""Of the format: 1 had no `KIND` in its configs."""
KIND = "kind"
"""The key under which a saved config has the name of its class, where a field may hold one of several."""

MODELS = {
    "saliency": "hourglass_jax.models.saliency:Saliency",
    "segmenter": "hourglass_jax.models.segmenter:Segmenter",
    "swag": "hourglass_jax.models.swag:Swag",
    "dpt-depth": "hourglass_jax.models.dpt:DPTDepth",
    "dpt-segmentation": "hourglass_jax.models.dpt:DPTSegmentation",
    "mask2former": "hourglass_jax.models.mask2former:Mask2Former",
    "eomt": "hourglass_jax.models.eomt:EoMT",
    "htc": "hourglass_jax.models.htc:HTC",
    "encoder": "hourglass_jax.models.encoder:Encoder",
    "sam": "hourglass_jax.models.sam:Sam",
}
"""Model name in the metadata -> where its class is, as an entry point says it."""
ENTRY_POINTS = "hourglass_jax.models"
"""The group of entry points by which other packages offer models: name -> module:Class."""

_registered: dict[str, type[BaseModel]] = {}


def register_model(name: str, cls: type[BaseModel]) -> None:
    """Makes a model class of one's own known, so that `hourglass_jax.load` and `save` take its models.

    Args:
        name: what files say of such a model.
        cls: a `models.base.VisionModel` or `PromptedVisionModel`, built from an instance of its `config_class`, a
            frozen dataclass.

    Raises:
        ValueError: the name is taken by another class, or the class is no such model.
    """
    if not (isinstance(cls, type) and issubclass(cls, BaseModel) and dataclasses.is_dataclass(cls.config_class)):
        raise ValueError(f"expected a VisionModel whose config_class is a dataclass, got {cls!r}")
    if name in MODELS or _registered.get(name, cls) is not cls:
        raise ValueError(f"the name {name!r} is taken by another model")
    _registered[name] = cls


def find_model(name: str) -> type[BaseModel]:
    """The class of the models of this name: the library's, one that was registered, or that of an entry point.

    Raises:
        ValueError: there is none.
    """
    if name in _registered:
        return _registered[name]
    if name in MODELS:
        module, _, cls = MODELS[name].partition(":")
        return getattr(import_module(module), cls)
    for point in entry_points(group=ENTRY_POINTS, name=name):
        register_model(name, point.load())
        return _registered[name]
    known = (*MODELS, *_registered, *sorted(entry_points(group=ENTRY_POINTS).names))
    raise ValueError(f"unknown model {name!r}; this version knows {', '.join(dict.fromkeys(known))}")


def header(model: Model) -> dict[str, str]:
    """What a model's file says of it.

    Raises:
        ValueError: the model's class is not known.
    """
    path = f"{type(model).__module__}:{type(model).__qualname__}"
    names = {place: name for name, place in MODELS.items()}
    names |= {f"{cls.__module__}:{cls.__qualname__}": name for name, cls in _registered.items()}
    if path not in names:
        known = ", ".join(place.partition(":")[2] for place in names)
        raise ValueError(f"expected a model of {known}, got {type(model).__name__}; see register_model")
    config = json.dumps(_plain(model.config))
    return {"format": FORMAT, "format_version": str(VERSION), "model": names[path], "config": config}


def abstract_model(name: str, config: Mapping[str, Any], *, dtype: jnp.dtype = jnp.float32) -> Model:
    """The model `name` with shapes in place of parameters; `fill` gives it its weights.

    Raises:
        ValueError: there is no such model, or the config has fields that this version does not know, or values that
            it does not accept.
    """
    cls = find_model(name)
    built = _config(cls.config_class, config)
    # The initial values are never computed: one key does for all, and no stream of keys has to be traced.
    key = jax.random.key(0)
    rngs = SimpleNamespace(params=lambda: key)
    build = typing.cast("Callable[..., BaseModel]", cls)
    return typing.cast("Model", nnx.eval_shape(lambda: build(built, dtype=dtype, rngs=rngs)))


def flat_parameters(model: Model) -> dict[str, jax.Array]:
    """Every array of a model by its dotted path, for example "backbone.blocks.0.attention.qkv.kernel".

    What a plan derived from them is left out.
    """
    state = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.Cache)))
    return {
        ".".join(str(getattr(key, "key", key)) for key in path): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def fill(model: Model, parameters: Mapping[str, np.ndarray], source: str) -> None:
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


def _plain(config: Any) -> dict[str, Any]:
    """A (nested) config dataclass as JSON keeps it, with the `KIND` of every config in it."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            value = {KIND: type(value).__name__, **_plain(value)}
        values[field.name] = value
    return values


def _config(cls: type, values: Mapping[str, Any]) -> Any:
    """A (nested) config dataclass from the plain values that JSON keeps of it."""
    types = typing.get_type_hints(cls)
    values = {name: value for name, value in values.items() if name != KIND}
    unknown = sorted(values.keys() - types.keys())
    if unknown:
        raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}; it knows {', '.join(types)}")
    nested = {}
    for name, value in values.items():
        alternatives = typing.get_args(types[name]) or (types[name],)
        configs = [kind for kind in alternatives if isinstance(kind, type) and dataclasses.is_dataclass(kind)]
        nested[name] = value if not configs or value is None else _config(_kind(name, configs, value), value)
    return cls(**nested)


def _kind(name: str, configs: list[type], values: Mapping[str, Any]) -> type:
    """Which of these dataclasses a saved config is; in the first version of the format its fields tell."""
    if KIND not in values:
        fitting = (kind for kind in configs if values.keys() <= {field.name for field in dataclasses.fields(kind)})
        return next(fitting, configs[0])
    kinds = {kind.__name__: kind for kind in configs}
    if values[KIND] not in kinds:
        raise ValueError(f"{name} must be a config of {' or '.join(kinds)}, got {values[KIND]!r}")
    return kinds[values[KIND]]
