"""Conversion of a published checkpoint to a file that `hourglass_jax.load` reads."""

import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from reprlib import repr as short
from typing import Literal

import jax
import ml_dtypes
import numpy as np
import safetensors

from checkpoints_convert import dinov3, dpt, eomt, htc, mask2former, saliency, sam, segmenter, swag, swin, vit
from checkpoints_convert.dialects import in_timms_words
from checkpoints_convert.errors import CheckpointError, in_one_sentence, printable
from checkpoints_convert.files import read_tree as read
from checkpoints_convert.files import weights
from checkpoints_convert.folders import Checkpoint, find_checkpoint
from checkpoints_convert.python_config import parse_python
from checkpoints_convert.rules import (
    Family,
    Given,
    Settings,
    Tensors,
    build_parameter,
    closeness,
    find_unused,
    recipes,
)
from checkpoints_convert.settings import KNOWN, Watched, read_settings
from checkpoints_convert.wrappers import StateDict, prefixes, state_dict, without_prefix
from hourglass_jax.checks import MOST
from hourglass_jax.imaging.labels import DATASETS
from hourglass_jax.imaging.segment_labels import DATASETS as SEGMENTS
from hourglass_jax.io.safetensors import write_safetensors
from hourglass_jax.models.registry import FORMAT, abstract_model, flat_parameters, header
from hourglass_jax.ops.grids import Grid

FAMILIES: tuple[Family, ...] = (
    saliency.FAMILY,
    *segmenter.FAMILIES,
    *dpt.FAMILIES,
    *swag.FAMILIES,
    *vit.FAMILIES,
    *dinov3.FAMILIES,
    *swin.FAMILIES,
    *mask2former.FAMILIES,
    *eomt.FAMILIES,
    *sam.FAMILIES,
    *htc.FAMILIES,
)


@dataclass(frozen=True)
class Summary:
    """The summary of a conversion.

    Attributes:
        target: the written file.
        family: family of the checkpoint.
        model: name of the model in `hourglass_jax.models.registry.MODELS`.
        config: config of the model, as plain values.
        tensors: number of tensors read.
        parameters: number of scalar parameters written.
        dropped: reason -> number of tensors dropped for it.
        notes: decisions of the conversion, one sentence each.
        seconds: duration in seconds.
    """

    target: Path
    family: str
    model: str
    config: dict[str, object]
    tensors: int
    parameters: int
    dropped: dict[str, int]
    notes: tuple[str, ...]
    seconds: float


@in_one_sentence
def convert(
    source: Path,
    target: Path | None = None,
    *,
    family: str | None = None,
    settings: Path | None = None,
    key: str | None = None,
    heads: int | None = None,
    grid: Grid | None = None,
    dataset: str | None = None,
    allow_nonfinite: bool = False,
    skip_objects: bool = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Summary:
    """Converts one checkpoint; the target is written only when everything fits.

    Args:
        source: the checkpoint, in a format of `files.read_tree`, or a folder or an index of `folders`.
        target: where to write; by default the source's name with the suffix .safetensors, where that is no file or
            an earlier conversion of this source.
        family: the name of one of `FAMILIES`, where the tensors fit several.
        settings: the file with the settings of the family; by default the one beside the source.
        key: the entry of the checkpoint to take, where it holds several.
        heads: of a ViT, where neither settings nor a published shape say how many.
        grid: (rows, columns) of a ViT's position embedding, where it is not square and no settings say it.
        dataset: one of `imaging.labels.DATASETS`, the data set of the model's classes.
        allow_nonfinite: whether weights may be NaN or infinite.
        skip_objects: whether objects of any class beside the weights are left out, and not only known ones.
        dtype: of the parameters in the target.
        on_progress: called with the bytes written so far and in all.

    Returns:
        A `Summary`.

    Raises:
        ValueError: the source cannot be read, is of no known family, or does not fit it exactly; the target is a
            file that is no conversion of the source, and was not named.
    """
    started = time.perf_counter()
    checkpoint = find_checkpoint(source)
    target = _target(checkpoint, target)
    given = Given(heads=_positive("--heads", heads), grid=_grid(grid), dataset=_dataset(dataset))
    tree = checkpoint.contents(partial(read, skip_objects=True) if skip_objects else read)
    try:
        given = replace(given, saved=tree)
        state = state_dict(tree, given, key)
        full = weights(tree, state.tensors)
        choice = _choose(checkpoint, full, family, settings, given)
        chosen, tensors, given = choice.family, choice.state.tensors, choice.given
        config = chosen.configure(tensors, given)
        _check_all_read(chosen, given.settings)
        if dataset is not None and "classes" not in config:
            raise ValueError(f"--dataset names classes, but a model of the kind {chosen.model} has none")
        model = abstract_model(chosen.model, config)
        wanted = {
            name: jax.ShapeDtypeStruct(each.shape, np.dtype(getattr(ml_dtypes, dtype, dtype)))
            for name, each in flat_parameters(model).items()
        }
        found = recipes(chosen, tensors, wanted, model.config)
        superfluous = find_unused(chosen, tensors, found)
        notes = {"source": checkpoint.name, "source_sha256": tree.sha256, "family": chosen.name}
        total, done = sum(each.size * each.dtype.itemsize for each in wanted.values()), 0
        nonfinite: Counter[str] = Counter()

        def tensor(name: str) -> np.ndarray:
            nonlocal done
            on_progress(done, total)
            done += wanted[name].size * wanted[name].dtype.itemsize
            with np.errstate(over="ignore"):  # it is said below
                made_tensor = build_parameter(name, found[name], tensors).astype(wanted[name].dtype, copy=False)
            count = made_tensor.size - int(np.isfinite(made_tensor).sum())
            if count and not allow_nonfinite:
                raise ValueError(_nonfinite(found[name].sources, tensors, name, count, made_tensor.size))
            nonfinite[name] += count
            return made_tensor

        write_safetensors(target, wanted, tensor, {**notes, **header(model)})
        on_progress(total, total)
    except ValueError as error:
        raise error if str(error).startswith(str(source)) else CheckpointError(f"{source}: {error}") from None
    for name, count in (+nonfinite).most_common(3):
        given.say(f"{name} holds {count:,} values that are NaN or infinite")
    left = state.left + choice.state.left
    return Summary(
        target,
        chosen.name,
        chosen.model,
        json.loads(header(model)["config"]),
        len(tensors) + left.total(),
        sum(each.size for each in wanted.values()),
        dict(left + Counter(superfluous.values()) + Counter(full.skipped)),
        tuple(given.notes),
        time.perf_counter() - started,
    )


def _target(checkpoint: Checkpoint, named: Path | None) -> Path:
    """The file to write; a default target is replaced only if it is a conversion of the same source."""
    target = named or checkpoint.target
    if target.resolve() in {checkpoint.source.resolve(), *(file.resolve() for file in checkpoint.files)}:
        raise CheckpointError(f"the target must not be the source itself: {target}; name another with -o")
    if target.is_dir():
        raise CheckpointError(f"the target must be a file, but {target} is a folder")
    if named is None and os.path.lexists(target) and not _is_conversion(target, checkpoint.name):
        raise CheckpointError(
            f"{target} is there, and no conversion of {checkpoint.name}: name another target with -o, or this one "
            "to replace it"
        )
    return target


def _is_conversion(path: Path, source: str) -> bool:
    """Whether a file is a conversion of this source."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            notes = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return False
    return (notes.get("format"), notes.get("source")) == (FORMAT, source)


def _positive(name: str, value: int | None) -> int | None:
    if value is not None and not 0 < value <= MOST:
        raise CheckpointError(f"{name} must be a positive integer, got {value}")
    return value


def _grid(grid: Grid | None) -> Grid | None:
    for side in grid or ():
        _positive("--grid", side)
    return grid


def _dataset(name: str | None) -> str | None:
    known = [*dict.fromkeys((*DATASETS, *SEGMENTS))]
    if name is not None and name not in known:
        raise CheckpointError(f"--dataset must be one of {', '.join(known)}, got {name!r}")
    return name


def _nonfinite(sources: tuple[str, ...], tensors: Tensors, name: str, count: int, size: int) -> str:
    """What is said of a parameter with NaN or infinity."""
    guilty = [source for source in sources if not np.isfinite(tensors[source]).all()]
    if not guilty:
        return (
            f"{name}, made of {' and '.join(sources)}, holds {count:,} of {size:,} values that are too large for it"
        )
    return (
        f"{' and '.join(guilty)} holds {count:,} of {size:,} values that are NaN or infinite, as a diverged "
        "training leaves them: convert another checkpoint, or this one with --allow-nonfinite"
    )


@dataclass(frozen=True)
class _Choice:
    """A family, the tensors under its names, and further information about them."""

    family: Family
    state: StateDict
    given: Given


def _choose(
    checkpoint: Checkpoint, tensors: Tensors, name: str | None, settings: Path | None, given: Given
) -> _Choice:
    """Finds the family of a checkpoint: the only one that fits after removing the shortest prefix of all names."""
    names = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    if name is not None and name not in {family.name for family in FAMILIES}:
        raise CheckpointError(f"unknown model {name!r}; known: {names}")
    candidates = [family for family in FAMILIES if name in (None, family.name)]
    named = None if settings is None else _named_settings(settings)
    text = _config_in(given.saved)
    for prefix in prefixes(tensors):
        state = without_prefix(tensors, prefix)
        fitting = []
        for family in candidates:
            if family.fits(state.tensors, {}):
                values = _beside(checkpoint, family, text) if named is None else named
                if family.fits(state.tensors, values):
                    fitting.append(_Choice(family, state, replace(given, settings=Watched(values))))
        if name is None:  # what is left of a system without its head is meant where it is asked for
            fitting = [each for each in fitting if each.family.rest is None or not _has_rest(each)] or fitting
        if len(fitting) > 1:
            offered = " or ".join(each.family.name for each in fitting)
            raise CheckpointError(
                f"{checkpoint.source} may be one of several families: name it with --model {offered}"
            )
        if fitting:
            if name is None and _has_rest(fitting[0]):
                raise CheckpointError(
                    f"{checkpoint.source} is a system whose head is not known here: take its encoder alone with "
                    f"--model {fitting[0].family.name}"
                )
            if prefix:
                given.say(f"the prefix {prefix!r} comes off all names")
            return fitting[0]
    raise CheckpointError(_unknown(checkpoint, tensors, candidates, name, named or {}, given))


def _has_rest(choice: _Choice) -> bool:
    """Whether a checkpoint contains more parts of a system than the family uses."""
    rest = choice.family.rest
    return rest is not None and any(re.fullmatch(rest, name) for name in choice.state.tensors)


def _named_settings(path: Path) -> Settings:
    """Settings that the user names, which must hold something that is known."""
    settings = _translated(path, read_settings(path))
    if not any(name in KNOWN for name in settings):
        raise CheckpointError(f"{path} holds no settings that are known here, such as {', '.join(KNOWN[:4])}")
    return settings


def _beside(checkpoint: Checkpoint, family: Family, text: str | None) -> Settings:
    """The settings beside a checkpoint, or in it, where its family has some."""
    for name in family.settings_files:
        is_pattern = name.startswith("*")
        path = checkpoint.settings(name[1:]) if is_pattern else checkpoint.folder / name
        if path is not None and path.is_file():
            said = read_settings(path)
            found = _translated(path, said)
            if found is not said or not is_pattern:  # what is only called like the checkpoint may be anything
                return _completed(found, checkpoint.folder, family)
    if text is not None and "*.py" in family.settings_files:
        try:
            return in_timms_words(parse_python(text.encode()))
        except ValueError as error:
            raise CheckpointError(f"the config in the checkpoint: {error}; name another with --config") from None
    return {}


def _completed(settings: Settings, folder: Path, family: Family) -> Settings:
    """Settings with those of the family's further file that they do not have."""
    if family.further_settings is None or not (folder / family.further_settings).is_file():
        return settings
    return {**read_settings(folder / family.further_settings), **settings}


def _translated(source: object, settings: Settings) -> Settings:
    try:
        return in_timms_words(settings)
    except ValueError as error:
        raise CheckpointError(f"{source}: {error}") from None


def _config_in(saved: Mapping[object, object]) -> str | None:
    """The config that mmcv and mmengine write into a checkpoint's meta, with all that it builds on."""
    meta = saved.get("meta")
    found = [meta.get(name) for name in ("config", "cfg")] if isinstance(meta, Mapping) else []
    return next((text for text in found if isinstance(text, str) and "_base_" not in text), None)


def _check_all_read(family: Family, settings: Settings) -> None:
    """Raises ValueError if settings say what a family never asked for."""
    for name, value in settings.passed_over().items() if isinstance(settings, Watched) else ():
        raise ValueError(
            f"the settings say {name} {short(value)}, which a conversion of the family {family.name} does not take"
            ": leave it out, or name other settings with --config"
        )


def _unknown(
    checkpoint: Checkpoint,
    tensors: Tensors,
    candidates: list[Family],
    name: str | None,
    settings: Settings,
    given: Given,
) -> str:
    """The message for a checkpoint that fits no family: the closest one, and the missing tensors."""
    _, nearest, state = max(
        (
            (closeness(family, state.tensors), family, state)
            for prefix in prefixes(tensors)
            for state in [without_prefix(tensors, prefix)]
            for family in candidates
        ),
        key=lambda each: each[0],
    )
    lack = _lack(nearest, state.tensors, replace(given, settings=settings, notes=[]))
    if name is not None:
        return f"{checkpoint.source} is no checkpoint of the family {name}: {lack}"
    known = ", ".join(dict.fromkeys(family.name for family in FAMILIES))
    some = ", ".join(each[:80] for each in sorted(tensors)[:3])
    return (
        f"{checkpoint.source} holds {len(tensors)} tensors ({some}, ...) but is of no known family; the nearest is "
        f"{nearest.name}: {lack}; known: {known}"
    )


def _lack(family: Family, tensors: Tensors, given: Given) -> str:
    """The reason why tensors do not fit a family."""
    try:
        model = abstract_model(family.model, family.configure(tensors, given))
        find_unused(family, tensors, recipes(family, tensors, flat_parameters(model), model.config))
    except ValueError as error:
        return str(error)
    return "its tensors belong to another family"


def describe(summary: Summary) -> str:
    """Formats a summary as lines for a terminal."""
    lines = [
        f"family      {summary.family}",
        f"model       {summary.model}",
        f"config      {json.dumps(summary.config)}",
        f"tensors     {summary.tensors}",
        f"parameters  {summary.parameters:,}",
        *(f"dropped     {count}: {reason}" for reason, count in summary.dropped.items()),
        *(f"note        {note}" for note in summary.notes),
        f"written     {summary.target} ({summary.seconds:.1f} s)",
    ]
    return "\n".join(printable(line, 100_000) for line in lines)
