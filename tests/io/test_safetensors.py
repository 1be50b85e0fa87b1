"""`hourglass_jax.io.safetensors`: files that the safetensors library reads, written one tensor at a time."""

import json
import os
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.flax
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.io.safetensors import DTYPES, write_safetensors

Arrays = dict[str, np.ndarray]
METADATA = {"origin": "tests, é"}


def random_array(shape: tuple[int, ...], dtype: np.dtype, seed: int = 0) -> np.ndarray:
    """Random bytes; a bool is one of two values."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape)) * dtype.itemsize
    raw = rng.integers(0, 2 if dtype.name == "bool" else 256, size, np.uint8)
    return raw.view(dtype).reshape(shape)


def places(path: Path) -> dict[str, tuple[int, int]]:
    """Where each tensor begins in the file and where it ends."""
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    assert header.pop("__metadata__") == METADATA
    return {name: tuple(start + offset for offset in entry["data_offsets"]) for name, entry in header.items()}


def check(path: Path, arrays: Arrays) -> None:
    """Every bit is in its place, and the library agrees on names, dtypes, shapes and metadata."""
    content, found = path.read_bytes(), places(path)
    assert found.keys() == arrays.keys()
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == METADATA
        for name, array in arrays.items():
            start, end = found[name]
            part = file.get_slice(name)
            assert (DTYPES[part.get_dtype()], tuple(part.get_shape())) == (array.dtype, array.shape)
            assert start % array.itemsize == 0
            assert content[start:end] == array.tobytes()
            if array.dtype.isbuiltin == 1:  # not bfloat16 or float8
                read = file.get_tensor(name)
                assert read.tobytes() == array.tobytes() and read.shape == array.shape
    assert max((end for _, end in found.values()), default=len(content)) == len(content)


def write(path: Path, arrays: Arrays) -> Path:
    return write_safetensors(path, arrays, arrays.__getitem__, METADATA)


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("shape", [(2, 3, 5), (), (1,), (0, 4)], ids=str)
def test_every_dtype_and_shape(tmp_path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    check(write(tmp_path / "a.safetensors", {"w": random_array(shape, dtype)}), {"w": random_array(shape, dtype)})


@settings(deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=6).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from([*DTYPES.values()]), st.integers(0, 9)),
        max_size=8,
    )
)
def test_any_tensors(drawn: dict[str, tuple[list[int], np.dtype, int]]) -> None:
    arrays = {name: random_array(tuple(shape), dtype, seed) for name, (shape, dtype, seed) in drawn.items()}
    with TemporaryDirectory() as folder:
        check(write(Path(folder) / "a.safetensors", arrays), arrays)


def test_jax_loads_what_jax_wrote(tmp_path: Path) -> None:
    arrays = {
        "bfloat16": jnp.arange(6, dtype=jnp.bfloat16).reshape(2, 3),
        "float16": jnp.ones((3,), jnp.float16),
        "scalar": jnp.float32(0.1),
        "flags": jnp.array([True, False]),
        "none": jnp.zeros((0, 2), jnp.int32),
    }
    found = safetensors.flax.load_file(write(tmp_path / "new" / "folders" / "a.safetensors", arrays))
    assert found.keys() == arrays.keys()
    for name, array in arrays.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(4, 6).T,
        np.asfortranarray(np.arange(24.0).reshape(6, 4)),
        np.arange(48.0)[::2].reshape(6, 4),
        np.arange(24.0)[::-1].reshape(6, 4),
        np.broadcast_to(np.arange(4.0), (6, 4)),
        np.arange(24, dtype=">f8").reshape(6, 4),
        np.arange(24).reshape(6, 4),
        np.frombuffer(b"x" + bytes(192), np.float64, offset=1).reshape(6, 4),
        jnp.arange(24, dtype=jnp.bfloat16).reshape(6, 4),
    ],
    ids=["transposed", "fortran", "strided", "reversed", "expanded", "big", "integers", "unaligned", "bfloat16"],
)
def test_tensors_are_brought_into_order_and_dtype(tmp_path: Path, array: np.ndarray) -> None:
    shapes = {"w": jax.ShapeDtypeStruct((6, 4), np.float32)}
    path = write_safetensors(tmp_path / "a.safetensors", shapes, lambda _: array, {})
    with safetensors.safe_open(path, framework="numpy") as file:
        read = file.get_tensor("w")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, np.asarray(array, np.float32))


def test_a_dtype_of_another_byte_order_is_the_native_one(tmp_path: Path) -> None:
    arrays = {"w": np.arange(3, dtype=">f4")}
    check(write(tmp_path / "a.safetensors", arrays), {"w": np.arange(3, dtype="f4")})


def test_one_tensor_at_a_time(tmp_path: Path) -> None:
    given: list[weakref.ref[np.ndarray]] = []

    def tensor(name: str) -> np.ndarray:
        assert not any(array() is not None for array in given), name
        array = np.full((64, 64), int(name), np.float32)
        given.append(weakref.ref(array))
        return array.T

    shapes = {str(number): jax.ShapeDtypeStruct((64, 64), np.float16) for number in range(9)}
    path = write_safetensors(tmp_path / "a.safetensors", shapes, tensor, METADATA)
    assert len(given) == len(places(path)) == 9


def test_little_memory(tmp_path: Path) -> None:
    """Of nine tensors one is held at a time, and its copy in order."""
    shapes = {str(number): jax.ShapeDtypeStruct((512, 512), np.float32) for number in range(9)}
    tracemalloc.start()
    try:
        write_safetensors(tmp_path / "a.safetensors", shapes, lambda _: np.ones((512, 512), np.float32).T, {})
        assert tracemalloc.get_traced_memory()[1] < 2.5 * 4 * 512 * 512
    finally:
        tracemalloc.stop()


def test_the_file_can_be_read_by_others_as_far_as_the_umask_allows(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = write(tmp_path / "a.safetensors", {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def interrupted(name: str) -> np.ndarray:
    raise KeyboardInterrupt


def failing(name: str) -> np.ndarray:
    raise OSError("No space left on device")


FAILURES = {
    "interrupted": (interrupted, KeyboardInterrupt, "^$"),
    "failing": (failing, OSError, "No space left"),
    "misshapen": (lambda name: np.ones((3, 2)), ValueError, r"^second must have shape \(2, 3\), got \(3, 2\)$"),
    "shapeless": (lambda name: 1.0, ValueError, r"^second must have shape \(2, 3\), got \(\)$"),
}


@pytest.mark.parametrize("old", [None, b"old"], ids=["no file", "an old file"])
@pytest.mark.parametrize(("tensor", "error", "message"), FAILURES.values(), ids=FAILURES)
def test_a_failure_in_the_middle_leaves_nothing_new(
    tmp_path: Path, tensor: Callable[[str], np.ndarray], error: type[BaseException], message: str, old: bytes | None
) -> None:
    path = tmp_path / "a.safetensors"
    if old:
        path.write_bytes(old)
    shapes = {"first": jax.ShapeDtypeStruct((1 << 16,), np.int64), "second": jax.ShapeDtypeStruct((2, 3), np.int8)}
    temporary = []

    def give(name: str) -> np.ndarray:
        temporary.append([file.stat().st_size for file in tmp_path.iterdir() if file != path])
        return np.zeros(1 << 16) if name == "first" else tensor(name)

    with pytest.raises(error, match=message):
        write_safetensors(path, shapes, give, {})
    assert [len(sizes) for sizes in temporary] == [1, 1] and temporary[1][0] >= 8 << 16
    assert [*tmp_path.iterdir()] == ([path] if old else [])
    assert not old or path.read_bytes() == old


def test_a_target_that_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write(tmp_path / "folder", {"w": np.ones(2)})
    assert [file.name for file in tmp_path.rglob("*")] == ["folder"]


@pytest.mark.parametrize(
    ("array", "metadata", "message"),
    [
        (np.ones(2, np.complex128), {}, "w must have a dtype that safetensors files know, got complex128"),
        (np.array(["a"]), {}, "w must have a dtype that safetensors files know, got <U1"),
        (jnp.ones(2, jnp.int4), {}, "w must have a dtype that safetensors files know, got int4"),
        (np.ones(2), {"epoch": 3}, "the metadata 'epoch' must be a text, got 3"),
    ],
)
def test_what_the_format_cannot_hold(
    tmp_path: Path, array: np.ndarray, metadata: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_safetensors(tmp_path / "a.safetensors", {"w": array}, lambda _: array, metadata)
    assert not [*tmp_path.iterdir()]
