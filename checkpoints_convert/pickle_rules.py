"""Rules for the globals that checkpoints need: arrays and plain containers."""

import re
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from checkpoints_convert.errors import brief, check, unexpected
from checkpoints_convert.known_objects import is_known_object
from checkpoints_convert.pickle_reader import MEMBER, Call, Global, Raw, refused
from checkpoints_convert.pickle_values import LOAD_FROM_BYTES, Made, Rules, Skipped, Values

_LONGEST_DEVICE = 64
_MOST_AXES = 64

# --- Arrays ---


def tensor(storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> np.ndarray:
    """A view of a storage, all counted in elements."""
    check(
        isinstance(storage, np.ndarray) and storage.ndim == 1, "a tensor's storage", f"a {type(storage).__name__}"
    )
    are_tuples = isinstance(size, tuple) and isinstance(stride, tuple) and len(size) <= _MOST_AXES
    check(
        are_tuples and len(stride) <= _MOST_AXES,
        "a tensor's size and strides",
        f"{brief(size)} and {brief(stride)}",
    )
    numbers = (offset, *size, *stride)
    sound = len(size) == len(stride) and all(type(number) is int and number >= 0 for number in numbers)
    check(sound, "a tensor's size and strides", f"{brief(size)} and {brief(stride)} at {brief(offset)}")
    end = offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if not all(size):
        offset = end = 0
    got = f"size {brief(size)} with strides {brief(stride)} at {offset}"
    check(end <= storage.size, f"a tensor inside its storage of {storage.size} elements", got)
    item, strides = storage.itemsize, [step * storage.itemsize for step in stride]
    return np.ndarray(size, storage.dtype, storage.view(np.uint8), offset * item, strides)


def _with_metadata(array: np.ndarray, metadata: Any, values: Values) -> np.ndarray:
    """Views that are to be conjugated or negated when they are read; no other metadata are known.

    PyTorch writes those that are so, and takes them for so whatever their values are: only True is unambiguous.
    """
    if not metadata:
        return array
    is_known = isinstance(metadata, dict) and metadata.keys() <= {"conj", "neg"}
    is_known = is_known and all(value is True for value in metadata.values())
    check(is_known, "a tensor that is at most conjugated or negated", f"one with the metadata {brief(metadata)}")
    if metadata.get("conj"):
        check(array.dtype.kind == "c", "a conjugated view to be complex", f"one of {array.dtype}")
        array = values.copied(array, np.conjugate)
    if metadata.get("neg"):
        check(array.dtype.kind not in "bu", "a negated view to have signs", f"one of {array.dtype}")
        array = values.copied(array, np.negative)
    return array


def _tensor_v1(made: Made) -> np.ndarray:
    return tensor(*made.number_of_args(4))


def _tensor_v2(made: Made) -> np.ndarray:
    args = made.number_of_args(6, 7)
    return _with_metadata(tensor(*args[:4]), args[6] if len(args) > 6 else None, made.values)


def _tensor_v3(made: Made) -> np.ndarray:
    storage, *place, _, _, dtype = made.number_of_args(7, 8)[:7]
    sound = isinstance(storage, np.ndarray) and isinstance(dtype, np.dtype)
    check(sound, "a storage and its dtype", f"{brief(type(storage))} and {brief(dtype)}")
    is_native = dtype.itemsize == 1 or not made.values.is_big_endian
    check(is_native, "tensors whose bytes are in order", f"big-endian ones of {dtype}, whose order is not known")
    raw = storage.view(np.uint8)
    array = tensor(raw[: raw.size // dtype.itemsize * dtype.itemsize].view(dtype), *place)
    return _with_metadata(array, made.args[7] if len(made.args) > 7 else None, made.values)


def _same_tensor(value: Any) -> np.ndarray:
    check(isinstance(value, np.ndarray), "a tensor", f"a {type(value).__name__}")
    return value


def _parameter(made: Made) -> np.ndarray:
    if len(made.number_of_args(3, 4)) > 3:
        _check_attributes(made.args[3])
    return _same_tensor(made.args[0])


def _check_attributes(state: Any) -> None:
    """Attributes beside a tensor are dropped; slots may be parts of the tensor itself."""
    slots = state[1] if isinstance(state, tuple) and len(state) == 2 else None
    check(not slots, "a tensor with plain attributes", "one that sets parts of itself")


def _from_type(made: Made) -> np.ndarray:
    """A tensor with attributes, or of a subclass that changes no values."""
    rebuild, kind, args, state = made.number_of_args(4)
    name = rebuild.name if isinstance(rebuild, Global) else brief(rebuild)
    check(name in _REBUILDS, "a dense tensor", f"one that {name} makes")
    kind_name = kind.name if isinstance(kind, Global) else brief(kind)
    check(
        kind_name in _TYPES, "a plain tensor", f"one of the class {kind_name}, whose values may mean something else"
    )
    _check_attributes(state)
    check(isinstance(args, tuple) and len(args) <= 8, "arguments of a tensor", brief(args))
    inner = Made(Call(rebuild, ()), made.values)
    inner.args = list(args)
    return _REBUILDS[name](inner)


def _of_device(made: Made) -> np.ndarray:
    """A tensor of another device, kept as an array or as a tensor in memory."""
    array, dtype, _device, _requires_grad = made.number_of_args(4)
    array = _same_tensor(array)
    if array.dtype == dtype:
        return array
    floats = {np.dtype(each) for each in ("float16", "float32", "float64", ml_dtypes.bfloat16)}
    check({array.dtype, dtype} <= floats, f"a tensor of {dtype}", f"one of {array.dtype}")
    return made.values.copied(array, lambda each: each.astype(dtype))


def _numpy_dtype(made: Made) -> Any:
    code = made.args[0] if made.args else None
    code = code.plain() if isinstance(code, Raw) else code
    if isinstance(code, str) and re.fullmatch(r"[USMm]\d{0,9}", code):
        return Skipped(f"numpy.dtype {code}")
    if not isinstance(code, str) or not re.fullmatch(r"[biufc]\d{1,2}", code):
        raise unexpected("NumPy arrays of numbers", f"one of {brief(code)}")
    order = made.state[1] if isinstance(made.state, list) and len(made.state) > 1 else "="
    order = order.plain() if isinstance(order, Raw) else order
    check(isinstance(order, str) and order in "<>=|", "a byte order", brief(order))
    return np.dtype(code).newbyteorder(order)  # pyright: ignore[reportArgumentType]  of these characters, as checked


def _numpy_array(raw: Any, dtype: Any, shape: Any, order: Any, values: Values) -> Any:
    if isinstance(dtype, Skipped):
        values.skipped[dtype.name] += 1
        return dtype
    check(isinstance(dtype, np.dtype) and order in ("C", "F"), "a NumPy dtype", brief(dtype))
    if isinstance(raw, str):  # Python 2 wrote bytes as texts
        values.budget.spend("bytes", len(raw))
        raw = raw.encode("latin1")
    data = raw.data if isinstance(raw, Raw) else raw
    check(isinstance(data, bytes | memoryview), "the bytes of an array", f"a {type(data).__name__}")
    sound = isinstance(shape, tuple) and len(shape) <= _MOST_AXES and all(type(n) is int and n >= 0 for n in shape)
    check(sound, "the shape of an array", brief(shape))
    array = np.ndarray(shape, dtype, data, order=order)
    fits = array.shape == shape and array.nbytes == len(data)
    check(fits, f"{array.nbytes} bytes for an array of shape {brief(array.shape)}", f"{len(data)}")
    return array if dtype.isnative else values.copied(array, lambda each: each.astype(dtype.newbyteorder("=")))


def _numpy_reconstructed(made: Made) -> Any:
    kind = made.args[0] if made.args else None
    is_array = isinstance(kind, Global) and kind.name == "numpy.ndarray" and isinstance(made.state, list)
    check(is_array and len(made.state) >= 4, "a NumPy array and its state", brief(type(kind)))
    shape, dtype, fortran, raw = made.state[-4:]
    return _numpy_array(raw, dtype, shape, "F" if fortran else "C", made.values)


def _numpy_scalar(made: Made) -> Any:
    dtype, raw = made.number_of_args(2)
    array = _numpy_array(raw, dtype, (1,), "C", made.values)
    return array if isinstance(array, Skipped) else array[0]


def _from_buffer(made: Made) -> Any:
    raw, dtype, shape, order = made.number_of_args(4)
    return _numpy_array(raw, dtype, shape, order, made.values)


def _from_bytes(made: Made) -> np.ndarray:
    [content] = made.number_of_args(1)
    read_bytes = made.values.read_bytes
    if read_bytes is None:
        raise unexpected(*refused(LOAD_FROM_BYTES))
    check(isinstance(content, Raw | bytes), "the bytes of a storage", f"a {type(content).__name__}")
    return read_bytes(content)


# --- Plain values ---


def _mapping(made: Made) -> dict[Any, Any]:
    """OrderedDict and Counter: at first from a mapping or from pairs, then with items."""
    keys, values = made.keys, made.pair_values
    if made.number_of_args(0, 1):
        [first] = made.args
        pairs = list(first.items()) if isinstance(first, dict) else first
        is_pairs = isinstance(pairs, list) and all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs)
        check(is_pairs, "a mapping", f"one of {brief(first)}")
        made.values.budget.spend("objects", len(pairs))
        keys, values = [key for key, _ in pairs] + keys, [value for _, value in pairs] + values
    return made.values.dict_of(keys, values)


def _default_mapping(made: Made) -> dict[Any, Any]:
    """defaultdict: what makes its default values is left out."""
    made.args = made.number_of_args(0, 1, 2)[1:]
    return _mapping(made)


def _namespace(made: Made) -> dict[Any, Any]:
    state = {} if made.state is None else made.state
    check(isinstance(state, dict), "the attributes of a Namespace", brief(state))
    made.values.budget.spend("objects", len(state))
    return dict(state)


def _encoded(made: Made) -> bytes:
    """How pickle's version 2 writes bytes."""
    text, codec = made.number_of_args(2)
    check(codec in ("latin1", "latin-1"), "bytes written as latin1", f"the codec {brief(codec)}")
    check(isinstance(text, str), "bytes written as a text", f"a {type(text).__name__}")
    made.values.budget.spend("bytes", len(text))
    return text.encode("latin1")


def _bytes(made: Made) -> bytes:
    """bytes() and bytearray(...), which pickle's version 2 gives nothing, bytes, or a text and latin1."""
    args = made.number_of_args(0, 1, 2)
    if len(args) == 2:
        return _encoded(made)
    content = args[0] if args else b""
    content = content.plain() if isinstance(content, Raw) else content
    if not isinstance(content, bytes):
        raise unexpected("bytes", f"a {type(content).__name__}")
    made.values.budget.spend("bytes", len(content))
    return content


def _set(made: Made) -> set[Any] | frozenset[Any]:
    items = made.number_of_args(0, 1)[0] if made.args else []
    check(isinstance(items, list | tuple | set | frozenset), "a set", f"one of a {type(items).__name__}")
    made.values.budget.spend("objects", len(items))
    return made.values.set_of(items, made.name.endswith("frozenset"))


def _size(made: Made) -> tuple[int, ...]:
    [size] = made.number_of_args(1)
    sound = isinstance(size, list | tuple) and len(size) <= _MOST_AXES and all(type(n) is int for n in size)
    check(sound, "the size of a tensor", brief(size))
    return tuple(size)


def _device(made: Made) -> str:
    parts = [part.plain() if isinstance(part, Raw) else part for part in made.number_of_args(1, 2)]
    sound = all(isinstance(part, str | int) for part in parts)
    text = ":".join(str(part) for part in parts) if sound and len(brief(parts[0])) < _LONGEST_DEVICE else ""
    check(0 < len(text) <= _LONGEST_DEVICE, "the name of a device", brief(parts))
    return text


def _complex(made: Made) -> complex:
    args = made.number_of_args(2)
    check(all(type(part) is float for part in args), "a complex number", brief(args))
    return complex(*args)


_REBUILDS: dict[str, Callable[[Made], np.ndarray]] = {
    "torch._utils._rebuild_tensor": _tensor_v1,
    "torch._utils._rebuild_tensor_v2": _tensor_v2,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_device_tensor_from_numpy": _of_device,
    "torch._utils._rebuild_device_tensor_from_cpu_tensor": _of_device,
}
_TYPES = frozenset((
    "torch.Tensor", "torch._tensor.Tensor", "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torchvision.tv_tensors._image.Image", "torchvision.tv_tensors._mask.Mask",
))  # fmt: skip
"""Classes of tensors that change no values."""

_CALLS: dict[str, Callable[[Made], Any]] = _REBUILDS | {
    "torch._tensor._rebuild_from_type_v2": _from_type,
    LOAD_FROM_BYTES: _from_bytes,
    "collections.OrderedDict": _mapping,
    "collections.Counter": _mapping,
    "collections.defaultdict": _default_mapping,
    "argparse.Namespace": _namespace,
    "_codecs.encode": _encoded,
    "torch.Size": _size,
    "torch.device": _device,
    "numpy.dtype": _numpy_dtype,
}
for _module in ("builtins", "__builtin__"):
    _CALLS |= {f"{_module}.{name}": _set for name in ("set", "frozenset")}
    _CALLS |= {f"{_module}.{name}": _bytes for name in ("bytes", "bytearray")}
    _CALLS[f"{_module}.complex"] = _complex
for _module in ("numpy.core", "numpy._core"):
    _CALLS[f"{_module}.multiarray._reconstruct"] = _numpy_reconstructed
    _CALLS[f"{_module}.multiarray.scalar"] = _numpy_scalar
    _CALLS[f"{_module}.numeric._frombuffer"] = _from_buffer

_MAPPINGS = frozenset(name for name, rule in _CALLS.items() if rule in (_mapping, _default_mapping))

_STORAGES = dict(
    Double="float64", Float="float32", Half="float16", BFloat16="bfloat16", Bool="bool",
    Long="int64", Int="int32", Short="int16", Char="int8", Byte="uint8",
    ComplexFloat="complex64", ComplexDouble="complex128",
)  # fmt: skip
_UNTYPED = (
    "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2", "float8_e5m2fnuz",
    "float8_e8m0fnu",
)  # fmt: skip
_DTYPES = {name: np.dtype(getattr(ml_dtypes, name, name)) for name in (*_STORAGES.values(), *_UNTYPED)}
_VALUES = {f"torch.{name}": dtype for name, dtype in _DTYPES.items()}
STORAGE_DTYPES = {f"torch.{name}Storage": _DTYPES[dtype] for name, dtype in _STORAGES.items()} | dict.fromkeys(
    ("torch.UntypedStorage", "torch.storage.UntypedStorage"), np.dtype("uint8")
)
"""Global of a storage's class -> dtype of its elements."""

_VALUES |= STORAGE_DTYPES
RULES = Rules(_CALLS, _MAPPINGS, _VALUES, _TYPES)
"""For the pickles of checkpoints."""

_KNOWN = _CALLS.keys() | _VALUES.keys() | _TYPES | {"numpy.ndarray", *MEMBER}


def find_global(name: str, *, skip_objects: bool = False) -> Global:
    """What a pickle may mean by a name.

    Args:
        name: module and name.
        skip_objects: whether every name that is not known stands for an object that is not built.

    Raises:
        CheckpointError: the name is not known.
    """
    if name in _KNOWN and not (skip_objects and name in MEMBER):
        return Global(name, is_object=False)
    check(skip_objects or is_known_object(name), *refused(name))
    return Global(name, is_object=True)
