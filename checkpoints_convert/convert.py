"""From a file that the authors published to a file that `hourglass_jax.load` reads."""

import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import ml_dtypes
import numpy as np

from checkpoints_convert import dpt, saliency, segmenter, swag, swin, vit
from checkpoints_convert.errors import CheckpointError, in_one_sentence, printable
from checkpoints_convert.files import read
from checkpoints_convert.rules import Family, Settings, Tensors, dropped, made, recipes
from checkpoints_convert.settings import read_settings
from hourglass_jax.io.safetensors import write_safetensors
from hourglass_jax.models.registry import abstract_model, flat_parameters, header

FAMILIES: tuple[Family, ...] = (
    saliency.FAMILY,
    *segmenter.FAMILIES,
    *dpt.FAMILIES,
    *swag.FAMILIES,
    *vit.FAMILIES,
    *swin.FAMILIES,
)
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of all names that DistributedDataParallel and torch.compile leave, in any order."""


@dataclass(frozen=True)
class Summary:
    """What a conversion did.

    Attributes:
        target: the file.
        family: of the checkpoint.
        model: its name in `hourglass_jax.models.registry.MODELS`.
        config: of the model, as plain values.
        tensors: read.
        parameters: written, as numbers.
        dropped: reason -> how many tensors were dropped for it.
        seconds: that it took.
    """

    target: Path
    family: str
    model: str
    config: dict[str, object]
    tensors: int
    parameters: int
    dropped: dict[str, int]
    seconds: float


@in_one_sentence
def convert(
    source: Path,
    target: Path | None = None,
    *,
    family: str | None = None,
    settings: Path | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Converts one checkpoint; the target is written only when everything fits.

    Args:
        source: the checkpoint, in a format of `files.read`.
        target: where to write; by default the source's name with the suffix .safetensors.
        family: the name of one of `FAMILIES`, where the tensors fit several.
        settings: the file with the settings of the family; by default the one beside the source.
        dtype: of the parameters in the target.
        on_progress: called with the bytes written so far and in all.

    Returns:
        A `Summary`.

    Raises:
        ValueError: the source cannot be read, is of no known family, or does not fit it exactly.
    """
    started = time.perf_counter()
    target = target or source.with_suffix(".safetensors")
    if target.resolve() == source.resolve():
        raise CheckpointError(f"the target must not be the source itself: {target}; name another with -o")
    if target.is_dir():
        raise CheckpointError(f"the target must be a file, but {target} is a folder")
    checkpoint = read(source)
    tensors = _unwrapped(checkpoint)
    chosen, values = _family(source, tensors, family, settings)
    try:
        model = abstract_model(chosen.model, chosen.configure(tensors, values))
        wanted = {
            name: jax.ShapeDtypeStruct(each.shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
            for name, each in flat_parameters(model).items()
        }
        found = recipes(chosen, tensors, wanted)
        superfluous = dropped(chosen, tensors, found)
        notes = {"source": source.name, "source_sha256": checkpoint.sha256, "family": chosen.name}
        total, done = sum(each.size * each.dtype.itemsize for each in wanted.values()), 0

        def tensor(name: str) -> np.ndarray:
            nonlocal done
            on_progress(done, total)
            done += wanted[name].size * wanted[name].dtype.itemsize
            return made(name, found[name], tensors)

        write_safetensors(target, wanted, tensor, {**notes, **header(model)})
        on_progress(total, total)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    return Summary(
        target,
        chosen.name,
        chosen.model,
        json.loads(header(model)["config"]),
        len(tensors),
        sum(each.size for each in wanted.values()),
        dict(Counter(superfluous.values())),
        time.perf_counter() - started,
    )


def _unwrapped(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors without the prefixes that all their names have."""
    prefix = next((each for each in WRAPPERS if all(name.startswith(each) for name in tensors)), None)
    if prefix is None:
        return dict(tensors)
    return _unwrapped({name.removeprefix(prefix): tensor for name, tensor in tensors.items()})


def _family(source: Path, tensors: Tensors, name: str | None, settings: Path | None) -> tuple[Family, Settings]:
    """The family that a checkpoint is of, and its settings."""
    names = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    if name is not None and name not in {family.name for family in FAMILIES}:
        raise CheckpointError(f"unknown model {name!r}; known: {names}")
    given = None if settings is None else read_settings(settings)
    fitting = []
    for family in FAMILIES:
        if name in (None, family.name) and family.fits(tensors, {}):
            values = _beside(source, family) if given is None else given
            if family.fits(tensors, values):
                fitting.append((family, values))
    if not fitting:
        raise CheckpointError(
            f"{source} holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:3])}, ...) "
            f"but is of no known family; known: {names}"
            if name is None
            else f"{source} is no checkpoint of the family {name}"
        )
    if len(fitting) > 1:
        candidates = " or ".join(family.name for family, _ in fitting)
        raise CheckpointError(f"{source} may be one of several families: name it with --model {candidates}")
    return fitting[0]


def _beside(source: Path, family: Family) -> Settings:
    if family.settings_file is None or not (source.parent / family.settings_file).is_file():
        return {}
    return read_settings(source.parent / family.settings_file)


def describe(summary: Summary) -> str:
    """A summary as lines for a terminal."""
    lines = [
        f"family      {summary.family}",
        f"model       {summary.model}",
        f"config      {json.dumps(summary.config)}",
        f"tensors     {summary.tensors}",
        f"parameters  {summary.parameters:,}",
        *(f"dropped     {count}: {reason}" for reason, count in summary.dropped.items()),
        f"written     {summary.target} ({summary.seconds:.1f} s)",
    ]
    return "\n".join(printable(line, 100_000) for line in lines)
