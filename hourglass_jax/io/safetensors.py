"""Safetensors files, read as views and written one tensor at a time: a model need not fit into memory.

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
"""Alignment in bytes with which JAX uses arrays without copying them."""

_LONGEST_HEADER, _MOST_TENSORS = 1 << 24, 50_000
"""Maximum length of the header in bytes, and maximum number of tensors, of files to read."""

_CODES = {dtype: code for code, dtype in DTYPES.items()}


class Shaped(Protocol):
    """An array, or its shape and dtype only, such as a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype: ...


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Maps a safetensors file into memory; data are read when they are used.

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
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise safetensors.SafetensorError("the file is empty")
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    return parse_safetensors(data)


def parse_safetensors(data: memoryview) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The tensors of a safetensors file as views of its bytes, and the metadata.

    Raises:
        safetensors.SafetensorError: the bytes are of another kind, cut short or damaged: the tensors must fill them
            without gaps, and no name may stand there twice.
        ValueError: a tensor is of a dtype that NumPy and ml_dtypes do not have.
    """
    start = 8 + int.from_bytes(data[:8], "little")
    _require(8 < start <= len(data), f"a header of {start - 8} bytes in a file of {len(data)}")
    _require(start <= _LONGEST_HEADER, f"a header of {start - 8} bytes")
    encoded = bytes(data[8:start])
    many = encoded.count(b"[") + encoded.count(b"{")
    _require(many <= 4 * _MOST_TENSORS, f"{many} lists and objects in its header")
    try:
        header = json.loads(str(encoded, "utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise safetensors.SafetensorError(f"its header is no JSON ({type(error).__name__})") from None
    _require(isinstance(header, dict), "a header that is no object")
    metadata = header.pop("__metadata__", None) or {}
    are_texts = isinstance(metadata, dict) and all(isinstance(text, str) for text in metadata.values())
    _require(are_texts, "metadata that are no texts")
    _require(len(header) <= _MOST_TENSORS, f"{len(header)} tensors, of which {_MOST_TENSORS} are read")
    tensors, spans = {}, []
    for name, entry in header.items():
        shape, dtype, begin, end = _entry(name, entry)
        spans.append((begin, end))
        sizes = f"{name[:100]!r} of shape {shape[:8]} in the bytes {begin} to {end}"
        _require(begin + math.prod(shape) * dtype.itemsize == end <= len(data) - start, sizes)
        tensors[name] = np.ndarray(shape, dtype, data, start + begin)
    place = 0
    for begin, end in sorted(spans):
        _require(begin == place, f"a tensor that begins at byte {begin} instead of {place}")
        place = end
    _require(place == len(data) - start, f"{len(data) - start} bytes of tensors, of which {place} are used")
    return tensors, metadata


def _entry(name: str, entry: object) -> tuple[list[int], np.dtype, int, int]:
    """Shape, dtype, begin and end of a tensor, as its header says."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise safetensors.SafetensorError(f"a header without dtype, shape and data_offsets of {name[:100]!r}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    are_lists = isinstance(code, str) and isinstance(shape, list) and isinstance(offsets, list)
    _require(are_lists and len(shape) <= 64 and len(offsets) == 2, f"a damaged header of {name[:100]!r}")
    are_numbers = all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, *offsets))
    _require(are_numbers, f"a damaged shape or place of {name[:100]!r}")
    if code not in DTYPES:
        raise ValueError(f"expected {name[:100]!r} to be of {', '.join(DTYPES)}, got {code[:20]}")
    return shape, DTYPES[code], *offsets


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    mapping = dict(pairs)
    _require(len(mapping) == len(pairs), "a name that stands twice in its header")
    return mapping


def _require(holds: bool, got: str) -> None:
    if not holds:
        raise safetensors.SafetensorError(got)


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
        metadata: further texts by name; what is no Unicode in them is escaped.

    Returns:
        `path`.

    Raises:
        ValueError: the format has no such dtype, a tensor has another shape than announced or would lose its
            imaginary part, the metadata holds something other than texts, or `path` is no plain file.
    """
    path = Path(path)
    names = sorted(shapes, key=lambda name: _size(shapes[name]) % ALIGNMENT > 0)
    names.sort(key=lambda name: -np.dtype(shapes[name].dtype).itemsize)
    header = _header({name: shapes[name] for name in names}, metadata)
    with replacing(path) as temporary, temporary.open("wb") as file:
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
    texts = {name: text.encode(errors="backslashreplace").decode() for name, text in metadata.items()}
    header: dict[str, object] = {"__metadata__": texts}
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
    if np.iscomplexobj(array) and dtype.kind != "c":
        raise ValueError(f"{name} must have real numbers, got complex ones ({np.asarray(array).dtype})")
    file.write(np.ascontiguousarray(array, dtype).reshape(-1).view(np.uint8).data)
