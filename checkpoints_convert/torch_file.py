"""Reads PyTorch checkpoint files without PyTorch and without running any code that they hold.

A checkpoint is a pickle, and a pickle is a program. Here it can only write down what it wants: each global
that it names must stand in `_VOCABULARY`, and a call of one is recorded (`_Call`), not made. After its end
`_plain` turns the records into arrays and plain containers, checking their arguments.

Formats (pytorch/pytorch, `torch/serialization.py` and `caffe2/serialize/inline_container.cc`):

- zip (torch.save since 1.6): the pickle `<root>/data.pkl`, a record `<root>/data/<key>` per storage, and
  `<root>/byteorder`. Records are stored uncompressed: the file is mapped and tensors are views of the map.
- legacy (`_legacy_save`): pickles of a magic number, the protocol version, system facts, the object and the
  storage keys; then for each key its number of elements (int64) and the elements, always little-endian.
- a plain pickle of NumPy arrays (facebookresearch/detectron2, `checkpoint/detection_checkpoint.py`).
"""

import functools
import io
import mmap
import os
import pickle
import pickletools
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Mapping
from reprlib import repr as short
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_convert.errors import CheckpointError

WRAPPERS = (
    "model", "state_dict", "model_state", "model_state_dict", "net", "network", "module", "teacher",
)  # fmt: skip
TRAINING_STATE = frozenset((
    "optimizer", "optimizers", "optimizer_state", "optimizer_state_dict", "optimizer_states", "scheduler",
    "lr_scheduler", "lr_schedulers", "scaler", "loss_scaler", "amp", "args", "config", "meta", "callbacks",
    "hyper_parameters",
))  # fmt: skip
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_MAX_INFLATION = 64


def _check(holds: bool, expected: str, got: str) -> None:
    if not holds:
        raise CheckpointError(f"expected {expected}, got {got[:300]}")


def read_torch(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a PyTorch checkpoint (zip or legacy format) or a plain pickle of NumPy arrays.

    Args:
        path: the file. It must stay unchanged while the arrays are in use: they may be views of it.

    Returns:
        The mapping that was saved, of dicts, lists, tuples, sets and scalars. Tensors, parameters and
        storages are arrays (bfloat16 and float8 as in ml_dtypes), read-only where they are views of the file;
        dtypes are NumPy dtypes, devices are texts, an `argparse.Namespace` is a dict.

    Raises:
        CheckpointError: the file is of another kind, cut short or damaged (each record of a zip archive must
            have its CRC-32, unless all were saved without), or asks for something other than plain data.
        OSError: the file cannot be opened.
    """
    with open(path, "rb") as file:
        try:
            tree = _read(file)
            _check(isinstance(tree, dict), "a mapping such as a state dict", f"a {type(tree).__name__}")
        except CheckpointError as error:
            raise CheckpointError(f"{os.fspath(path)}: {error}") from error
        except Exception as error:
            got = f"a damaged one ({type(error).__name__}: {error})"
            raise CheckpointError(f"{os.fspath(path)}: expected a PyTorch checkpoint, got {got}") from error
    return tree


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
        CheckpointError: there is no array, or a name or a mapping stands there twice.
    """
    found: dict[str, np.ndarray] = {}
    seen: set[int] = set()

    def collect(mapping: Mapping[str, Any], prefix: str) -> None:
        _check(id(mapping) not in seen, "a tree of mappings", f"one that stands twice in it, as {prefix!r}")
        seen.add(id(mapping))
        for key, value in mapping.items():
            if not isinstance(key, str):
                continue
            if isinstance(value, np.ndarray):
                _check(prefix + key not in found, "one tensor by each name", f"two called {prefix + key!r}")
                found[prefix + key] = value
            elif isinstance(value, Mapping) and (prefix or key not in TRAINING_STATE):
                collect(value, f"{prefix}{key}.")

    while inner := next((tree[key] for key in WRAPPERS if isinstance(tree.get(key), Mapping)), None):
        tree = inner
    collect(tree, "")
    _check(bool(found), "tensors by name", f"none under the keys {short([*tree])}")
    return found


class _Call(dict):
    """The call of a global: arguments, items and state as the pickle gave them. Nothing has run."""

    build: Callable[["_Call"], Any] | None = None
    value: Any = None

    def __new__(cls, *args: Any) -> "_Call":
        call = super().__new__(cls)
        call.args, call.items_, call.state = args, {}, None
        return call

    def __init__(self, *args: Any):
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    numbers = (offset, *size, *stride)
    sound = len(size) == len(stride) and all(type(number) is int and number >= 0 for number in numbers)
    _check(sound, "a tensor's size and strides", f"{short(size)} and {short(stride)} at {short(offset)}")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not all(size):
        offset = end = 0
    got = f"size {short(size)} with strides {short(stride)} at {offset}"
    _check(end <= storage.size, f"a tensor inside its storage of {storage.size} elements", got)
    item, strides = storage.itemsize, [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * item, strides)


def _tensor_v3(call: _Call) -> np.ndarray:
    return _tensor(call.args[0].view(call.args[6]), *call.args[1:4])


def _numpy_dtype(call: _Call) -> np.dtype:
    code = call.args[0]
    _check(bool(re.fullmatch(r"[biufc]\d{1,2}", code)), "NumPy arrays of numbers", f"one of {short(code)}")
    return np.dtype(code).newbyteorder(call.state[1] if call.state else "=")


def _numpy_array(raw: bytes | str, dtype: np.dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    raw = raw.encode("latin1") if isinstance(raw, str) else raw  # Python 2 wrote bytes as texts
    _check(isinstance(dtype, np.dtype), "a NumPy dtype", short(dtype))
    array = np.ndarray(shape, dtype, raw, order=order)
    fits = array.shape == tuple(shape) and array.nbytes == len(raw)
    _check(fits, f"{array.nbytes} bytes for an array of shape {array.shape}", f"{len(raw)} for {short(shape)}")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _numpy_reconstructed(call: _Call) -> np.ndarray:
    _check(call.args[0] is np.ndarray and bool(call.state), "a NumPy array and its state", short(call.args))
    shape, dtype, fortran, raw = call.state[-4:]
    return _numpy_array(raw, dtype, shape, "F" if fortran else "C")


def _numpy_scalar(call: _Call) -> np.generic:
    dtype, raw = call.args
    return _numpy_array(raw, dtype, (1,), "C")[0]


def _encoded(call: _Call) -> bytes:
    text, codec = call.args
    _check(codec in ("latin1", "latin-1"), "bytes written as latin1", f"the codec {short(codec)}")
    return text.encode("latin1")


def _vocabulary() -> dict[str, type[_Call]]:
    """Every global that a checkpoint may name: how a call of it is built, or the value that it stands for."""
    calls: dict[str, Callable[[_Call], Any]] = {
        "collections.OrderedDict": lambda call: dict(*call.args) | call.items_,
        "collections.Counter": lambda call: dict(*call.args),
        "argparse.Namespace": lambda call: dict(call.state or {}),
        "_codecs.encode": _encoded,  # how pickle protocol 2 writes bytes
        "torch._utils._rebuild_tensor": lambda call: _tensor(*call.args),
        "torch._utils._rebuild_tensor_v2": lambda call: _tensor(*call.args[:4]),
        "torch._utils._rebuild_tensor_v3": _tensor_v3,
        "torch._utils._rebuild_parameter": lambda call: call.args[0],
        "torch._utils._rebuild_parameter_with_state": lambda call: call.args[0],
        "torch.Size": lambda call: tuple(call.args[0]),
        "torch.device": lambda call: ":".join(str(part) for part in call.args if isinstance(part, str | int)),
        "numpy.dtype": _numpy_dtype,
    }
    for module in ("builtins", "__builtin__"):
        calls[f"{module}.set"] = lambda call: set(*call.args)
        calls[f"{module}.frozenset"] = lambda call: frozenset(*call.args)
        calls[f"{module}.bytes"] = lambda call: b"".join(call.args)
    for module in ("numpy.core", "numpy._core"):
        calls[f"{module}.multiarray._reconstruct"] = _numpy_reconstructed
        calls[f"{module}.multiarray.scalar"] = _numpy_scalar
        calls[f"{module}.numeric._frombuffer"] = lambda call: _numpy_array(*call.args)

    storages = dict(
        Double="float64", Float="float32", Half="float16", BFloat16="bfloat16", Bool="bool",
        Long="int64", Int="int32", Short="int16", Char="int8", Byte="uint8",
        ComplexFloat="complex64", ComplexDouble="complex128",
    )  # fmt: skip
    untyped = (
        "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    )  # fmt: skip
    dtypes = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*storages.values(), *untyped)}
    values: dict[str, Any] = {f"torch.{name}": dtype for name, dtype in dtypes.items()}
    values |= {f"torch.{name}Storage": dtypes[dtype] for name, dtype in storages.items()}
    values |= dict.fromkeys(("torch.UntypedStorage", "torch.storage.UntypedStorage"), np.dtype("uint8"))
    values["numpy.ndarray"] = np.ndarray
    return {
        name: type(name, (_Call,), {"build": calls.get(name), "value": values.get(name)}) for name in calls | values
    }


_VOCABULARY = _vocabulary()


class _Storage(NamedTuple):
    """A persistent id of torch.save. `view` is the legacy format's (key, offset, size)."""

    key: str
    dtype: np.dtype
    numel: int
    view: tuple[str, int, int] | None = None


class _Unpickler(pickle.Unpickler):
    """An unpickler that only writes down what the pickle asks for."""

    def __init__(self, stream: BinaryIO):
        super().__init__(stream, encoding="latin1")
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> type[_Call]:
        name = f"{module}.{name}"
        got = f"a pickle that asks for the global {name[:200]!r}, which is refused"
        _check(name in _VOCABULARY, "tensors, numbers and plain containers", got)
        return _VOCABULARY[name]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage, key, _location, numel, *view = pid
        _check(kind == "storage" and type(numel) is int, "the persistent id of a storage", short(pid))
        found = _Storage(key, storage.value, numel, *view)
        self.storages.setdefault(key, found)
        return found


def _unpickle(stream: BinaryIO) -> tuple[Any, dict[str, _Storage]]:
    """Reads one pickle and stays behind it: what it wrote down, and the first mention of each storage."""
    start = stream.tell()
    try:
        for count, (code, argument, _) in enumerate(pickletools.genops(stream)):
            if code.name.endswith("PUT"):  # the unpickler allocates that many entries
                _check(argument <= count, f"a memo index of at most {count} in the pickle", f"{argument}")
        stream.seek(start)
        unpickler = _Unpickler(stream)
        return unpickler.load(), unpickler.storages
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"expected a pickle, got one that is cut short or damaged ({error})") from error


def _plain(tree: Any, read_storage: Callable[[_Storage], np.ndarray]) -> Any:
    """Builds what a pickle wrote down. A node that stands in several places is built once."""
    pending = object()
    built: dict[int, Any] = {}

    def plain(node: Any) -> Any:
        if isinstance(node, _Storage):
            return read_storage(node)
        if isinstance(node, type):
            _check(node.value is not None, "a value", f"the global {node.__name__}")
            return node.value
        if not isinstance(node, dict | list | tuple | set | frozenset):
            return node
        if id(node) not in built:
            built[id(node)] = pending
            built[id(node)] = build(node)
        _check(built[id(node)] is not pending, "a tree", "a container that holds itself")
        return built[id(node)]

    def build(node: Any) -> Any:
        if not isinstance(node, dict):
            return type(node)([plain(item) for item in node])
        items = {plain(key): plain(value) for key, value in node.items()}
        if not isinstance(node, _Call):
            return items
        _check(node.build is not None, "a value", f"a call of the global {type(node).__name__}")
        node.items_, node.args = items, [plain(item) for item in node.args]
        if isinstance(node.state, tuple):  # an array's: `built` would keep its text beside its bytes
            node.state = [plain(item) for item in node.state]
        else:
            node.state = plain(node.state)
        value = node.build()
        node.args = node.state = None
        return value

    return plain(tree)


def _read(file: BinaryIO) -> Any:
    _check(os.fstat(file.fileno()).st_size > 0, "a PyTorch checkpoint", "an empty file")
    data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    head = bytes(data[:16])
    if head.startswith(b"PK"):
        return _read_zip(file, data)
    is_pickle, got = head.startswith(b"\x80"), f"a file that begins with {head!r}"
    _check(is_pickle, "a PyTorch checkpoint (a zip archive or a pickle)", got)
    return _read_pickles(file, data)


def zip_records(file: BinaryIO, data: memoryview) -> dict[str, memoryview | bytes]:
    """The members of a zip archive, those stored uncompressed as views, all with their CRC-32 verified.

    If all checksums are zero, it was saved with `torch.utils.serialization.config.save.compute_crc32` off.
    """
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
        for member in members:
            archive.open(member).close()  # compares the directory with the member's own header
    except Exception as error:
        raise CheckpointError(f"expected a zip archive, got one cut short or damaged ({error})") from error
    end = data[len(data) - 22 - len(archive.comment) :]
    count, found = int.from_bytes(end[10:12], "little"), min(len(members), 0xFFFF)
    _check(count == found, f"{count} members in the zip archive", f"{found}: it is damaged")
    total, has_checksums = sum(member.file_size for member in members), any(member.CRC for member in members)
    _check(total <= _MAX_INFLATION * len(data), "an archive of weights", f"{total} bytes in {len(data)}")
    records: dict[str, memoryview | bytes] = {}
    for member in members:
        name, lengths = f"the record {member.filename!r}", data[member.header_offset + 26 :][:4]
        start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        record: memoryview | bytes = data[start : start + member.compress_size]
        if member.compress_type == zipfile.ZIP_DEFLATED:
            record = zlib.decompressobj(-zlib.MAX_WBITS).decompress(record, member.file_size + 1)
        else:
            _check(member.compress_type == zipfile.ZIP_STORED, f"{name} stored or deflated", "another method")
        size, crc = len(record), zlib.crc32(record) if has_checksums else member.CRC
        _check(size == member.file_size, f"{member.file_size} bytes in {name}", f"{size}: it is damaged")
        _check(crc == member.CRC, f"the CRC-32 {member.CRC:08x} of {name}", f"{crc:08x}: it is damaged")
        records[member.filename] = record
    return records


def _read_zip(file: BinaryIO, data: memoryview) -> Any:
    records = zip_records(file, data)
    roots = [name.removesuffix("/data.pkl") for name in records if re.fullmatch(r"[^/]+/data\.pkl", name)]
    _check(len(roots) == 1, "a zip archive by torch.save, with data.pkl", f"the members {short([*records])}")
    root = roots[0]
    scripted = any(name.startswith((f"{root}/code/", f"{root}/constants.pkl")) for name in records)
    _check(not scripted, "weights saved by torch.save", "a TorchScript archive, which is a program")
    order = bytes(records.get(f"{root}/byteorder", b"little"))
    _check(order in (b"little", b"big"), "the byte order little or big", short(order))

    @functools.cache
    def read_storage(storage: _Storage) -> np.ndarray:
        name = f"{root}/data/{storage.key}"
        _check(name in records, f"the record {name!r}, which the pickle names", "an archive without it")
        expected = f"{storage.numel} elements of {storage.dtype} in the record {name!r}"
        got = len(records[name])
        _check(got == storage.numel * storage.dtype.itemsize, expected, f"{got} bytes")
        array = np.ndarray((storage.numel,), storage.dtype, records[name])
        return array if order == b"little" else array.byteswap()

    return _plain(_unpickle(io.BytesIO(records[f"{root}/data.pkl"]))[0], read_storage)


def _read_pickles(file: BinaryIO, data: memoryview) -> Any:
    """Reads the legacy format, or a pickle that refers to no storages."""
    tree, _ = _unpickle(file)
    arrays: dict[str, np.ndarray] = {}
    if tree == _MAGIC:
        protocol, _ = _unpickle(file)
        _check(protocol == _PROTOCOL, f"version {_PROTOCOL} of the legacy format", short(protocol))
        _system, (tree, named), (keys, _) = _unpickle(file), _unpickle(file), _unpickle(file)
        start = file.tell()
        for key in keys:
            _, dtype, numel, _ = named[key]
            stored, start = int.from_bytes(data[start : start + 8], "little"), start + 8
            end = start + numel * dtype.itemsize
            got = f"{stored} in a file of {len(data)} bytes: it is cut short or damaged"
            _check(stored == numel and end <= len(data), f"{numel} elements of {dtype} up to byte {end}", got)
            arrays[key], start = np.ndarray((numel,), dtype, data, start), end

    def read_storage(storage: _Storage) -> np.ndarray:
        _check(storage.key in arrays, f"the storage {storage.key!r} in the file", "a pickle without it")
        _, first, size = storage.view or (None, 0, storage.numel)
        array = arrays[storage.key].view(storage.dtype)[first : first + size]
        expected = f"{size} elements at {first} of the storage {storage.key!r}"
        _check(first >= 0 and array.size == size, expected, f"{array.size}")
        return array

    return _plain(tree, read_storage)
