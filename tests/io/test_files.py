"""`hourglass_jax.io.files`: a target is whole or not there, a plain file, and nothing is left beside it."""

import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import safetensors

from hourglass_jax.io import files
from hourglass_jax.io.files import replacing
from hourglass_jax.io.safetensors import read_safetensors, write_safetensors

HOLD = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_DFL)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup ignores it
from hourglass_jax.io.files import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def swept_again() -> None:
    """A folder is swept once in a process; every test is a process of its own in this."""
    files._sweep.cache_clear()


def holder(path: Path) -> subprocess.Popen:
    """A process that is writing a file."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def write(path: Path, text: str = "new") -> None:
    with replacing(path) as temporary:
        temporary.write_text(text)


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]
    with pytest.raises(KeyError), replacing(path) as temporary:
        temporary.write_text("newer")
        raise KeyError
    assert path.read_text() == "new" and names(path.parent) == ["a.txt"]


def test_a_symbolic_link_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("old")
    for name, target in (("link", "real"), ("dangling", "absent")):
        (tmp_path / name).symlink_to(target)
        with pytest.raises(ValueError, match=rf"{name} is a symbolic link"):
            write(tmp_path / name)
        assert (tmp_path / name).is_symlink()
    assert names(tmp_path) == ["dangling", "link", "real"] and (tmp_path / "real").read_text() == "old"


def test_a_pipe_and_a_device_are_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is a device or a pipe"):
        write(tmp_path / "pipe")
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode) and names(tmp_path) == ["pipe"]
    with pytest.raises(ValueError, match="/dev/null is a device or a pipe"):
        write(Path("/dev/null"))


def test_a_link_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is a symbolic link"), replacing(tmp_path / "a") as temporary:
        temporary.write_text("new")
        (tmp_path / "a").symlink_to("elsewhere")
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name)
def test_signals_that_end_the_process_leave_nothing(tmp_path: Path, number: int) -> None:
    process = holder(tmp_path / "a")
    assert len(names(tmp_path)) == 1
    process.send_signal(number)
    assert process.wait() == -number
    assert names(tmp_path) == []


def test_what_a_killed_process_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed, living = holder(tmp_path / "a"), holder(tmp_path / "b")
    killed.kill()
    killed.wait()
    (tmp_path / ".other.tmp").write_text("somebody else's")
    assert len(names(tmp_path)) == 3
    try:
        write(tmp_path / "c")
        left = names(tmp_path)
        assert len(left) == 3 and {".other.tmp", "c"} < {*left}, "that of the living process stays"
    finally:
        living.terminate()
        living.wait()
    assert names(tmp_path) == [".other.tmp", "c"]


def test_signals_have_their_handlers_again_afterwards(tmp_path: Path) -> None:
    def handler(*_: object) -> None:
        pass

    before = signal.signal(signal.SIGTERM, handler)
    try:
        with replacing(tmp_path / "a"):
            assert signal.getsignal(signal.SIGTERM) is handler
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with replacing(tmp_path / "a"), replacing(tmp_path / "b"):
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    threads = [threading.Thread(target=write, args=(tmp_path / str(number), str(number))) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(tmp_path / str(number)).read_text() for number in range(8)] == [*map(str, range(8))]
    assert len(names(tmp_path)) == 8


# --- Safetensors ---


def test_metadata_that_are_no_unicode_make_a_file_that_loads(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.pth")
    path = write_safetensors(tmp_path / "a", {"w": np.ones(2)}, lambda _: np.ones(2), {"source": name})
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"source": r"caf\udce9.pth"}
    assert read_safetensors(path)[1] == {"source": r"caf\udce9.pth"}


def test_no_imaginary_part_is_lost(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="w must have real numbers, got complex ones"):
        write_safetensors(tmp_path / "a", {"w": np.ones(2, np.float32)}, lambda _: np.ones(2) * 1j, {})
    path = write_safetensors(tmp_path / "a", {"w": np.ones(2, np.complex64)}, lambda _: np.ones(2) * 1j, {})
    np.testing.assert_array_equal(read_safetensors(path)[0]["w"], np.ones(2) * 1j)


ENTRY = '{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
HEADERS = {
    "twice": ('{"w":' + ENTRY + ',"w":' + ENTRY + "}", bytes(4), "a name that stands twice"),
    "overlap": ('{"w":' + ENTRY + ',"x":' + ENTRY + "}", bytes(4), "begins at byte 0 instead of 4"),
    "hole": ('{"w":' + ENTRY.replace("[0,4]", "[4,8]") + "}", bytes(8), "begins at byte 4 instead of 0"),
    "trailing": ('{"w":' + ENTRY + "}", bytes(5), "5 bytes of tensors, of which 4 are used"),
    "short": ('{"w":' + ENTRY + "}", bytes(3), "'w' of shape"),
    "shape": ('{"w":' + ENTRY.replace("[1]", "[2]") + "}", bytes(4), "'w' of shape"),
    "negative": ('{"w":' + ENTRY.replace("[1]", "[-1]") + "}", bytes(4), "a damaged shape or place"),
    "fraction": ('{"w":' + ENTRY.replace("[1]", "[1.0]") + "}", bytes(4), "a damaged shape or place"),
    "truth": ('{"w":' + ENTRY.replace("[1]", "[true]") + "}", bytes(4), "a damaged shape or place"),
    "infinite": ('{"w":' + ENTRY.replace("[1]", "[Infinity]") + "}", bytes(4), "a damaged shape or place"),
    "huge": ('{"w":' + ENTRY.replace("[1]", "[1099511627776,1099511627776]") + "}", bytes(4), "'w' of shape"),
    "many axes": ('{"w":' + ENTRY.replace("[1]", str([1] * 70)) + "}", bytes(4), "a damaged header"),
    "incomplete": ('{"w":{"dtype":"F32"}}', b"", "without dtype, shape and data_offsets"),
    "list": ("[1,2,3]", b"", "a header that is no object"),
    "number": ('{"w":1}', b"", "without dtype"),
    "metadata": ('{"__metadata__":{"a":1}}', b"", "metadata that are no texts"),
    "deep": ('{"w":' + "[" * 100_000, b"", "its header is no JSON"),
    "lists": ('{"w":[' + "[]," * 200_000 + "1]}", b"", "200002 lists and objects"),
    "utf-16": ('{"w":1}'.encode("utf-16").decode("latin1"), b"", "its header is no JSON"),
}


@pytest.mark.parametrize(("header", "data", "text"), HEADERS.values(), ids=HEADERS)
def test_damaged_headers_of_safetensors(tmp_path: Path, header: str, data: bytes, text: str) -> None:
    encoded = header.encode("latin1")
    (tmp_path / "a").write_bytes(len(encoded).to_bytes(8, "little") + encoded + data)
    with pytest.raises(safetensors.SafetensorError, match=text):
        read_safetensors(tmp_path / "a")


@pytest.mark.parametrize(
    "content", [b"", b"\1", bytes(8), b"\xff" * 8 + b"{}", (1 << 40).to_bytes(8, "little") + b"{}"]
)
def test_files_that_are_no_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(safetensors.SafetensorError):
        read_safetensors(tmp_path / "a")
