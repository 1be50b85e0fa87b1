"""Finding the weights of a checkpoint: one file, or the shards of an index.

Source: huggingface/transformers, src/transformers/modeling_utils.py (`save_pretrained`): weights in one file, or in
shards beside an index, JSON whose `weight_map` says which tensor is in which.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from reprlib import repr as short

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.files import Contents
from checkpoints_convert.plain_text import LONGEST_JSON, parse_json

INDEX = ".index.json"
NAMES = (
    "model.safetensors",
    f"model.safetensors{INDEX}",
    "pytorch_model.bin",
    f"pytorch_model.bin{INDEX}",
)
"""What `save_pretrained` calls the weights, in the order in which they are looked for."""
SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz", ".onnx", ".pkl", ".torch")
TRAINING = re.compile(r"optimizer.*|scheduler.*|scaler.*|rng_state.*|training_args\..*|random_states.*")
"""Files of a training run that hold no weights."""
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})(\.\w+)")


@dataclass(frozen=True)
class Checkpoint:
    """The files of a checkpoint.

    Attributes:
        source: what its user named.
        files: that hold its tensors.
        folder: where its settings lie.
        index: tensor -> the name of its file, where there are several.
    """

    source: Path
    files: tuple[Path, ...]
    folder: Path
    index: Mapping[str, str] | None = None

    @property
    def name(self) -> str:
        """Of the file, or of the folder where the shards lie."""
        return self.source.name if self.index is None and self.source.is_file() else self.folder.resolve().name

    @property
    def target(self) -> Path:
        """Where to write the conversion by default."""
        if self.index is None and self.source.is_file():
            return self.source.with_suffix(".safetensors")
        folder = self.folder if self.folder.name else self.folder.resolve()
        return folder.with_name(f"{folder.name}.safetensors")

    def settings(self, suffix: str) -> Path | None:
        """The file of settings whose name the checkpoint's begins with, or that is called like their folder."""
        found = [each for each in self.folder.glob(f"*{suffix}") if not each.name.startswith(".")]
        names = self.source.name, self.folder.resolve().name + suffix
        own = [each for each in found if names[0].startswith(each.stem) or names[1] == each.name]
        return max(own, key=lambda each: (names[0].startswith(each.stem), len(each.stem)), default=None)

    def contents(self, read: Callable[[Path], Contents]) -> Contents:
        """What the files hold.

        Args:
            read: reads one of them.

        Returns:
            All tensors; the hash of several files is that of their hashes, one a line.

        Raises:
            CheckpointError: one cannot be read, or the index and the shards do not hold the same tensors.
        """
        if self.index is None:
            return read(self.files[0])
        tensors: dict[str, object] = {}
        hashes, size, skipped = [], 0, Counter[str]()
        for file in self.files:
            shard = read(file)
            hashes.append(shard.sha256)
            size += shard.size
            skipped.update(shard.skipped)
            here = {name for name, place in self.index.items() if place == file.name}
            other = sorted(map(str, shard.keys() ^ here))
            if other:
                raise CheckpointError(
                    f"{file}: the index and this shard differ in {len(other)} tensors, {short(other)}"
                )
            tensors |= shard
        return Contents(tensors, hashlib.sha256("\n".join(hashes).encode()).hexdigest(), size, skipped)


def find_checkpoint(source: Path) -> Checkpoint:
    """The files of the checkpoint that `source` names: a file, an index, or the folder of either.

    Raises:
        CheckpointError: there is no such file, no or several checkpoints in the folder, or a shard is not there.
    """
    if source.is_dir():
        found = _in_folder(source)
        return _indexed(source, found) if found.name.endswith(INDEX) else Checkpoint(source, (found,), source)
    if source.name.endswith(INDEX) and source.is_file():
        return _indexed(source, source)
    shard = SHARD.fullmatch(source.name)
    if shard and int(shard.group(2)) > 1 and source.is_file():
        raise CheckpointError(
            f"{source} is one of {int(shard.group(2))} shards of a checkpoint: name the folder, or "
            f"{shard.group(1)}{shard.group(3)}{INDEX}"
        )
    return Checkpoint(source, (source,), source.parent)


def _in_folder(folder: Path) -> Path:
    """The weights or the index in a folder."""
    for name in NAMES:
        if (folder / name).is_file():
            return folder / name
    files = sorted(each for each in folder.iterdir() if each.is_file() and not each.name.startswith("."))
    found = [each for each in files if each.name.endswith(INDEX)] or [
        each for each in files if each.suffix.lower() in SUFFIXES and not TRAINING.fullmatch(each.name)
    ]
    snapshots = sorted(each for each in (folder / "snapshots").glob("*") if each.is_dir())
    if not found and snapshots:
        raise CheckpointError(
            f"{folder} is a cache of Hugging Face with {len(snapshots)} versions of a model: name one of them, as "
            f"{snapshots[-1]}"
        )
    if len(found) != 1:
        names = f"{len(found)}: {', '.join(each.name for each in found[:4])}" if found else "none"
        raise CheckpointError(
            f"{folder}: expected a file, or a folder with one checkpoint, got a folder with {names}"
        )
    return found[0]


def _indexed(source: Path, path: Path) -> Checkpoint:
    try:
        with path.open("rb") as file:
            index = parse_json(file.read(LONGEST_JSON + 1))["weight_map"]
        sound = isinstance(index, dict) and all(isinstance(each, str) for each in index.values())
    except (KeyError, TypeError):
        sound = False
    except CheckpointError as error:
        raise CheckpointError(f"{path}: expected an index of shards, JSON with a weight_map: {error}") from None
    if not sound or not index:
        raise CheckpointError(f"{path}: expected an index of shards, JSON with a weight_map of names of files")
    names = sorted(set(index.values()))
    strange = [name for name in names if Path(name).name != name or name.startswith(".")]
    if strange:
        raise CheckpointError(f"{path}: shards must lie beside their index, got {short(strange[0])}")
    absent = [name for name in names if not (path.parent / name).is_file()]
    if absent:
        some = ", ".join(absent[:3])
        raise CheckpointError(f"{path} lists {len(names)} shards, but {len(absent)} are not there: {some}")
    return Checkpoint(source, tuple(path.parent / name for name in names), path.parent, index)
