"""The weights of an ONNX file, under the names that they had in PyTorch.

Only the fields that say so are read (onnx/onnx, `onnx/onnx.proto`); all others stay the bytes that they are, so
that neither the onnx package nor a generated protobuf class is needed, and nothing in the file can become large.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

import ml_dtypes
import numpy as np

from checkpoints_convert.budget import LONGEST_NAME, Budget
from checkpoints_convert.errors import CheckpointError, check

Field = int | memoryview

_VARINT, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5
_MODEL_GRAPH = 7
_GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_SPARSE = 1, 5, 15
_NODE_INPUT, _NODE_NAME, _NODE_TYPE = 1, 3, 4
_DIMS, _DTYPE, _SEGMENT, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 3, 8, 9, 13, 14
_TEXT = 8
_EXTERNAL_LOCATION = 1

_DTYPES = {
    number: np.dtype(getattr(ml_dtypes, name, name))
    for number, name in {
        1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 9: "bool",
        10: "float16", 11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128",
        16: "bfloat16", 17: "float8_e4m3fn", 18: "float8_e4m3fnuz", 19: "float8_e5m2", 20: "float8_e5m2fnuz",
    }.items()
}  # fmt: skip
"""TensorProto.DataType -> dtype."""

_TYPED = {4: "<f4", 5: "varint", 7: "varint", 10: "<f8", 11: "varint"}
"""The field of a tensor's elements, where they are not raw bytes -> how they are written."""

_FIELD_OF = {1: 4, 14: 4, 11: 10, 15: 10, 7: 7, 12: 11, 13: 11}
"""TensorProto.DataType -> the field of its elements; of all others it is 5."""


class _Node(NamedTuple):
    name: str
    operation: str
    inputs: list[str]


def read_onnx(data: memoryview, budget: Budget) -> dict[str, np.ndarray]:
    """Reads the initializers of an ONNX graph; nothing is run.

    PyTorch's exporter drops the name of a linear layer's weight and stores it transposed, as the second input of a
    MatMul node that still carries the module's path: /encoder/layer.0/mlp/fc1/MatMul becomes
    encoder.layer.0.mlp.fc1.weight, [out, in] again. Other nameless initializers (names with "::") take the path of
    the node that reads them.

    Args:
        data: the file.
        budget: of the file.

    Returns:
        Arrays by name.

    Raises:
        CheckpointError: the file is not a complete ONNX model, its weights are in other files, or two of them would
            get the same name.
    """
    try:
        nodes, tensors = _graph(data, budget)
        arrays: dict[str, np.ndarray] = {}
        for tensor in tensors:
            name, array = _tensor(tensor, budget)
            check(name not in arrays, "weights of different names", f"two weights that are called {name!r}")
            arrays[name] = array
    except CheckpointError:
        raise
    except (ValueError, TypeError, IndexError, struct.error) as error:
        raise CheckpointError(f"not a complete ONNX model ({error}): download it again") from None
    check(bool(arrays), "an ONNX model with weights (initializers)", "one without")

    readers = {source: node for node in nodes for source in node.inputs}
    named: dict[str, np.ndarray] = {}
    for name, array in arrays.items():
        if "::" in name and name in readers:
            module, _, operation = readers[name].name.strip("/").replace("/", ".").rpartition(".")
            is_weight = readers[name].operation == "MatMul"
            name = f"{module}.weight" if is_weight else f"{module}.{operation}"
            array = array.T if is_weight else array
        check(name not in named, "weights of different names", f"two weights that are called {name!r}")
        named[name] = array
    return named


def _fields(message: memoryview, budget: Budget) -> Iterator[tuple[int, Field]]:
    """The fields of a protobuf message: their numbers, and their values or bytes."""
    place = 0
    while place < len(message):
        budget.spend("steps")
        key, place = _varint(message, place)
        number, kind = key >> 3, key & 7
        if not number:
            raise ValueError("the field 0")
        if kind == _VARINT:
            value, place = _varint(message, place)
            yield number, value
            continue
        if kind == _BYTES:
            size, place = _varint(message, place)
        elif kind in (_EIGHT, _FOUR):
            size = 8 if kind == _EIGHT else 4
        else:
            raise ValueError(f"wire type {kind}")
        if place + size > len(message):
            raise ValueError(f"a field of {size} bytes where {len(message) - place} are left")
        yield number, message[place : place + size]
        place += size


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value & 0xFFFF_FFFF_FFFF_FFFF, place
    raise ValueError("a number of more than ten bytes")


def _bytes(value: Field) -> memoryview:
    if not isinstance(value, memoryview):
        raise ValueError("a number where bytes are expected")
    return value


def _int(value: Field) -> int:
    if not isinstance(value, int):
        raise ValueError("bytes where a number is expected")
    return value - (1 << 64) if value >> 63 else value


def _text(value: Field) -> str:
    data = _bytes(value)
    check(len(data) <= LONGEST_NAME, f"names of up to {LONGEST_NAME} characters", f"one of {len(data)}")
    return str(data, "utf-8")


def _graph(data: memoryview, budget: Budget) -> tuple[list[_Node], list[memoryview]]:
    graphs = [_bytes(value) for number, value in _fields(data, budget) if number == _MODEL_GRAPH]
    check(len(graphs) == 1, "an ONNX model with one graph", f"one with {len(graphs)}")
    nodes, tensors = [], []
    for number, value in _fields(graphs[0], budget):
        if number == _GRAPH_INITIALIZER:
            budget.spend("tensors")
            tensors.append(_bytes(value))
        elif number == _GRAPH_NODE:
            budget.spend("objects")
            nodes.append(_node(_bytes(value), budget))
        elif number == _GRAPH_SPARSE:
            raise CheckpointError("expected dense weights, got an ONNX model with sparse ones")
    return nodes, tensors


def _node(message: memoryview, budget: Budget) -> _Node:
    name, operation, inputs = "", "", []
    for number, value in _fields(message, budget):
        if number == _NODE_INPUT:
            budget.spend("objects")
            inputs.append(_text(value))
        elif number == _NODE_NAME:
            name = _text(value)
        elif number == _NODE_TYPE:
            operation = _text(value)
    return _Node(name, operation, inputs)


def _tensor(message: memoryview, budget: Budget) -> tuple[str, np.ndarray]:
    """The name and the elements of a tensor, as a view where they are raw bytes."""
    shape: list[int] = []
    numbers: dict[int, int] = {}
    name, raw = "", None
    typed: dict[int, list[Field]] = {}
    for number, value in _fields(message, budget):
        if number == _DIMS:
            shape += [_int(value)] if isinstance(value, int) else _numbers(value)
            check(len(shape) <= 64, "the shape of a tensor", f"{len(shape)} axes")
        elif number == _NAME:
            name = _text(value)
        elif number == _RAW:
            check(raw is None, "one run of bytes for a tensor", "two")
            raw = _bytes(value)
        elif number in (_DTYPE, _LOCATION):
            numbers[number] = _int(value)
        elif number in (_EXTERNAL, _SEGMENT):
            numbers[number] = 1
        elif number in _TYPED or number == 6:
            budget.spend("objects")
            typed.setdefault(number, []).append(value)
    is_inside = numbers.get(_LOCATION) != _EXTERNAL_LOCATION and _EXTERNAL not in numbers
    got = f"{name!r}, whose values are in another file (external data): save the model as one file"
    check(is_inside, "an ONNX model that holds its weights", got)
    code = numbers.get(_DTYPE, 0)
    check(code != _TEXT and 6 not in typed, "weights that are numbers", f"{name!r}, which holds texts")
    check(code in _DTYPES and _SEGMENT not in numbers, "weights of a known type", f"{name!r} of type {code}")
    check(all(n >= 0 for n in shape), "the shape of a tensor", f"{shape[:8]} of {name!r}")
    dtype, field = _DTYPES[code], _FIELD_OF.get(code, 5)
    is_one_kind = not typed if raw is not None else typed.keys() <= {field}
    check(is_one_kind, f"the elements of {name!r} in one field", "several")
    if raw is None:
        raw = _elements(typed.get(field, []), field, code, dtype, budget)
    count = len(raw) // dtype.itemsize
    is_whole = int(np.prod(shape, dtype=object)) == count and len(raw) == count * dtype.itemsize
    check(is_whole, f"the elements of {name!r} of shape {shape[:8]} in {dtype}", f"{len(raw)} bytes: it is damaged")
    return name, np.ndarray(tuple(shape), dtype, raw)


def _numbers(packed: memoryview) -> list[int]:
    found, place = [], 0
    while place < len(packed):
        value, place = _varint(packed, place)
        found.append(_int(value))
    return found


def _elements(fields: list[Field], field: int, code: int, dtype: np.dtype, budget: Budget) -> memoryview | bytes:
    """The bytes of elements that are written as numbers, packed or one by one."""
    if _TYPED[field] != "varint":
        parts = [_bytes(value) for value in fields]
        return parts[0] if len(parts) == 1 else b"".join(parts)
    size = sum(1 if isinstance(value, int) else len(value) for value in fields)
    budget.spend("steps", size)
    values = [n for value in fields for n in ([_int(value)] if isinstance(value, int) else _numbers(value))]
    if code in (6, 7, 12, 13) or dtype.kind in "bui":
        wide = np.array([n & 0xFFFF_FFFF_FFFF_FFFF for n in values], np.uint64)
        return wide.astype(f"u{dtype.itemsize}").tobytes()
    bits = np.array([n & 0xFFFF for n in values], np.uint16)  # float16 and smaller floats are written as their bits
    return bits.astype(f"u{dtype.itemsize}").tobytes()
