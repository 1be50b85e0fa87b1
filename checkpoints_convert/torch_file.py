"""Reads PyTorch checkpoint files without PyTorch and without running any code that they hold.

A checkpoint is a pickle, and a pickle is a program. Here it is only recorded (`pickle_reader`), and then converted
to arrays and plain containers (`pickle_values`, by `pickle_rules`). Objects of any other kind are refused or
skipped.

Formats (pytorch/pytorch, `torch/serialization.py` and `caffe2/serialize/inline_container.cc`):

- zip (torch.save since 1.6): the pickle `<root>/data.pkl`, a record `<root>/data/<key>` per storage, and
  `<root>/byteorder`. Records are stored uncompressed: tensors are views of the file's bytes.
- legacy (`_legacy_save`): pickles of a magic number, the protocol version, system facts, the object and the
  storage keys; then for each key its number of elements (int64) and the elements, always little-endian.
- a plain pickle of NumPy arrays (facebookresearch/detectron2, `checkpoint/detection_checkpoint.py`) or of tensors
  (facebookresearch/Mask2Former, `tools/convert-pretrained-swin-model-to-d2.py`), each of which holds a file of the
  legacy format.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.archive import zip_records
from checkpoints_convert.budget import LONGEST_NAME, Budget
from checkpoints_convert.errors import CheckpointError, brief, check, unexpected
from checkpoints_convert.pickle_reader import Pickle, Raw, Storage
from checkpoints_convert.pickle_rules import RULES, STORAGE_DTYPES, find_global
from checkpoints_convert.pickle_values import Skipped, Values
from checkpoints_convert.snapshot import snapshot

WRAPPERS = (
    "model", "state_dict", "model_state", "model_state_dict", "net", "network", "module", "teacher",
)  # fmt: skip
TRAINING_STATE = frozenset((
    "optimizer", "optimizers", "optimizer_state", "optimizer_state_dict", "optimizer_states", "scheduler",
    "lr_scheduler", "lr_schedulers", "scaler", "loss_scaler", "amp", "args", "config", "meta", "callbacks",
    "hyper_parameters",
))  # fmt: skip
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001


def read_torch(path: str | os.PathLike[str], *, skip_objects: bool = False) -> dict[str, Any]:
    """Reads a PyTorch checkpoint (zip or legacy format) or a plain pickle of NumPy arrays or tensors.

    Args:
        path: the file.
        skip_objects: whether objects of any class are left out; otherwise those of known training frameworks are.

    Returns:
        The mapping that was saved, of dicts, lists, tuples, sets and scalars. Tensors, parameters and
        storages are arrays (bfloat16 and float8 as in ml_dtypes), read-only where they are views of the file;
        dtypes are NumPy dtypes, devices are texts, an `argparse.Namespace` and a `defaultdict` are dicts. An object
        that was left out is a `Skipped`.

    Raises:
        CheckpointError: the file is of another kind, cut short or damaged (each record of a zip archive must
            have its CRC-32, unless all were saved without), or asks for something other than plain data, or for
            more of it than `budget` allows.
        OSError: the file cannot be opened.
    """
    try:
        data = snapshot(Path(path)).data
        return parse_torch(data, Budget(len(data)), skip_objects=skip_objects)[0]
    except CheckpointError as error:
        raise CheckpointError(f"{os.fspath(path)}: {error}") from error


def parse_torch(
    data: memoryview, budget: Budget, *, skip_objects: bool = False
) -> tuple[dict[str, Any], dict[str, int]]:
    """What `read_torch` returns for the bytes of a file, and how many objects were left out, by their classes.

    Raises:
        CheckpointError: as `read_torch`.
    """
    reader = _Reader(data, budget, skip_objects)
    try:
        tree = reader.read()
    except CheckpointError:
        raise
    except Exception as error:
        got = f"a damaged one ({type(error).__name__}: {error})"
        raise CheckpointError(f"expected a PyTorch checkpoint, got {got}") from error
    if not isinstance(tree, dict):
        got = repr(tree) if isinstance(tree, Skipped) else f"a {type(tree).__name__}"
        raise unexpected("a mapping such as a state dict", got)
    return tree, reader.skipped


def tensors(tree: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Finds the state dict in a checkpoint and flattens it.

    As long as an entry named in `WRAPPERS` (the first that there is) holds a mapping, the state dict is in
    there, and what stands beside it is skipped. In the state dict arrays are kept, and mappings put their
    name and a dot before the names inside. Skipped are mappings at its top that are named in
    `TRAINING_STATE`, and what is no tensor: numbers, NumPy scalars, texts, lists, keys that are not texts.

    Args:
        tree: what `read_torch` returned.

    Returns:
        Name -> array, in the order of the file.

    Raises:
        CheckpointError: there is no array, a name or a mapping stands there twice, or a tensor is part of an object
            that was not read.
    """
    found: dict[str, np.ndarray] = {}
    seen: set[int] = set()

    def collect(mapping: Mapping[str, Any], prefix: str) -> None:
        check(id(mapping) not in seen, "a tree of mappings", f"one that stands twice in it, as {prefix!r}")
        seen.add(id(mapping))
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            is_short = len(prefix) + len(key) <= LONGEST_NAME
            check(is_short, f"names of tensors of up to {LONGEST_NAME} characters", f"{prefix + key[:50]!r}...")
            if isinstance(value, np.ndarray):
                check(prefix + key not in found, "one tensor by each name", f"two called {prefix + key!r}")
                found[prefix + key] = value
            elif prefix or key not in TRAINING_STATE:
                check_not_skipped(prefix + key, value)
                if isinstance(value, Mapping):
                    collect(value, f"{prefix}{key}.")

    while inner := next((tree[key] for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None):
        tree = inner
    collect(tree, "")
    check(bool(found), "tensors by name", f"none under the keys {brief([*tree])}")
    return found


def check_not_skipped(name: str, value: Any) -> None:
    """Refuses an object that was left out though there are tensors in it, where weights are looked for.

    Raises:
        CheckpointError: `value` is one.
    """
    expected = "the weights in plain containers; nothing is read of objects"
    is_harmless = not isinstance(value, Skipped) or not value.holds_tensors()
    check(is_harmless, expected, f"{name!r} in {value!r}" if isinstance(value, Skipped) else "")


class _Reader:
    """Reads one file, or the file of the legacy format inside a pickle."""

    def __init__(self, data: memoryview, budget: Budget, skip_objects: bool, *, is_inside: bool = False):
        self._data, self._budget, self._is_inside = data, budget, is_inside
        self._find = functools.partial(find_global, skip_objects=skip_objects)
        self.skipped: dict[str, int] = {}

    def read(self) -> Any:
        """The tree of values."""
        head = bytes(self._data[:16])
        check(bool(head), "a PyTorch checkpoint", "an empty file")
        if head.startswith(b"PK"):
            return self._read_zip()
        is_pickle, got = head.startswith(b"\x80"), f"a file that begins with {head!r}"
        check(is_pickle, "a PyTorch checkpoint (a zip archive or a pickle)", got)
        return self._read_pickles()

    def read_inside(self) -> np.ndarray:
        """The storage that a file of the legacy format holds, inside a plain pickle."""
        storage = self._read_pickles()
        check(isinstance(storage, np.ndarray) and storage.ndim == 1, "a storage", f"a {type(storage).__name__}")
        return storage

    def _read_inside(self, content: Raw | bytes) -> np.ndarray:
        data = content.data if isinstance(content, Raw) else memoryview(content)
        return _Reader(data, self._budget, False, is_inside=True).read_inside()

    def _pickle(self, data: memoryview, start: int = 0) -> Pickle:
        return Pickle(data, start, self._budget, self._find)

    def _values(self, tree: Any, read_storage: Any, *, is_big_endian: bool = False) -> Any:
        read_bytes = None if self._is_inside else self._read_inside
        values = Values(RULES, read_storage, read_bytes, self._budget, is_big_endian=is_big_endian)
        built = values.build(tree)
        self.skipped = dict(values.skipped)
        return built

    def _read_zip(self) -> Any:
        records = zip_records(self._data)
        roots = [name.removesuffix("/data.pkl") for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
        check(len(roots) == 1, "a zip archive by torch.save, with data.pkl", f"the members {brief([*records])}")
        root = roots[0]
        scripted = any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in records)
        check(not scripted, "weights saved by torch.save", "a TorchScript archive, which is a program")
        order = bytes(records.get(f"{root}/byteorder", b"little"))
        check(order in (b"little", b"big"), "the byte order little or big", brief(order))
        arrays: dict[str, np.ndarray] = {}

        def read_storage(storage: Storage) -> np.ndarray:
            check(storage.view is None, "a storage", "a view of one")
            if storage.key not in arrays:
                name, dtype = f"{root}/data/{storage.key}", _dtype(storage)
                check(name in records, f"the record {name!r}, which the pickle names", "an archive without it")
                expected = f"{storage.numel} elements of {dtype} in the record {name!r}"
                got = len(records[name])
                check(got == storage.numel * dtype.itemsize, expected, f"{got} bytes")
                array = np.ndarray((storage.numel,), dtype, records[name])
                arrays[storage.key] = array if order == b"little" else array.byteswap()
            return arrays[storage.key]

        tree = self._pickle(memoryview(records[f"{root}/data.pkl"])).tree
        return self._values(tree, read_storage, is_big_endian=order == b"big")

    def _read_pickles(self) -> Any:
        """Reads the legacy format, or a pickle that refers to no storages."""
        data, first = self._data, self._pickle(self._data)
        tree = first.tree
        arrays: dict[str, np.ndarray] = {}
        is_legacy = type(tree) is int and tree == _MAGIC
        check(is_legacy or not self._is_inside, "a storage in the legacy format", "another pickle")
        if is_legacy:
            protocol = self._pickle(data, first.end)
            check(protocol.tree == _PROTOCOL, f"version {_PROTOCOL} of the legacy format", brief(protocol.tree))
            system = self._pickle(data, protocol.end)
            main = self._pickle(data, system.end)
            keys = self._pickle(data, main.end)
            tree, start = main.tree, keys.end
            check(isinstance(keys.tree, list), "a list of storages", f"a {type(keys.tree).__name__}")
            for key in keys.tree:
                key = key.plain() if isinstance(key, Raw) else key
                if not isinstance(key, str) or key not in main.storages or key in arrays:
                    raise unexpected("storages that the pickle names", brief(key))
                named = main.storages[key]
                dtype = _dtype(named)
                stored, start = int.from_bytes(data[start : start + 8], "little"), start + 8
                end = start + named.numel * dtype.itemsize
                got = f"{stored} in a file of {len(data)} bytes: it is cut short or damaged"
                is_whole = stored == named.numel and start <= end <= len(data)
                check(is_whole, f"{named.numel} elements of {dtype} up to byte {end}", got)
                arrays[key], start = np.ndarray((named.numel,), dtype, data, start), end

        def read_storage(storage: Storage) -> np.ndarray:
            check(storage.key in arrays, f"the storage {storage.key!r} in the file", "a pickle without it")
            _, begin, size = storage.view or (None, 0, storage.numel)
            array = arrays[storage.key]
            part = array[begin : begin + size] if begin >= 0 and size >= 0 else array[:0]
            expected = f"{size} elements at {begin} of the storage {storage.key!r}"
            check(begin >= 0 and part.size == size, expected, f"{part.size}")
            return part

        return self._values(tree, read_storage)


def _dtype(storage: Storage) -> np.dtype:
    dtype = STORAGE_DTYPES.get(storage.kind.name)
    if dtype is None:
        raise unexpected("the class of a storage", storage.kind.name)
    return dtype
