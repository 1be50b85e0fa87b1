"""Many photographs: bad ones do not stop the others, runs go on where they ended, and no failure is a traceback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.table import Table

import hourglass_jax as hj
from hourglass_jax.cli import main
from hourglass_jax.cli.options import console
from hourglass_jax.io import memory
from hourglass_jax.io.text import printable

pytestmark = pytest.mark.usefixtures("quick_compilation")

Run = Callable[..., int]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Three photographs, of which the second is broken and the last lies deeper."""
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in ("a.png", "deep/a.png"):
        Image.fromarray(random.integers(0, 256, (60, 80, 3), np.uint8)).save(folder / name)
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xff\xe0 broken")
    return folder


@pytest.fixture
def run(tiny_file: Path, tmp_path: Path) -> Run:
    """Runs a command with the tiny model; returns its exit status."""

    def run(command: str, *arguments: object) -> int:
        options = ["--size", "70", "--model", str(tiny_file), "--output", str(tmp_path / "out")]
        try:
            main([command, *map(str, arguments), *options])
        except SystemExit as exited:
            return int(exited.code or 0)
        return 0

    return run


def written(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("command", ["predict", "features"])
def test_a_bad_photograph_is_named_and_the_others_are_done(
    command: str, run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, photos, "--recursive") == 1
    printed = capsys.readouterr()
    assert "b.jpg cannot be decoded" in printed.err
    assert "2 of 3 photographs were done" in printed.err
    assert [line.split(":")[0] for line in printed.out.splitlines()] == [
        str(photos / "a.png"),
        str(photos / "deep/a.png"),
    ]
    kind = {"predict": "_saliency.png", "features": ".npz"}[command]
    assert {f"a{kind}", f"deep/a{kind}"} <= set(written(tmp_path / "out"))


def test_a_resumed_run_leaves_out_what_is_there(
    run: Run, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    (photos / "b.jpg").unlink()
    assert run("predict", photos, "--recursive", "--json") == 0
    first = json.loads(capsys.readouterr().out)
    out = tmp_path / "out"
    (out / "deep/a_overlay.png").unlink()
    done, predict = [], hj.Predictor.__call__

    def counted(self: hj.Predictor, image: np.ndarray) -> np.ndarray:
        done.append(image.shape)
        return predict(self, image)

    monkeypatch.setattr(hj.Predictor, "__call__", counted)
    assert run("predict", photos, "--recursive", "--json", "--resume") == 0
    assert json.loads(capsys.readouterr().out) == first
    assert len(done) == 1
    assert "deep/a_overlay.png" in written(out)
    assert run("predict", photos, "--recursive", "--resume", "--alpha", 1, "--clusters", 3, 3) == 2
    assert "predict.jsonl is the journal of another run: expected plan" in capsys.readouterr().err
    assert run("predict", photos, "--recursive") == 0
    assert len(done) == 3


def test_a_killed_run_can_be_resumed(run: Run, photos: Path, tiny_file: Path, tmp_path: Path, capsys) -> None:
    """Killed after the first photograph: every file is whole, and the rest is done."""
    (photos / "b.jpg").unlink()
    for number in range(6):
        Image.fromarray(np.full((60, 80, 3), 40 * number, np.uint8)).save(photos / f"n{number}.png")
    options = ["--size", "70", "--model", str(tiny_file), "--output", str(tmp_path / "out")]
    command = [sys.executable, "-m", "hourglass_jax.cli", "predict", str(photos), *options]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    journal = tmp_path / "out/predict.jsonl"
    while running.poll() is None and not (journal.exists() and journal.read_bytes().count(b"\n") > 1):
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    for path in (tmp_path / "out").glob("*.png"):
        Image.open(path).load()
    assert run("predict", photos, "--resume") == 0
    names = {"a", *(f"n{number}" for number in range(6))}
    assert {f"{name}_saliency.png" for name in names} <= set(written(tmp_path / "out"))


def test_memory_that_is_missing_is_one_sentence(
    run: Run, photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*arguments: object) -> None:
        raise MemoryError("Unable to allocate 6.2 GiB")

    monkeypatch.setattr(hj.Predictor, "_run", fail)
    assert run("predict", photos / "a.png") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "Unable to allocate 6.2 GiB" in line


def test_a_batch_that_does_not_fit_is_halved(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (70, 70, 3), np.uint8) for seed in range(5)]
    wanted = hj.Predictor(tiny_model)(images)
    sizes, whole = [], hj.Predictor._run

    def limited(self: hj.Predictor, batch: np.ndarray, image_sizes: list) -> object:
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return whole(self, batch, image_sizes)

    monkeypatch.setattr(hj.Predictor, "_run", limited)
    for a, b in zip(hj.Predictor(tiny_model)(images), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert sizes == [5, 2, 2, 2]


def test_a_batch_that_would_not_fit_is_halved_before_it_is_run(tiny_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system would kill the process; the need is compared with what is free once for every shape."""
    images = [np.random.default_rng(seed).integers(0, 256, (70, 70, 3), np.uint8) for seed in range(5)]
    wanted = hj.Predictor(tiny_model)(images)
    asked = []

    def free() -> int:
        asked.append(1)
        return 1 << 40 if len(asked) == 3 else 0

    monkeypatch.setattr(memory, "free_memory", free)
    predictor = hj.Predictor(tiny_model, batch_size=4)
    for a, b in zip(predictor(images), wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert len(asked) == 3
    predictor(images[:1])
    assert len(asked) == 3
    with pytest.raises(MemoryError, match="an image of 42 x 70 pixels at once would take"):
        predictor(images[0][:42])


@pytest.mark.parametrize("command", ["predict", "features", "compare", "bench"])
def test_what_would_not_fit_is_one_sentence_in_every_command(
    command: str, tiny_file: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda: 1000)
    options = ["--alpha", "1", "--clusters", "3", "3", "--size", "70", "--model", str(tiny_file)]
    sources = [] if command == "bench" else [str(photos / "a.png"), "--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as exited:
        main([command, *sources, *options])
    assert exited.value.code == 2
    [line] = capsys.readouterr().err.splitlines()
    assert "not enough memory, lower --size" in line
    assert "pixels at once would take 0.00 GiB, of which 0.00 GiB are free" in line


def test_a_photograph_that_changed_is_done_again(
    run: Run, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (photos / "b.jpg").unlink()
    Image.fromarray(np.zeros((60, 80, 3), np.uint8)).save(photos / "c.png")
    assert run("predict", photos) == 0
    before = (tmp_path / "out/a_saliency.png").read_bytes(), (tmp_path / "out/c_saliency.png").stat().st_mtime_ns
    Image.fromarray(np.full((60, 80, 3), 200, np.uint8)).save(photos / "a.png")
    assert run("predict", photos, "--resume") == 0
    assert (tmp_path / "out/a_saliency.png").read_bytes() != before[0]
    assert (tmp_path / "out/c_saliency.png").stat().st_mtime_ns == before[1]


@pytest.mark.parametrize(("command", "kind"), [("predict", "overlay"), ("features", "features")])
def test_no_photograph_is_replaced_by_a_result(
    command: str, kind: str, photos: Path, tiny_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Results may be written beside the photographs, of which one may be called like another's result."""
    own = photos / f"a_{kind}.png"
    own.write_bytes((photos / "a.png").read_bytes())
    (photos / "b.jpg").unlink()
    with pytest.raises(SystemExit) as exited:
        main([command, str(photos), "--size", "70", "--model", str(tiny_file), "--output", str(photos)])
    assert exited.value.code == 1
    assert own.read_bytes() == (photos / "a.png").read_bytes()
    assert f"a_{kind}.png is one of the photographs, and would be replaced" in capsys.readouterr().err
    assert (photos / f"a_{kind}_{kind}.png").exists()


def test_tables_show_nothing_that_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", title="a\x1b[2Jtitle")
    table.add_row("b\x1b[31m.png", "c\rd")
    console().print(table)
    console().print("e\x9bf\ng")
    shown = capsys.readouterr().out
    assert not set(shown) & set("\x1b\r\x9b")
    assert r"b\x1b[31m.png" in shown
    assert shown.endswith("e\\x9bf\ng\n")


def test_a_journal_is_a_plain_file(run: Run, photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "b.jpg").unlink()
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out/predict.jsonl")
    assert run("predict", photos, "--recursive", "--resume") == 2
    assert "predict.jsonl is a device or a pipe, which would be replaced" in capsys.readouterr().err


def test_results_are_no_photographs_of_the_next_run(run: Run, photos: Path, tmp_path: Path, monkeypatch) -> None:
    (photos / "b.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("predict", ".", "--recursive") == 0
    assert sorted(each.name for each in (tmp_path / "out").iterdir()) == ["photos", "predict.jsonl"]


def cli(*arguments: object, **options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "hourglass_jax.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_ctrl_c_ends_with_130_and_a_word() -> None:
    code = "from hourglass_jax import cli\ndef stop(): raise KeyboardInterrupt\ncli._commands = stop\ncli.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_ctrl_c_counts_in_a_callback_of_the_garbage_collector_too() -> None:
    """JAX has one; Python drops what is raised there."""
    code = """
import gc, time
from hourglass_jax import cli

def interrupt(phase, info):
    gc.callbacks.remove(interrupt)
    raise KeyboardInterrupt

def stop():
    gc.callbacks.append(interrupt)
    gc.collect()
    for _ in range(600):
        time.sleep(0.1)

cli._commands = stop
cli.main([])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_a_closed_pipe_is_no_error() -> None:
    running = cli("models")
    running.stdout.close()
    assert running.wait() in (0, 1)
    assert running.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no such device here")
def test_what_cannot_be_printed_is_one_line() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hourglass_jax.cli", "models"], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 2
    [line] = done.stderr.decode().splitlines()
    assert "No space left on device" in line


def test_without_an_output_a_command_works() -> None:
    """Whoever starts it may have closed both."""
    command = f"{sys.executable} -m hourglass_jax.cli models >&- 2>&-"
    assert subprocess.run(["sh", "-c", command], check=False).returncode == 0


def test_a_terminal_without_the_letters_shows_others() -> None:
    running = cli("models", env={**os.environ, "PYTHONIOENCODING": "ascii"})
    printed, errors = running.communicate()
    assert (running.returncode, errors) == (0, "")
    assert "dinov2-vits14-saliency" in printed


def test_without_a_writable_cache_a_command_works(tiny_file: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {key: value for key, value in os.environ.items() if key != "JAX_COMPILATION_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path / "file/cache"), "HOME": str(tmp_path / "file")}
    options = ["--size", 56, "--model", tiny_file, "-o", tmp_path / "out"]
    running = cli("predict", photos / "a.png", *options, env=environment)
    _, errors = running.communicate()
    assert (running.returncode, errors) == (0, "")
    assert "a_saliency.png" in written(tmp_path / "out")


def test_what_is_printed_is_printable() -> None:
    assert printable("a\x1b[31mred\x07\u202e\n") == r"a\x1b[31mred\x07\u202e\n"
    assert len(printable("x" * 5_000_000)) < 2100


@pytest.mark.parametrize("command", ["predict", "features", "compare"])
def test_a_plan_is_fitted_to_a_photograph_of_another_shape(
    command: str, run: Run, photos: Path, tmp_path: Path, capsys, caplog: pytest.LogCaptureFixture
) -> None:
    """5 x 5 clusters fit 5 x 5 tokens, not the 4 x 5 of this photograph; that is said."""
    plan = ["--alpha", 1, "--clusters", 5, 5]
    repeats = ["--repeats", 1] if command == "compare" else []
    assert run(command, photos / "a.png", *plan, *repeats) == 0
    said = capsys.readouterr().err + caplog.text
    assert "for images of 56 x 70 pixels the plan is Hourglass(alpha=1, clusters=(4, 5)" in said or "4 x 5" in said
    assert run(command, photos / "a.png", *plan, *repeats, "--strict-plan") == 2
    assert "got 5 x 5 clusters for 4 x 5 tokens" in capsys.readouterr().err


def test_photographs_at_once_are_written_as_one_by_one(run: Run, photos: Path, tmp_path: Path) -> None:
    """Three at once, of which one is broken: the other two are one batch."""
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (70, 50, 3), np.uint8)).save(photos / "c.png")
    assert run("predict", photos, "--recursive") == 1
    alone = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    (tmp_path / "out").rename(tmp_path / "alone")
    assert run("predict", photos, "--recursive", "--batch", 3) == 1
    together = {name: (tmp_path / "out" / name).read_bytes() for name in written(tmp_path / "out")}
    assert together.keys() == alone.keys()
    for name in together:
        if name.endswith(".png"):
            a, b = (np.asarray(Image.open(tmp_path / each / name), int) for each in ("alone", "out"))
            assert np.abs(a - b).max() <= 1, name


@pytest.mark.slow
def test_two_processes_share_the_photographs(tiny_file: Path, tmp_path: Path) -> None:
    """Started as Open MPI would."""
    (tmp_path / "photos").mkdir()
    for seed in range(3):
        image = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
        Image.fromarray(image).save(tmp_path / "photos" / f"{seed}.png")
    arguments = ["predict", str(tmp_path / "photos"), "--size", "70", "--model", str(tiny_file), "-o"]
    main([*arguments, str(tmp_path / "alone")])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
    }
    command = [sys.executable, "-m", "hourglass_jax.cli", *arguments, str(tmp_path / "out"), "--distributed"]
    processes = [
        subprocess.Popen(command, env={**os.environ, **started, "OMPI_COMM_WORLD_RANK": rank})
        for rank in ("0", "1")
    ]
    assert [process.wait() for process in processes] == [0, 0]
    pictures = [name for name in written(tmp_path / "alone") if name.endswith(".png")]
    assert [name for name in written(tmp_path / "out") if name.endswith(".png")] == pictures
    for name in pictures:
        a, b = (np.asarray(Image.open(tmp_path / each / name), int) for each in ("alone", "out"))
        assert np.abs(a - b).max() <= 1, name
