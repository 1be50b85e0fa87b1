"""The tensors of a checkpoint by name, whatever its format: the file itself says which it is."""

import io
import mmap
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.onnx_file import read_onnx
from checkpoints_convert.torch_file import read_torch, tensors, zip_records
from hourglass_jax.models.storage import read_safetensors

_OTHERS = {
    b"<": "what looks like a web page",
    b"{": "a JSON file",
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file itself",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
    b"\x89HDF": "an HDF5 file",
}
"""How files begin that are taken for checkpoints, after spaces, and what to call them."""

_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read(path: Path) -> dict[str, np.ndarray]:
    """The tensors of a checkpoint by name, as `torch_file.tensors` finds them in `read_tree`.

    Raises:
        CheckpointError: as `read_tree`, or the file holds no tensors.
    """
    try:
        return tensors(read_tree(path))
    except CheckpointError as error:
        raise _of(path, error) from error


def read_tree(path: Path) -> Mapping[str, object]:
    """Reads a checkpoint: PyTorch (zip, legacy or a plain pickle), .npz, safetensors or ONNX.

    Its first bytes decide which; the suffix does not matter. No code of the file is run.

    Args:
        path: the file. It must stay unchanged while the arrays are in use: they may be views of it.

    Returns:
        Arrays by name, read-only where they are views of the file; bfloat16 and float8 as in ml_dtypes. What
        PyTorch wrote may hold mappings of arrays and plain values, too.

    Raises:
        CheckpointError: there is no such file, or it is of another kind, cut short, damaged or without tensors.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a file, got a folder")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(1024)
    try:
        arrays = _reader(head)(path)
        if not arrays:
            raise CheckpointError("expected tensors, got a file without any")
    except CheckpointError as error:
        raise _of(path, error) from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: expected a whole checkpoint, got a damaged one ({reason})") from error
    return arrays


def _of(path: Path, error: CheckpointError) -> CheckpointError:
    return error if str(error).startswith(str(path)) else CheckpointError(f"{path}: {error}")


def _reader(head: bytes) -> Callable[[Path], Mapping[str, object]]:
    """What reads a file that begins like this."""
    if head[4:9] == bytes(4) + b"{":  # first of all: the four bytes before may look like any other format
        return _read_safetensors
    if head.startswith(b"PK"):
        first_member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return _read_npz if first_member.endswith(b".npy") else read_torch
    if head.startswith(b"\x80"):
        return read_torch
    if re.match(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]", head):  # its version, then fields 2 to 8
        return read_onnx
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    other = f"a file that begins with {head[:16]!r}" if head else "an empty file"
    got = next((what for mark, what in _OTHERS.items() if text.startswith(mark)), other)
    raise CheckpointError(f"expected a PyTorch, safetensors, .npz or ONNX file, got {got}")


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    return read_safetensors(path)[0]


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        records = zip_records(file, _mapped(file))
    return {name.removesuffix(".npy"): _npy(name, record) for name, record in records.items()}


def _npy(name: str, record: memoryview | bytes) -> np.ndarray:
    """The array of one .npy file. Arrays of objects, which are pickles, are refused like all but numbers."""
    stream = io.BytesIO(record[: 1 << 16])
    version = np.lib.format.read_magic(stream)
    shape, is_fortran, dtype = _NPY_HEADERS[version](stream)
    if dtype.kind not in "biufc":
        raise CheckpointError(f"expected arrays of numbers, got {name!r} of dtype {dtype}")
    array = np.ndarray(shape, dtype, record, stream.tell(), order="F" if is_fortran else "C")
    if stream.tell() + array.nbytes != len(record):
        raise CheckpointError(f"expected {array.nbytes} bytes in {name!r}, got {len(record) - stream.tell()}")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


def _mapped(file: BinaryIO) -> memoryview:
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
