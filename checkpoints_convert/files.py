"""The tensors of a checkpoint by name, whatever its format: the file itself says which it is."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import safetensors

from checkpoints_convert.budget import EXPANSION, LONGEST_NAME, SMALL, Budget, exceeded
from checkpoints_convert.errors import CheckpointError, check
from checkpoints_convert.npz_file import read_npz
from checkpoints_convert.onnx_file import read_onnx
from checkpoints_convert.snapshot import snapshot
from checkpoints_convert.torch_file import parse_torch, tensors
from hourglass_jax.io.safetensors import parse_safetensors

_OTHERS = {
    b"<": "what looks like a web page",
    b"{": "a JSON file; the weights are in another one, which is called .pth, .bin, .safetensors, .npz or .onnx",
    b"version https://git-lfs": "a Git LFS pointer, which stands for the file itself",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x1f\x8b": "a gzip archive, which must be unpacked first",
    b"\x89HDF": "an HDF5 file",
}
"""How files begin that are taken for checkpoints, after spaces, and what to call them."""

EMPTY = "tensors without elements"


class Checkpoint(dict[str, np.ndarray]):
    """Arrays by name, read-only where they are views of the file's bytes; bfloat16 and float8 as in ml_dtypes.

    Attributes:
        sha256: of the file's bytes that the arrays are made of, in hexadecimal.
        skipped: how many objects beside the weights were left out, by their classes, and how many tensors without
            elements, as `EMPTY`.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], sha256: str, skipped: Mapping[str, int]):
        super().__init__(arrays)
        self.sha256, self.skipped = sha256, dict(skipped)


def read(path: Path, *, skip_objects: bool = False) -> Checkpoint:
    """Reads a checkpoint: PyTorch (zip, legacy or a plain pickle), .npz, safetensors or ONNX.

    Its first bytes decide which; the suffix does not matter. No code of the file is run. The arrays stay as they
    are whatever happens to the file afterwards.

    Args:
        path: the file.
        skip_objects: whether objects of any class beside the weights are left out; otherwise only those that are
            known of training frameworks, and all others are refused.

    Returns:
        A `Checkpoint`.

    Raises:
        CheckpointError: there is no such file, or it is of another kind, cut short, damaged, without tensors, or
            asks for more than `budget` allows.
        OSError: the file cannot be opened.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: expected a file, got a folder")
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: expected a file, got a device or a pipe")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        data, sha256 = snapshot(path)
        budget = Budget(len(data))
        arrays, skipped = _parser(bytes(data[:1024]))(data, budget, skip_objects)
        check(bool(arrays), "tensors", "a file without any")
        _check_sizes(arrays, len(data))
        empty = [name for name, array in arrays.items() if not array.size]
        check(len(empty) < len(arrays), "tensors", "a file without any that has elements")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise CheckpointError(f"{path}: expected a whole checkpoint, got a damaged one ({reason})") from error
    if empty:
        arrays = {name: array for name, array in arrays.items() if array.size}
        skipped = {**skipped, EMPTY: len(empty)}
    return Checkpoint(arrays, sha256, skipped)


_Parsed = tuple[Mapping[str, np.ndarray], Mapping[str, int]]


def _check_sizes(arrays: Mapping[str, np.ndarray], size: int) -> None:
    """Refuses what would become much larger when it is written out: views that repeat their elements."""
    Budget(size).spend("tensors", len(arrays))
    longest = max(map(len, arrays))
    check(longest <= LONGEST_NAME, f"names of tensors of up to {LONGEST_NAME} characters", f"one of {longest}")
    total = sum(max(array.itemsize, 4) * array.size for array in arrays.values())
    if total > EXPANSION * size + SMALL:
        raise exceeded("bytes", EXPANSION * size + SMALL)


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
    tree, skipped = parse_torch(data, budget, skip_objects=skip_objects)
    return tensors(tree), skipped


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
