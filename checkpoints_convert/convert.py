"""From a file that the authors published to a file that `hourglass_jax.load` reads."""

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from checkpoints_convert import saliency
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.onnx_file import read_onnx
from checkpoints_convert.rules import Family, apply
from checkpoints_convert.torch_file import read_torch
from checkpoints_convert.torch_file import tensors as tensors_of
from hourglass_jax.models.registry import abstract_model, fill, flat_parameters, save

READERS = {
    ".onnx": read_onnx,
    **dict.fromkeys((".pth", ".pt", ".bin", ".ckpt", ".pkl"), lambda path: tensors_of(read_torch(path))),
}
"""Suffix -> what reads such a file into tensors by name."""

FAMILIES: tuple[Family, ...] = (saliency.FAMILY,)


@dataclass(frozen=True)
class Summary:
    """What a conversion did: the model, its config, where it lies, and the numbers for a report."""

    target: Path
    model: str
    config: dict[str, object]
    tensors: int
    parameters: int
    dropped: dict[str, str]
    seconds: float


def convert(source: Path, target: Path | None = None) -> Summary:
    """Converts one checkpoint; the target is written only when everything fits.

    Args:
        source: the checkpoint, in a format of `READERS`.
        target: where to write; by default the source's name with the suffix .safetensors.

    Returns:
        A `Summary`.

    Raises:
        ValueError: the source cannot be read, is of no known family, or does not fit it exactly.
    """
    started = time.perf_counter()
    tensors = read(source)
    target = target or source.with_suffix(".safetensors")
    if target.resolve() == source.resolve():
        raise CheckpointError(f"the target must not be the source itself: {target}")
    family = _family(source, tensors)
    try:
        config = family.configure(tensors)
        model = abstract_model(family.model, config)
        parameters = apply(family, tensors, flat_parameters(model))
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None
    fill(model, parameters, str(source))
    notes = {"source": source.name, "source_sha256": _sha256(source)}
    save(model, target, notes=notes)
    count = sum(array.size for array in parameters.values())
    return Summary(
        target, family.model, config, len(tensors), count, dict(family.ignored), time.perf_counter() - started
    )


def read(source: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name.

    Raises:
        CheckpointError: there is no such file, or it is of no known format.
    """
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    if source.suffix not in READERS:
        known = ", ".join(READERS)
        raise CheckpointError(f"{source}: expected a file ending in {known}, got {source.suffix or 'no suffix'!r}")
    return READERS[source.suffix](source)


def _family(source: Path, tensors: dict[str, np.ndarray]) -> Family:
    for family in FAMILIES:
        if family.fits(tensors):
            return family
    known = ", ".join(family.model for family in FAMILIES)
    raise CheckpointError(
        f"{source} holds {len(tensors)} tensors ({', '.join(sorted(tensors)[:3])}, ...) "
        f"but is of no known family; known: {known}"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(summary: Summary) -> str:
    """A summary as lines for a terminal."""
    lines = [
        f"model       {summary.model}",
        f"config      {json.dumps(summary.config)}",
        f"tensors     {summary.tensors}",
        f"parameters  {summary.parameters:,}",
        *(f"dropped     {pattern}: {reason}" for pattern, reason in summary.dropped.items()),
        f"written     {summary.target} ({summary.seconds:.1f} s)",
    ]
    return "\n".join(lines)
