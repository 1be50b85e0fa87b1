"""Reading the tensors of a checkpoint; the format is detected by the content of the file."""

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors

from checkpoints_convert.budget import EXPANSION, LONGEST_NAME, Budget, exceeded
from checkpoints_convert.errors import CheckpointError, check
from checkpoints_convert.npz_file import read_npz
from checkpoints_convert.onnx_file import read_onnx
from checkpoints_convert.snapshot import snapshot
from checkpoints_convert.torch_file import parse_torch, tensors
from hourglass_jax.io.safetensors import parse_safetensors

_OTHERS = {
    b"<": "what looks like a web page",
    b"{": "a JSON file: name the weights, which end in .pth, .bin, .safetensors, .npz or .onnx, or their folder",
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file itself",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
    b"\x89HDF": "an HDF5 file",
}
"""First byte of files that are mistaken for checkpoints, after spaces -> description."""

EMPTY = "tensors without elements"


class Contents(dict[str, Any]):
    """Arrays by name, read-only where they are views of the file's bytes; bfloat16 and float8 as in ml_dtypes.

    What PyTorch wrote may also hold mappings of arrays and plain values, before `weights` has chosen the arrays.

    Attributes:
        sha256: of the file's bytes that the arrays are made of, in hexadecimal.
        size: of the file, in bytes.
        skipped: how many objects beside the weights were left out, by their classes, and how many tensors without
            elements, as `EMPTY`.
    """

    def __init__(self, values: Mapping[str, Any], sha256: str, size: int, skipped: Mapping[str, int]):
        super().__init__(values)
        self.sha256, self.size, self.skipped = sha256, size, dict(skipped)


def read(path: Path, *, skip_objects: bool = False) -> Contents:
    """The weights of a checkpoint, as `torch_file.tensors` finds them in `read_tree`.

    Raises:
        CheckpointError: as `read_tree` and `weights`, or the file holds no tensors.
        OSError: the file cannot be opened.
    """
    tree = read_tree(path, skip_objects=skip_objects)
    with _named(path):
        return weights(tree, tensors(tree))


def read_tree(path: Path, *, skip_objects: bool = False) -> Contents:
    """Reads a checkpoint: PyTorch (zip, legacy or a plain pickle), .npz, safetensors or ONNX.

    Its first bytes decide which; the suffix does not matter. No code of the file is run. The arrays stay as they
    are whatever happens to the file afterwards.

    Args:
        path: the file.
        skip_objects: whether objects of any class beside the weights are left out; otherwise only those that are
            known of training frameworks, and all others are refused.

    Returns:
        A `Contents`. Where an object was left out there is a `pickle_values.Skipped`.

    Raises:
        CheckpointError: there is no such file, or it is of another kind, cut short, damaged or empty, or asks for
            more than `budget` allows.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a file, got a folder")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file, got a device or a pipe")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    with _named(path):
        with path.open("rb") as file:
            _parser(file.read(1024))  # what is no checkpoint is refused before it is read as a whole
        data, sha256 = snapshot(path)
        values, skipped = _parser(bytes(data[:1024]))(data, Budget(len(data)), skip_objects)
        check(bool(values), "tensors", "a file without any")
        return Contents(values, sha256, len(data), skipped)


def weights(tree: Contents, arrays: Mapping[str, np.ndarray]) -> Contents:
    """The arrays that were chosen from a checkpoint, without those that are empty.

    Raises:
        CheckpointError: they are too many, their names are too long, no array has elements, or they would become
            much larger than the file when they are written out, as views that repeat their elements would.
    """
    Budget(tree.size).spend("tensors", len(arrays))
    longest = max(map(len, arrays), default=0)
    check(longest <= LONGEST_NAME, f"names of tensors of up to {LONGEST_NAME} characters", f"one of {longest}")
    total = sum(max(each.itemsize, 4) * each.size for each in arrays.values())
    if total > EXPANSION * tree.size:
        raise exceeded("bytes", EXPANSION * tree.size)
    full = {name: array for name, array in arrays.items() if array.size}
    check(bool(full), "tensors", "a file without any that has elements")
    empty = {EMPTY: len(arrays) - len(full)} if len(full) < len(arrays) else {}
    return Contents(full, tree.sha256, tree.size, {**tree.skipped, **empty})


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Errors begin with the path; whatever a damaged file makes Python raise is a `CheckpointError`."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: expected a whole checkpoint, got a damaged one ({reason})") from error


_Parsed = tuple[Mapping[str, Any], Mapping[str, int]]


def _parser(head: bytes) -> Callable[[memoryview, Budget, bool], _Parsed]:
    """What reads a file that begins like this."""
    if head[4:9] == bytes(4) + b"{":  # first of all: the four bytes before may look like any other format
        return _parse_safetensors
    if head.startswith(b"PK"):
        first_member = head[30 : 30 + int.from_bytes(head[26:28], "little")]
        return _parse_npz if first_member.endswith(b".npy") else _parse_torch
    if head.startswith(b"\x80"):
        return _parse_torch
    if re.match(rb"\x08[\x01-\x7f][\x12\x1a\x22\x28\x32\x3a\x42]", head):  # its version, then fields 2 to 8
        return _parse_onnx
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    other = f"a file that begins with {head[:16]!r}" if head else "an empty file"
    got = next((what for mark, what in _OTHERS.items() if text.startswith(mark)), other)
    raise CheckpointError(f"expected a PyTorch, safetensors, .npz or ONNX file, got {got}")


def _parse_torch(data: memoryview, budget: Budget, skip_objects: bool) -> _Parsed:
    return parse_torch(data, budget, skip_objects=skip_objects)


def _parse_safetensors(data: memoryview, budget: Budget, skip_objects: bool) -> _Parsed:
    try:
        return parse_safetensors(data)[0], {}
    except safetensors.SafetensorError as error:
        raise CheckpointError(f"expected a whole safetensors file, got a damaged one ({error})") from None
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _parse_npz(data: memoryview, budget: Budget, skip_objects: bool) -> _Parsed:
    return read_npz(data), {}


def _parse_onnx(data: memoryview, budget: Budget, skip_objects: bool) -> _Parsed:
    return read_onnx(data, budget), {}
