"""`checkpoints_convert.torch_file` on files written by hand in the official formats: good, or hostile."""

import argparse
import io
import pickle
import pickletools
import tracemalloc
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from checkpoints_convert.torch_file import CheckpointError, read_torch, tensors

# --- Writing checkpoints: the opcodes of pickle protocol 2 with the official names ---


@dataclass(frozen=True)
class Global:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    function: Any
    args: tuple
    state: Any = None


@dataclass(frozen=True)
class Persistent:
    pid: tuple


@dataclass(frozen=True)
class Opcodes:
    code: bytes


def encode(node) -> bytes:
    match node:
        case Opcodes(code):
            return code
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, args, state):
            built = b"" if state is None else encode(state) + b"b"
            return encode(function) + encode(args) + b"R" + built
        case Persistent(pid):
            return encode(pid) + b"Q"
        case tuple():
            return b"(" + b"".join(map(encode, node)) + b"t"
        case list():
            return b"](" + b"".join(map(encode, node)) + b"e"
        case dict():
            return b"}(" + b"".join(encode(item) for pair in node.items() for item in pair) + b"u"
    return pickletools.optimize(pickle.dumps(node, protocol=2))[2:-1]


def pickled(node) -> bytes:
    return b"\x80\x02" + encode(node) + b"."


STORAGES = {
    "float64": "Double", "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "bool": "Bool",
    "int64": "Long", "int32": "Int", "int16": "Short", "int8": "Char", "uint8": "Byte",
    "complex64": "ComplexFloat", "complex128": "ComplexDouble",
}  # fmt: skip
REBUILD = Global("torch._utils", "_rebuild_tensor_v2")
ORDERED_DICT = Global("collections", "OrderedDict")


def storage(key, array, *, numel=None, view=()):
    kind = Global("torch", STORAGES[array.dtype.name] + "Storage")
    return Persistent(("storage", kind, key, "cpu", array.size if numel is None else numel, *view))


def tensor(key, array, size=None, stride=None, offset=0, view=()):
    """A tensor over the storage `key`, which holds the elements of `array`; by default, all in order."""
    size = array.shape if size is None else size
    if stride is None:
        stride = tuple(step // array.itemsize for step in np.empty(size, array.dtype).strides)
    return Call(REBUILD, (storage(key, array, view=view), offset, size, stride, False, Call(ORDERED_DICT, ())))


def write_zip(path, tree, arrays, *, extra=None, method=zipfile.ZIP_STORED, order="little"):
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("archive/data.pkl", pickled(tree))
        for name, content in {
            "byteorder": order,
            "version": "3\n",
            ".data/serialization_id": "42",
            **(extra or {}),
        }.items():
            if content is not None:
                archive.writestr(f"archive/{name}", content)
        for key, array in arrays.items():
            archive.writestr(f"archive/data/{key}", array.tobytes())
    return path


def write_legacy(path, tree, arrays):
    system = {
        "protocol_version": 1001,
        "little_endian": True,
        "type_sizes": {"short": 2, "int": 4, "long": 4},
    }
    content = b"".join(map(pickled, (0x1950A86A20F9469CFC6C, 1001, system, tree, [*arrays])))
    for array in arrays.values():
        content += array.size.to_bytes(8, "little") + array.tobytes()
    path.write_bytes(content)
    return path


def write_either(path, tree, arrays, is_zip):
    return (write_zip if is_zip else write_legacy)(path, tree, arrays)


FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


def example(dtype="float32"):
    return np.arange(24).reshape(2, 3, 4).astype(np.dtype(getattr(ml_dtypes, dtype, dtype)))


def refusal(path, text="") -> str:
    with pytest.raises(CheckpointError) as error:
        read_torch(path)
    message = str(error.value)
    assert message.startswith(f"{path}: expected ") and ", got " in message and text in message
    assert "\n" not in message.removeprefix(str(path))
    return message


# --- Tensors ---


@FORMATS
@pytest.mark.parametrize("dtype", STORAGES)
def test_dtypes(path, dtype, is_zip):
    array = example(dtype)
    write_either(path, {"a": tensor("0", array, view=() if is_zip else (None,))}, {"0": array}, is_zip)
    read = read_torch(path)["a"]
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


@FORMATS
def test_views_share_their_storage(path, is_zip):
    array = example()
    flat = array.ravel()
    tree = {
        "all": tensor("0", flat),
        "transposed": tensor("0", flat, (4, 6), (1, 4)),
        "sliced": tensor("0", flat, (3, 2), (8, 2), 5),
        "expanded": tensor("0", flat, (7, 4), (0, 1), 20),
        "last": tensor("0", flat, (), (), 23),
        "empty": tensor("0", flat, (0, 5), (5, 1), 0),
        "one": tensor("0", flat, (1,), (1000,), 3),
    }
    read = read_torch(write_either(path, tree, {"0": flat}, is_zip))
    np.testing.assert_array_equal(read["all"], flat)
    np.testing.assert_array_equal(read["transposed"], flat.reshape(6, 4).T)
    np.testing.assert_array_equal(read["sliced"], [[5, 7], [13, 15], [21, 23]])
    np.testing.assert_array_equal(read["expanded"], np.tile(flat[20:], (7, 1)))
    assert read["last"].shape == () and read["last"] == 23
    assert read["empty"].shape == (0, 5)
    np.testing.assert_array_equal(read["one"], [3])
    assert np.shares_memory(read["all"], read["transposed"])
    assert not read["all"].flags.writeable


def test_a_huge_expanded_tensor_stays_a_view(path):
    read = read_torch(write_zip(path, {"a": tensor("0", np.ones(1), (1 << 40,), (0,))}, {"0": np.ones(1)}))
    assert read["a"].strides == (0,)


def test_legacy_storage_views(path):
    """Files of PyTorch before 0.4 hold storages that are views of others."""
    array = np.arange(10.0)
    tree = {"a": tensor("7", array, (2, 2), (2, 1), 1, view=(("8", 3, 5),))}
    np.testing.assert_array_equal(read_torch(write_legacy(path, tree, {"7": array}))["a"], [[4, 5], [6, 7]])
    refusal(write_legacy(path, {"a": tensor("7", array, (1,), (1,), view=(("8", 7, 4),))}, {"7": array}))
    refusal(write_legacy(path, {"a": tensor("7", array, (1,), (1,), view=(("8", -7, 4),))}, {"7": array}))


@pytest.mark.parametrize("dtype", STORAGES)
def test_big_endian_archives(path, dtype):
    array = example(dtype)
    write_zip(path, {"a": tensor("0", array)}, {"0": array.byteswap()}, order="big")
    np.testing.assert_array_equal(read_torch(path)["a"], array)


def test_archives_of_older_and_other_writers(path):
    array = example()
    for options in ({"extra": {"byteorder": None}}, {"method": zipfile.ZIP_DEFLATED}):
        np.testing.assert_array_equal(
            read_torch(write_zip(path, {"a": tensor("0", array)}, {"0": array}, **options))["a"], array
        )


def test_dtypes_without_a_storage_class(path):
    array = np.arange(6, dtype=np.uint16)
    kind = Global("torch.storage", "UntypedStorage")
    pid = Persistent(("storage", kind, "0", "cpu", array.nbytes))
    args = (pid, 1, (2, 2), (2, 1), False, Call(ORDERED_DICT, ()), Global("torch", "uint16"))
    write_zip(path, {"a": Call(Global("torch._utils", "_rebuild_tensor_v3"), args)}, {"0": array})
    np.testing.assert_array_equal(read_torch(path)["a"], np.array([[1, 2], [3, 4]], np.uint16))


@pytest.mark.parametrize(
    ("size", "stride", "offset"),
    [
        ((25,), (1,), 0),
        ((24,), (1,), 1),
        ((2,), (24,), 0),
        ((1,), (1,), -1),
        ((2,), (-1,), 5),
        ((-1,), (1,), 0),
        ((), (), 24),
        ((2, 2), (1,), 0),
        ((2,), (1 << 62,), 0),
        ((1 << 62,), (1,), 0),
        ((1 << 40, 1 << 40), (0, 0), 0),
        ((1,) * 200, (1,) * 200, 0),
        ((2.0,), (1,), 0),
        (("2",), (1,), 0),
        ((1 << 200,), (0,), 0),
    ],
)
@FORMATS
def test_tensors_stay_inside_their_storage(path, size, stride, offset, is_zip):
    array = np.arange(24.0)
    refusal(write_either(path, {"a": tensor("0", array, size, stride, offset)}, {"0": array}, is_zip))


@pytest.mark.parametrize("numel", [23, 25, -24, 1 << 62, 1 << 200])
@FORMATS
def test_storages_have_their_size(path, numel, is_zip):
    array = np.arange(24.0)
    tree = {"a": Call(REBUILD, (storage("0", array, numel=numel), 0, (1,), (1,), False, None))}
    refusal(write_either(path, tree, {"0": array}, is_zip), "elements of float64")


# --- What stands beside the tensors ---


@FORMATS
def test_training_checkpoint(path, is_zip):
    array = example("bfloat16")
    weight = tensor("0", array)
    state = Call(ORDERED_DICT, (), state={"_metadata": Call(ORDERED_DICT, ())})
    items = b"(" + encode("weight") + encode(weight) + b"u"
    namespace = Opcodes(
        encode(Global("argparse", "Namespace"))
        + b")\x81"
        + encode({"lr": 0.1, "device": Call(Global("torch", "device"), ("cuda", 1))})
        + b"b"
    )
    tree = {
        "model": Opcodes(encode(Call(ORDERED_DICT, ())) + items),
        "old_order": Call(ORDERED_DICT, ([["x", 1], ["y", 2]],)),
        "with_metadata": state,
        "optimizer": {
            "state": {0: {"step": 3, "exp_avg": weight}},
            "param_groups": [{"params": [0], "betas": (0.9, 0.99)}],
        },
        "parameter": Call(Global("torch._utils", "_rebuild_parameter"), (weight, True, Call(ORDERED_DICT, ()))),
        "stateful": Call(
            Global("torch._utils", "_rebuild_parameter_with_state"),
            (weight, True, Call(ORDERED_DICT, ()), {"x": 1}),
        ),
        "oldest": Call(Global("torch._utils", "_rebuild_tensor"), (storage("0", array), 2, (2,), (3,))),
        "args": namespace,
        "size": Call(Global("torch", "Size"), ((2, 3),)),
        "dtype": Global("torch", "bfloat16"),
        "milestones": Call(Global("collections", "Counter"), ({30: 1},)),
        "best": np.float64(0.5),
        "count": np.int32(7),
        "text": "é",
        "bytes": b"\x00\xff",
        "nothing": b"",
        "sets": ({1, 2}, frozenset({3})),
        "epoch": 12,
    }
    read = read_torch(write_either(path, tree, {"0": array}, is_zip))
    for key in ("parameter", "stateful"):
        np.testing.assert_array_equal(read.pop(key), array)
    np.testing.assert_array_equal(read.pop("oldest"), array.ravel()[[2, 5]])
    np.testing.assert_array_equal(read.pop("optimizer")["state"][0]["exp_avg"], array)
    assert isinstance(read["best"], np.float64) and isinstance(read["count"], np.int32)
    found = tensors(read)
    assert [*found] == ["weight"]
    np.testing.assert_array_equal(found["weight"], array)
    del read["model"]
    assert read == {
        "old_order": {"x": 1, "y": 2},
        "with_metadata": {},
        "args": {"lr": 0.1, "device": "cuda:1"},
        "size": (2, 3),
        "dtype": np.dtype(ml_dtypes.bfloat16),
        "milestones": {30: 1},
        "best": 0.5,
        "count": 7,
        "text": "é",
        "bytes": b"\x00\xff",
        "nothing": b"",
        "sets": ({1, 2}, frozenset({3})),
        "epoch": 12,
    }


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickles_of_numpy_arrays(path, protocol):
    """As in detectron2's model zoo."""
    model = {
        "backbone.weight": example(),
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "big-endian": np.arange(4, dtype=">f4"),
        "half": np.arange(4, dtype=np.float16),
        "flags": np.array([True, False]),
        "zero-dimensional": np.array(2.5),
        "empty": np.zeros((0, 3)),
    }
    tree = {
        "model": model,
        "__author__": "Detectron2",
        "matching_heuristics": True,
        "args": argparse.Namespace(a=1),
    }
    path.write_bytes(pickle.dumps(tree, protocol=protocol))
    read = read_torch(path)
    assert read["__author__"] == "Detectron2" and read["args"] == {"a": 1}
    found = tensors(read)
    assert [*found] == [*model]
    for name, array in model.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


def test_pickles_of_python_2(path):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)

    def text(content):
        return Opcodes(b"T" + len(content).to_bytes(4, "little") + content)

    dtype = Call(Global("numpy", "dtype"), (text(b"f4"), 0, 1), (3, text(b"<"), None, None, None, -1, -1, 0))
    reconstruct = Global("numpy.core.multiarray", "_reconstruct")
    weight = Call(
        reconstruct,
        (Global("numpy", "ndarray"), (0,), text(b"b")),
        (1, (2, 3), dtype, False, text(array.tobytes())),
    )
    path.write_bytes(pickled({text(b"weight"): weight}))
    np.testing.assert_array_equal(read_torch(path)["weight"], array)


def test_tensors_rule():
    array = np.ones(2)
    assert [*tensors({"a.weight": array, "epoch": 3, "best": np.float32(1), 0: array, "list": [array]})] == [
        "a.weight"
    ]
    assert [*tensors({"state_dict": {"model": {"w": array}, "x": array}, "optimizer": {"m": array}})] == ["w"]
    assert [*tensors({"net": {"a": {"b": array}, "c": array}, "model": 3})] == ["a.b", "c"]
    assert [*tensors({"a": {"w": array}, "optimizer": {"m": array}, "args": {"x": array}})] == ["a.w"]
    assert [*tensors({"model": {"head": {"config": {"w": array}}}})] == ["head.config.w"]
    for tree, text in (
        ({}, "tensors by name"),
        ({"model": {}, "epoch": 3}, r"\['model', 'epoch'\]"),
        ({"a.b": array, "a": {"b": array}}, "two called 'a.b'"),
        ({"a": (shared := {"b": array}), "c": shared}, "twice"),
    ):
        with pytest.raises(CheckpointError, match=text):
            tensors(tree)


# --- Memory ---


def test_archives_are_mapped(path):
    array = np.zeros(1 << 22, np.float32)
    write_zip(path, {"a": tensor("0", array)}, {"0": array})
    tracemalloc.start()
    try:
        read = read_torch(path)
        assert read["a"].size == array.size
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 10
    finally:
        tracemalloc.stop()


def test_pickled_arrays_are_not_copied(path):
    array = np.zeros(1 << 20, np.float32)
    path.write_bytes(pickle.dumps({str(n): array + n for n in range(8)}, protocol=4))
    tracemalloc.start()
    try:
        read = read_torch(path)
        assert len(read) == 8
        assert tracemalloc.get_traced_memory()[1] < 1.3 * path.stat().st_size
    finally:
        tracemalloc.stop()


# --- Files that are no checkpoint, or a damaged one ---


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "begins with"),
        (b"\x89HDF\r\n\x1a\n", "begins with"),
        (bytes(100), "begins with"),
        (b"PK\3\4" + bytes(100), "cut short or damaged"),
        (b"\x80\x02", "cut short or damaged"),
        (b"\x80\x02}", "cut short or damaged"),
        (b"\x80\xff}.", "cut short or damaged"),
        (pickled([1, 2]), "a list"),
        (pickled(0x1950A86A20F9469CFC6C) + pickled(1000), "version 1001"),
        (pickled({"a": storage("0", np.ones(1))}), "the storage '0'"),
    ],
)
def test_other_files(path, content, text):
    path.write_bytes(content)
    refusal(path, text)


def test_missing_file(path):
    with pytest.raises(FileNotFoundError):
        read_torch(path)


def test_other_archives(path):
    np.savez(path.with_suffix(".npz"), a=np.ones(2))
    refusal(path.with_suffix(".npz"), "a.npy")
    refusal(write_zip(path, {}, {}, extra={"constants.pkl": pickled(())}), "TorchScript")
    refusal(write_zip(path, {}, {}, extra={"code/__torch__.py": "x"}), "TorchScript")
    refusal(write_zip(path, {}, {}, order="middle"), "byte order")
    refusal(write_zip(path, {}, {}, method=zipfile.ZIP_BZIP2), "stored or deflated")
    refusal(write_zip(path, {"a": tensor("9", example())}, {}), "the record 'archive/data/9'")
    refusal(write_zip(path, {}, {"0": np.zeros(1 << 20)}, method=zipfile.ZIP_DEFLATED), "an archive of weights")


def small_files(path):
    array = np.arange(6.0)
    tree = {"model": {"a": tensor("0", array, (2, 3), (1, 2)), "b": tensor("0", array)}, "epoch": 3}
    yield write_zip(path, tree, {"0": array}).read_bytes(), True
    yield write_zip(path, tree, {"0": array}, method=zipfile.ZIP_DEFLATED).read_bytes(), True
    yield write_legacy(path, tree, {"0": array}).read_bytes(), False
    yield pickle.dumps({"model": {"a": array.reshape(2, 3).T, "b": array}, "epoch": 3}, protocol=4), False


def test_every_truncation_is_found(path):
    for content, _ in small_files(path):
        for length in range(0, len(content), 5):
            path.write_bytes(content[:length])
            refusal(path)


def test_every_damaged_byte_is_found_or_harmless(path):
    """In the formats without checksums another value may be read, but nothing else may happen."""
    for content, has_checksums in small_files(path):
        path.write_bytes(content)
        sound = {name: array.copy() for name, array in tensors(read_torch(path)).items()}
        for place in range(len(content)):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
            try:
                read = tensors(read_torch(path))
            except CheckpointError:
                continue
            if has_checksums:
                assert [*read] == [*sound]
                for name, array in read.items():
                    np.testing.assert_array_equal(array, sound[name])


def test_a_flipped_bit_names_its_record(path):
    array = np.arange(1000.0)
    content = bytearray(write_zip(path, {"a": tensor("0", array)}, {"0": array}).read_bytes())
    content[content.index(array.tobytes()) + 4000] ^= 1
    path.write_bytes(content)
    refusal(path, "the record 'archive/data/0'")


def test_archives_without_checksums(path):
    """`torch.utils.serialization.config.save.compute_crc32 = False` writes zeros."""
    array = np.arange(6.0)
    content = write_zip(path, {"a": tensor("0", array)}, {"0": array}).read_bytes()
    for member in zipfile.ZipFile(io.BytesIO(content)).infolist():
        content = content.replace(member.CRC.to_bytes(4, "little"), bytes(4))
    path.write_bytes(content)
    np.testing.assert_array_equal(read_torch(path)["a"], array)


# --- Hostile files ---


def hostile(path, node, is_zip=True):
    return write_zip(path, {"a": node}, {}) if is_zip else write_legacy(path, {"a": node}, {})


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("posix", "system"),
        ("subprocess", "Popen"),
        ("builtins", "eval"),
        ("builtins", "exec"),
        ("builtins", "getattr"),
        ("__builtin__", "eval"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v2.__globals__"),
        ("torch", "_utils.sys.modules"),
        ("collections", "OrderedDict.__init__"),
        ("functools", "partial"),
        ("pickle", "loads"),
        ("copyreg", "_reconstructor"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "fromfile"),
        ("segm.model.segmenter", "Segmenter"),
    ],
)
@pytest.mark.parametrize("stacked", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
def test_every_other_global_is_refused_by_name(path, tmp_path, module, name, stacked):
    victim = tmp_path / "executed"
    argument = f"touch {victim}" if name == "system" else f"open({str(victim)!r}, 'w')"
    function = Opcodes(encode(module) + encode(name) + b"\x93") if stacked else Global(module, name)
    for node in (
        Call(function, (argument,)),
        function,
        Opcodes(encode(function) + encode((argument,)) + b"\x81"),
        Opcodes(b"(" + encode(function) + encode(argument) + b"o"),
        Opcodes(b"(" + encode(argument) + f"i{module}\n{name}\n".encode()),
    ):
        for is_zip in (True, False):
            refusal(hostile(path, node, is_zip), f"the global '{module}.{name}', which is refused")
        path.write_bytes(pickled({"model": {"w": node}}))
        refusal(path, f"the global '{module}.{name}', which is refused")
    assert not victim.exists()


NDARRAY = Global("numpy", "ndarray")
RECONSTRUCT = Global("numpy.core.multiarray", "_reconstruct")
SCALAR = Global("numpy._core.multiarray", "scalar")
FLOAT = Call(Global("numpy", "dtype"), ("f4", False, True))


def ndarray(shape=(1,), dtype=FLOAT, raw=b"1234", kind=NDARRAY):
    return Call(RECONSTRUCT, (kind, (0,), b"b"), (1, shape, dtype, False, raw))


@pytest.mark.parametrize(
    "node",
    [
        ndarray(kind=Global("argparse", "Namespace")),
        ndarray(kind=ORDERED_DICT),
        ndarray(dtype=Call(Global("numpy", "dtype"), ("O8", False, True)), raw=[1]),
        ndarray(dtype=Call(Global("numpy", "dtype"), ("O", False, True)), raw=bytes(8)),
        ndarray(dtype=Call(Global("numpy", "dtype"), ("V8", False, True)), raw=bytes(8)),
        ndarray(dtype=Call(Global("numpy", "dtype"), ("f4,O",)), raw=bytes(12)),
        ndarray(dtype=Call(Global("numpy", "dtype"), ("f4", False, True), (3, "!", None, None, None, -1, -1, 0))),
        ndarray(dtype="O", raw=bytes(8)),
        ndarray(shape=(1 << 40,)),
        ndarray(shape=(0,)),
        ndarray(shape=(-1,)),
        Call(RECONSTRUCT, (NDARRAY, (0,), b"b")),
        Call(SCALAR, ("O", bytes(8))),
        Call(SCALAR, (FLOAT, b"12")),
        Call(Global("numpy.core.numeric", "_frombuffer"), (bytes(8), "O", (1,), "C")),
        Call(NDARRAY, ((1,), "O")),
        Call(Global("torch", "FloatStorage"), ()),
        Call(REBUILD, ([1.0], 0, (1,), (1,), False, None)),
        Call(REBUILD, (ndarray(), 0, (2,), (1,), False, None)),
        Call(REBUILD, ()),
        REBUILD,
        Call(Global("_codecs", "encode"), ("x", "rot13")),
        Call(Global("_codecs", "encode"), ("x", "utf-16")),
        Persistent(("module", Global("torch", "Size"), "x.py", "import os")),
        Persistent(("storage", REBUILD, "0", "cpu", 1)),
        Persistent(("storage", "FloatStorage", "0", "cpu", 1)),
        Persistent(("storage", Global("torch", "FloatStorage"), ["0"], "cpu", 1)),
        Persistent((1,)),
        Opcodes(encode({"b": 1}) + encode({"__class__": 1}) + b"b"),
        Opcodes(encode([1]) + encode((None, {"append": 1})) + b"b"),
        Opcodes(encode(REBUILD) + encode({"__call__": 1}) + b"b"),
        Opcodes(encode(ORDERED_DICT) + encode((None, {"build": 1, "__init__": 1})) + b"b"),
        Opcodes(encode(ORDERED_DICT) + encode({"x": 1}) + encode(1) + b"s"),
        Opcodes(b"\x82\x01"),
        Opcodes(b"Nr\xff\xff\xff\x7f"),
        Opcodes(b"Np999999999\n"),
        Opcodes(b"]q\x50h\x50a"),
        Opcodes(b"(" * 3000 + b"t" * 3000),
        Opcodes(b"\x8e" + (1 << 62).to_bytes(8, "little")),
        Opcodes(b"L" + b"9" * 10000 + b"L\n"),
    ],
)
def test_nothing_else_is_built(path, node):
    for is_zip in (True, False):
        refusal(hostile(path, node, is_zip))
    array = np.ones(2)
    tree = {"a": Opcodes(encode(Call(ORDERED_DICT, ())) + encode("w") + encode(tensor("0", array)) + b"s")}
    np.testing.assert_array_equal(read_torch(write_zip(path, tree, {"0": array}))["a"]["w"], array)


def test_repeated_containers_are_built_once(path):
    """Sixty lists of the list before, twice: more leaves than could ever be copied or printed."""
    bomb = Opcodes(b"]q\x01" + b"".join(b"0](h%ch%ceq%c" % (n, n, n + 1) for n in range(1, 61)))
    node = read_torch(hostile(path, bomb))["a"]
    assert node[0] is node[1]
    for node in (
        ndarray(dtype=bomb),
        ndarray(shape=bomb),
        ndarray(kind=bomb),
        Call(Global("numpy", "dtype"), (bomb,)),
        Call(Global("_codecs", "encode"), ("x", bomb)),
        Call(REBUILD, (ndarray(), 0, bomb, (1,), False, None)),
        Call(REBUILD, (ndarray(), bomb, (1,), (1,), False, None)),
        Call(Global("torch", "device"), ("cpu", bomb)),
        Persistent((bomb,) * 5),
    ):
        refusal(hostile(path, node))


def test_states_of_ordered_dicts_are_not_attributes(path):
    tree = Opcodes(encode(Call(ORDERED_DICT, (), {"items": 1, "build": 2})) + encode("x") + encode(3) + b"s")
    read = read_torch(hostile(path, tree))
    assert read == {"a": {"x": 3}}
    assert type(read["a"]) is dict and not isinstance(read["a"], OrderedDict)
