"""`checkpoints_convert.files` reads every format by its content alone, or says in one sentence why it does not."""

import hashlib
import io
import json
import os
import pickle
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.files import EMPTY, read
from hourglass_jax.io.safetensors import DTYPES, write_safetensors
from tests.convert.test_torch_file import Call, Global, pickled, tensor, write_legacy, write_zip
from tests.fuzz.mutants import protobuf

Arrays = dict[str, np.ndarray]
ARRAYS = {
    "blocks.0.weight": np.arange(24, dtype=np.float32).reshape(4, 6),
    "blocks.0.bias": np.array([0.1, -2, 3e8]),
    "half": np.arange(5, dtype=np.float16),
    "count": np.array(7),
    "flags": np.array([True, False]),
}


def state_dict(arrays: Arrays) -> dict[str, object]:
    return {"epoch": 3, "state_dict": {name: tensor(name, array) for name, array in arrays.items()}}


def write_torch(path: Path, arrays: Arrays) -> None:
    write_zip(path, state_dict(arrays), arrays)


def write_old_torch(path: Path, arrays: Arrays) -> None:
    write_legacy(path, state_dict(arrays), arrays)


def write_pickle(path: Path, arrays: Arrays) -> None:
    path.write_bytes(pickle.dumps({"model": arrays}))


def write_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez(file, **arrays)


def write_small_npz(path: Path, arrays: Arrays) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def write_library_safetensors(path: Path, arrays: Arrays) -> None:
    safetensors.numpy.save_file(arrays, path)


def write_our_safetensors(path: Path, arrays: Arrays) -> None:
    write_safetensors(path, arrays, arrays.__getitem__, {"format": "pt"})


def write_onnx(path: Path, arrays: Arrays) -> None:
    onnx = pytest.importorskip("onnx")
    initializers = [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()]
    path.write_bytes(
        onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], initializers)).SerializeToString()
    )


WRITERS = {
    "torch": write_torch,
    "old torch": write_old_torch,
    "pickle": write_pickle,
    "npz": write_npz,
    "compressed npz": write_small_npz,
    "safetensors": write_library_safetensors,
    "our safetensors": write_our_safetensors,
    "onnx": write_onnx,
}
FORMATS = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)
Write = Callable[[Path, Arrays], None]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint"


def same(found: Arrays, expected: Arrays) -> None:
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def refusal(path: Path, text: str) -> None:
    with pytest.raises(CheckpointError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(str(path)) and message.count(str(path)) == 1 and "\n" not in message
    assert text in message


@FORMATS
def test_tensors_without_elements_are_left_out_and_counted(path: Path, write: Write) -> None:
    write(path, ARRAYS | {"empty": np.zeros((0, 3), np.float32)})
    found = read(path)
    same(found, ARRAYS)
    assert found.skipped == {EMPTY: 1}
    write(path, {"empty": np.zeros((0, 3), np.float32)})
    refusal(path, "without any that has elements")


@FORMATS
@pytest.mark.parametrize("name", ["checkpoint", "checkpoint.pth", "checkpoint.npz", "checkpoint.safetensors"])
def test_the_content_decides_not_the_suffix(tmp_path: Path, write: Write, name: str) -> None:
    write(tmp_path / name, ARRAYS)
    same(read(tmp_path / name), ARRAYS)


@pytest.mark.parametrize("write", [write_torch, write_old_torch, write_npz, write_our_safetensors])
def test_arrays_are_views_of_the_file(path: Path, write: Write) -> None:
    array = np.zeros(1 << 20, np.float32)
    write(path, {"a": array, "b": array})
    tracemalloc.start()
    try:
        found = read(path)
        assert tracemalloc.get_traced_memory()[1] < array.nbytes / 10
    finally:
        tracemalloc.stop()
    same(found, {"a": array, "b": array})
    assert not found["a"].flags.writeable


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
def test_dtypes_of_safetensors(path: Path, dtype: np.dtype) -> None:
    arrays = {"w": np.array([[1, 2], [4, 8]]).astype(dtype)}
    write_our_safetensors(path, arrays)
    same(read(path), arrays)


@pytest.mark.parametrize("write", [write_npz, write_small_npz])
def test_layouts_of_npz(path: Path, write: Write) -> None:
    arrays = {
        "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
        "complex": np.arange(3) * 1j,
        "folder/name": np.arange(2, dtype=np.uint8),
        "scalar": np.array(1.5),
    }
    write(path, arrays | {"big-endian": np.arange(4, dtype=">f4")})
    same(read(path), arrays | {"big-endian": np.arange(4, dtype=np.float32)})


def test_one_format_may_look_like_another(path: Path) -> None:
    """The length of a safetensors header may be what another format begins with."""
    for length in (int.from_bytes(b"PK", "little"), 0x0280, 0x120108, int.from_bytes(b"<", "little")):
        header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, separators=(",", ":"))
        content = length.to_bytes(8, "little") + header.encode().ljust(length) + np.ones(2, "<f4").tobytes()
        path.write_bytes(content)
        same(read(path), {"w": np.ones(2, np.float32)})


# --- Files that are no checkpoint, or a damaged one ---


def test_no_file(tmp_path: Path) -> None:
    refusal(tmp_path / "absent.pth", "absent.pth: no such file")
    refusal(tmp_path, ": expected a file, got a folder")


def file_of(content: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for name, member in content.items():
            archive.writestr(name, member)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def header_only(entry: dict[str, object]) -> bytes:
    header = json.dumps({"w": entry}).encode()
    return len(header).to_bytes(8, "little") + header


def safetensors_of(dtype: str, size: int, data: bytes) -> bytes:
    shape = [4] if dtype == "F6_E2M3" else [1]
    return header_only({"dtype": dtype, "shape": shape, "data_offsets": [0, size]}) + data


OTHERS = {
    "empty": (b"", "an empty file"),
    "web page": (b"<!DOCTYPE html>\n<html><body>Not found</body></html>", "what looks like a web page"),
    "web page with a mark": (b"\xef\xbb\xbf\r\n  <html>", "what looks like a web page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 3\n", "a Git LFS pointer"),
    "text": (b"Access denied\n", "got a file that begins with b'Access denied\\n'"),
    "json": (b'{\n  "architectures": ["ViTModel"]\n}', "a JSON file"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(50), "a PNG image"),
    "jpeg": (b"\xff\xd8\xff\xe0\x00\x10JFIF", "a JPEG image"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
    "gzip": (b"\x1f\x8b\x08\x00" + bytes(50), "a gzip archive"),
    "npy": (npy(np.ones(2)), 'begins with b"\\x93NUMPY'),
    "zeros": (bytes(100), "begins with"),
    "pickled list": (pickled([1, 2]), "got a list"),
    "no tensors": (pickled({"epoch": 3}), "expected tensors by name, got none"),
    "hostile pickle": (pickled({"w": Call(Global("os", "system"), ("true",))}), "'os.system', which is refused"),
    "photographs": (file_of({"a.png": b"\x89PNG"}), "the members ['a.png']"),
    "empty archive": (file_of({}), "with data.pkl, got the members []"),
    "object array": (file_of({"w.npy": npy(np.array([{}]))}), "arrays of numbers, got 'w.npy' of dtype '|O'"),
    "text array": (file_of({"w.npy": npy(np.array("vit"))}), "arrays of numbers, got 'w.npy' of dtype '<U3'"),
    "void array": (
        file_of({"w.npy": npy(np.ones(2, ml_dtypes.bfloat16))}),
        "arrays of numbers, got 'w.npy' of dtype '<V2'",
    ),
    "mixed archive": (file_of({"w.npy": npy(np.ones(2)), "x.txt": b"text"}), "got a damaged one"),
    "short array": (file_of({"w.npy": npy(np.ones(2))[:-1]}), "got a damaged one"),
    "long array": (file_of({"w.npy": npy(np.ones(2)) + b"x"}), "expected 16 bytes in 'w.npy', got 17"),
    "hostile array": (
        file_of({"w.npy": npy(np.ones(2)).replace(b"(2,), }  ", b"(-2,), } ")}),
        "got a damaged one",
    ),
    "split shape": (
        file_of({"w.npy": npy(np.ones(12)).replace(b"(12,), }  ", b"(1 2,), } ")}),
        "got a damaged one",
    ),
    "no safetensors": (header_only({}), "expected a whole safetensors file, got a damaged one"),
    "overlong safetensors": (
        safetensors_of("F32", 4, bytes(5)),
        "expected a whole safetensors file, got a damaged one",
    ),
    "short safetensors": (
        safetensors_of("F32", 4, bytes(3)),
        "expected a whole safetensors file, got a damaged one",
    ),
    "unknown dtype": (
        safetensors_of("a\nb", 1, bytes(1)),
        r"BF16, C64, I64, I32, I16, I8, U64, U32, U16, U8, BOOL",
    ),
    "unreadable dtype": (safetensors_of("F6_E2M3", 3, bytes(3)), "F6_E2M3"),
    "empty safetensors": ((2).to_bytes(8, "little") + b"{}", "expected tensors, got a file without any"),
}


@pytest.mark.parametrize(("content", "text"), OTHERS.values(), ids=OTHERS)
def test_other_files(path: Path, content: bytes, text: str) -> None:
    path.write_bytes(content)
    refusal(path, text)


def test_object_arrays_are_never_unpickled(path: Path, tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple:
            return Path.touch, (tmp_path / "executed",)

    path.write_bytes(file_of({"w.npy": npy(np.array([Hostile()], object))}))
    refusal(path, "of dtype '|O'")
    assert not (tmp_path / "executed").exists()


@FORMATS
def test_every_truncation_is_found(path: Path, write: Write) -> None:
    write(path, ARRAYS)
    content = path.read_bytes()
    for length in range(0, len(content), 7):
        path.write_bytes(content[:length])
        refusal(path, "")
    path.write_bytes(content[:-1])
    refusal(path, "")


@FORMATS
def test_every_flipped_bit_is_found_or_harmless(path: Path, write: Write) -> None:
    """Zip archives have checksums; in other formats another value may be read, but nothing else may happen."""
    write(path, ARRAYS)
    content = path.read_bytes()
    has_checksums = content.startswith(b"PK")
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << place % 8]) + content[place + 1 :])
        try:
            found = read(path)
        except CheckpointError as error:
            assert str(error).startswith(str(path)) and "\n" not in str(error)
        else:
            if has_checksums:
                same(found, ARRAYS)


@pytest.mark.parametrize("write", [write_torch, write_npz, write_small_npz])
def test_a_flipped_bit_names_its_record(path: Path, write: Write) -> None:
    array = np.random.default_rng(0).normal(size=1000)
    write(path, {"w": array})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    refusal(path, "it is damaged" if write is not write_small_npz else "damaged")


def test_a_file_that_cannot_be_opened_is_no_damaged_one(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    write_torch(path, ARRAYS)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(PermissionError):
        read(path)


# --- One snapshot ---


@FORMATS
@pytest.mark.parametrize("change", ["truncated", "replaced", "overwritten"])
def test_arrays_stay_as_they_were_whatever_happens_to_the_file(path: Path, write: Write, change: str) -> None:
    write(path, ARRAYS)
    content = path.read_bytes()
    found = read(path)
    if change == "truncated":
        os.truncate(path, 10)
    elif change == "replaced":
        path.with_name("other").write_bytes(bytes(len(content)))
        path.with_name("other").replace(path)
    else:
        with path.open("r+b") as file:
            file.write(bytes(len(content)))
    same(found, ARRAYS)
    assert found.sha256 == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("size", [10, 3 << 20])
def test_a_file_that_changes_while_it_is_read_is_refused(
    path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    write_npz(path, {"w": np.zeros(1 << 18)})

    class Changing:
        def __init__(self, *_: object) -> None:
            pass

        def update(self, _: object) -> None:
            os.truncate(path, size)
            os.utime(path, (1, 1))

        def hexdigest(self) -> str:
            return ""

    monkeypatch.setattr("checkpoints_convert.snapshot.hashlib.sha256", Changing)
    refusal(path, "the file changed while it was read")


def test_a_file_that_does_not_fit_into_memory_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_npz(path, ARRAYS)
    monkeypatch.setattr("checkpoints_convert.snapshot.free_memory", lambda: 100)
    refusal(path, "do not fit into memory, of which 0.0 GiB are free")
    monkeypatch.setattr("checkpoints_convert.snapshot.free_memory", lambda: None)
    same(read(path), ARRAYS)


def test_what_is_no_checkpoint_is_refused_by_its_beginning(path: Path) -> None:
    path.write_bytes(b"RIFF")
    os.truncate(path, 1 << 40)
    refusal(path, "a file that begins with b'RIFF")


def test_what_is_no_plain_file(path: Path) -> None:
    os.mkfifo(path)
    refusal(path, "expected a file, got a device or a pipe")
    refusal(Path("/dev/zero"), "expected a file, got a device or a pipe")


# --- ONNX ---


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64", "int32", "uint8", "bool", "complex64"])
@pytest.mark.parametrize("is_raw", [True, False], ids=["raw", "typed"])
def test_elements_of_onnx(path: Path, dtype: str, is_raw: bool) -> None:
    onnx = pytest.importorskip("onnx")
    array = np.arange(6).reshape(2, 3).astype(dtype)
    code = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    values = array.tobytes() if is_raw else array.ravel()
    tensor = onnx.helper.make_tensor("w", code, array.shape, values, raw=is_raw)
    model = onnx.helper.make_model(onnx.helper.make_graph([], "g", [], [], [tensor]))
    path.write_bytes(model.SerializeToString())
    same(read(path), {"w": array})


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2], ids=str)
def test_small_floats_of_onnx(path: Path, dtype: type) -> None:
    array = np.arange(4).astype(dtype)
    write_onnx(path, {"w": array})
    same(read(path), {"w": array})


def onnx_model(*fields: tuple[int, object]) -> bytes:
    return protobuf([(1, 8), (7, [(5, [*fields])])])


TENSOR = [(1, 2), (2, 1), (8, b"w")]
OTHER_ONNX = {
    "external": (
        [*TENSOR, (13, [(1, b"location"), (2, b"../weights")]), (14, 1)],
        "in another file (external data)",
    ),
    "external by entries": ([*TENSOR, (9, bytes(8)), (13, [(1, b"location"), (2, b"x")])], "in another file"),
    "external by place": ([*TENSOR, (9, bytes(8)), (14, 1)], "in another file"),
    "texts": ([(1, 1), (2, 8), (8, b"w"), (6, b"text")], "weights that are numbers, got 'w', which holds texts"),
    "texts as bytes": ([(1, 1), (2, 8), (8, b"w"), (9, bytes(8))], "which holds texts"),
    "texts as numbers": ([*TENSOR, (9, bytes(8)), (6, b"text")], "which holds texts"),
    "no type": ([(1, 2), (8, b"w"), (9, bytes(8))], "'w' of type 0"),
    "four bits": ([(1, 2), (2, 22), (8, b"w"), (9, bytes(1))], "'w' of type 22"),
    "too few": ([*TENSOR, (9, bytes(4))], "the elements of 'w' of shape [2] in float32, got 4 bytes"),
    "too many": ([*TENSOR, (9, bytes(9))], "got 9 bytes"),
    "negative": ([(1, -2), (2, 1), (8, b"w"), (9, b"")], "the shape of a tensor"),
    "huge": ([(1, 1 << 40), (1, 1 << 40), (2, 1), (8, b"w"), (9, b"")], "got 0 bytes"),
    "two fields": ([*TENSOR, (9, bytes(8)), (4, bytes(8))], "in one field"),
    "twice": ([*TENSOR, (9, bytes(8)), (9, bytes(8))], "one run of bytes"),
    "a part": ([*TENSOR, (9, bytes(8)), (3, [(1, 0)])], "of a known type"),
    "long name": ([(1, 2), (2, 1), (8, b"w" * 1001), (9, bytes(8))], "names of up to 1000 characters"),
    "no name": ([(1, 2), (2, 1), (8, 5), (9, bytes(8))], "not a complete ONNX model"),
}


@pytest.mark.parametrize(("fields", "text"), OTHER_ONNX.values(), ids=OTHER_ONNX)
def test_what_is_refused_of_onnx(path: Path, fields: list[tuple[int, object]], text: str) -> None:
    path.write_bytes(onnx_model(*fields))
    refusal(path, text)


def test_models_of_onnx_with_other_graphs(path: Path) -> None:
    good = [*TENSOR, (9, np.ones(2, "<f4").tobytes())]
    path.write_bytes(protobuf([(1, 8), (7, [(5, good)])]))
    same(read(path), {"w": np.ones(2, np.float32)})
    for model, text in (
        ([(1, 8), (2, b"p")], "one graph, got one with 0"),
        ([(1, 8), (7, [(5, good)]), (7, [(5, good)])], "one graph, got one with 2"),
        ([(1, 8), (7, [(5, good), (5, good)])], "two weights that are called 'w'"),
        ([(1, 8), (7, [(2, b"g")])], "with weights (initializers), got one without"),
        ([(1, 8), (7, [(5, good), (15, [(1, good)])])], "expected dense weights"),
        ([(1, 8), (7, [(5, [])] * 60_000)], "more than 50,000 tensors"),
    ):
        path.write_bytes(protobuf(model))
        refusal(path, text)
