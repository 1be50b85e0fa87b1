"""`checkpoints_convert.files` reads every format by its content alone, or says in one sentence why it does not."""

import io
import json
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
