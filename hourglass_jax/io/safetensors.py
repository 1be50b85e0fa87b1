"""Safetensors files, read as views and written one tensor at a time: a model need not be in memory even once.

A file (huggingface/safetensors, README.md) is the length of its header, as a little-endian uint64; the header, JSON
with the dtype, shape and place of every tensor, filled with spaces; and the tensors without gaps. Here the largest
item size comes first, and of one size the tensors that keep the next ones aligned to `ALIGNMENT`.
"""

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO, Protocol

import ml_dtypes
import numpy as np
import safetensors
from numpy.typing import ArrayLike

from hourglass_jax.io.files import replacing

DTYPES = {
    code: np.dtype(getattr(ml_dtypes, name, name))
    for code, name in {
        "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "C64": "complex64",
        "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
        "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8", "BOOL": "bool",
        "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
        "F8_E4M3FNUZ": "float8_e4m3fnuz", "F8_E5M2FNUZ": "float8_e5m2fnuz",
    }.items()
}  # fmt: skip
"""Name of a dtype in the format -> dtype in NumPy."""

ALIGNMENT = 64
"""Bytes: JAX takes arrays that are aligned so as they are, without copying them."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Shaped(Protocol):
    """An array, or what is known of one before it is there, such as a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps a safetensors file into memory: nothing is read before it is used.

    Args:
        path: the file. It must not be changed in place while its tensors are in use; `write_safetensors` replaces
            it.

    Returns:
        Read-only views of the tensors by name, and the metadata.

    Raises:
        safetensors.SafetensorError: the file is of another kind, cut short or damaged.
        ValueError: a tensor is of a dtype that NumPy and ml_dtypes do not have.
        OSError: the file cannot be opened.
    """
    with safetensors.safe_open(path, framework="numpy"):
        pass  # the library has compared the places of all tensors with their shapes and the file's size
    with open(path, "rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8:start]))
    metadata = header.pop("__metadata__", None) or {}
    tensors = {}
    for name, entry in header.items():
        if entry["dtype"] not in DTYPES:
            raise ValueError(f"expected {name!r} to be of {', '.join(DTYPES)}, got {entry['dtype']}")
        place = start + entry["data_offsets"][0]
        tensors[name] = np.ndarray(entry["shape"], DTYPES[entry["dtype"]], data, place)
    return tensors, metadata


def write_safetensors(
    path: str | os.PathLike[str],
    shapes: Mapping[str, Shaped],
    tensor: Callable[[str], ArrayLike],
    metadata: Mapping[str, str],
) -> Path:
    """Writes one safetensors file, which appears only when it is complete.

    Args:
        path: the target; folders that are missing are made.
        shapes: the shape and dtype of every tensor by its name.
        tensor: gives the tensor of a name, and is called once for each. It is converted to its dtype, written and
            let go before the next is asked for.
        metadata: further texts by name.

    Returns:
        `path`.

    Raises:
        ValueError: the format has no such dtype, a tensor has another shape than announced, or the metadata holds
            something other than texts.
    """
    path = Path(path)
    names = sorted(shapes, key=lambda name: _size(shapes[name]) % ALIGNMENT > 0)
    names.sort(key=lambda name: -np.dtype(shapes[name].dtype).itemsize)
    header = _header({name: shapes[name] for name in names}, metadata)
    with (
        replacing(path) as temporary,
        open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, 0o644)) as file,
    ):
        file.write(header)
        for name in names:
            _write(file, name, tensor(name), shapes[name])
    return path


def _size(expected: Shaped) -> int:
    return math.prod(expected.shape) * np.dtype(expected.dtype).itemsize


def _header(shapes: Mapping[str, Shaped], metadata: Mapping[str, str]) -> bytes:
    for name, text in metadata.items():
        if not isinstance(text, str):
            raise ValueError(f"the metadata {name!r} must be a text, got {text!r}")
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, expected in shapes.items():
        dtype = np.dtype(expected.dtype).newbyteorder("=")
        if dtype not in _CODES:
            raise ValueError(f"{name} must have a dtype that safetensors files know, got {dtype}")
        start, end = end, end + _size(expected)
        header[name] = {"dtype": _CODES[dtype], "shape": expected.shape, "data_offsets": (start, end)}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-(8 + len(encoded)) % ALIGNMENT)
    return len(encoded).to_bytes(8, "little") + encoded


def _write(file: BinaryIO, name: str, array: ArrayLike, expected: Shaped) -> None:
    if np.shape(array) != tuple(expected.shape):
        raise ValueError(f"{name} must have shape {tuple(expected.shape)}, got {np.shape(array)}")
    dtype = np.dtype(expected.dtype).newbyteorder("<")
    file.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
