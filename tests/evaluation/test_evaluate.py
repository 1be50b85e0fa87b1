"""Evaluations: their figures, journals that outlive a kill, several devices and processes, and the command."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image
from sklearn.metrics import confusion_matrix

import hourglass_jax as hj
from hourglass_jax.cli.evaluate import eval as command
from hourglass_jax.evaluation.datasets import Dataset, open_dataset
from hourglass_jax.evaluation.evaluate import evaluate, input_size
from hourglass_jax.io.files import file_hash
from hourglass_jax.metrics.segmentation import IGNORED, Scores, SegmentationMetric
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.models.segmenter import Segmenter

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAN = hj.Hourglass(1, (2, 3), temperature=5.0, neighbors=3, reconstruct="logits")
METRIC = SegmentationMetric(19)
OPTIONS = {"weights": "random", "size": 32, "batch_size": 2}
CHILD = """
import sys, json, time
import jax
jax.config.update("jax_disable_most_optimizations", True)
import hourglass_jax as hj
from hourglass_jax.evaluation import evaluate as module
from hourglass_jax.evaluation.datasets import open_dataset
model, data, folder, options = hj.load(sys.argv[1]), open_dataset("cityscapes", sys.argv[2]), sys.argv[3], {options}
"""
"""The start of a process of its own: the model, the data set, the folder of the journals and the options."""


@pytest.fixture(scope="module")
def data(cityscapes: Path) -> Dataset:
    return open_dataset("cityscapes", cityscapes)


@pytest.fixture(scope="module")
def uninterrupted(model: Segmenter, data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The journals of a whole run."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    evaluate(model, data, folder, **OPTIONS)
    return folder


def child(code: str, *arguments: object, **environment: str) -> subprocess.Popen:
    """Runs `code` after `CHILD`, with its arguments."""
    return subprocess.Popen(
        [sys.executable, "-c", CHILD.format(options=OPTIONS) + code, *map(str, arguments)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(folder: Path, process: int = 0) -> list[str]:
    return (folder / f"journal.{process}.jsonl").read_text().splitlines()


def same(found: Scores, expected: Scores) -> None:
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


def unprocessed(*arguments: object, **options: object) -> None:
    raise AssertionError("an image was run again")


@pytest.mark.parametrize("plan", [None, PLAN], ids=["original", "expedited"])
def test_figures_are_those_of_all_pixels(plan, model: Segmenter, data: Dataset, tmp_path: Path) -> None:
    fast = hj.expedite(model, plan)
    calls: list[tuple[int, str]] = []
    found = evaluate(
        fast, data, tmp_path, **OPTIONS, on_progress=lambda added, running: calls.append((added, running))
    )
    predictor = hj.Predictor(fast, preprocessing=model.config.preprocessing.at(32), batch_size=2)
    truth, guess = [], []
    for _, image, label in data:
        truth.append(label[label != IGNORED])
        guess.append(predictor(image)[label != IGNORED])
    expected = METRIC.scores(confusion_matrix(*map(np.concatenate, (truth, guess)), labels=range(19)))
    same(found, expected)
    assert found.iou.shape == (19,)
    assert np.count_nonzero(found.iou) > 3
    assert [added for added, _ in calls] == [0, 2, 2, 2, 2, 1]
    assert calls[-1][1] == f"mIoU, % {100 * found.miou:.2f}"


def test_a_journal_says_what_was_evaluated_and_found(uninterrupted: Path, data: Dataset) -> None:
    first, *images = map(json.loads, lines(uninterrupted))
    assert first == {"model": "random", "plan": None, "dataset": "cityscapes", "source": "folder"} | {
        "split": "val",
        "metric": {"classes": 19},
        "images": 9,
        "size": 32,
    }
    assert [image["key"] for image in images] == list(data.keys)
    for image, (_, _, label) in zip(images, data, strict=True):
        assert sum(pixels for _, _, pixels in image["counts"]) == (label != IGNORED).sum()


def test_a_killed_run_goes_on_and_gives_the_same(
    model: Segmenter, data: Dataset, model_file: Path, cityscapes: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Killed in the middle of a line, as far as the journal can tell."""
    slow = "module.evaluate(model, data, folder, **options, on_progress=lambda added, running: time.sleep(0.3))"
    running = child(slow, model_file, cityscapes, tmp_path)
    journal, deadline = tmp_path / "journal.0.jsonl", time.monotonic() + 60
    while running.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.read_bytes().count(b"\n") >= 4:
            break
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    assert 4 <= len(lines(tmp_path)) < 10
    with journal.open("a") as file:
        file.write(lines(uninterrupted)[len(lines(tmp_path))][:20])

    added = []
    found = evaluate(model, data, tmp_path, **OPTIONS, on_progress=lambda count, running: added.append(count))
    assert added[0] >= 3
    assert sum(added) == 9
    same(found, evaluate(model, data, uninterrupted, **OPTIONS))
    assert lines(tmp_path) == lines(uninterrupted)


def test_a_journal_that_ends_anywhere_is_continued(
    model: Segmenter, data: Dataset, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From before its first line to within its last; what is counted of an image stands in place of the model.

    Batches are those of the whole run, also where a part of one is known: another one may round otherwise.
    """
    places = {image.tobytes(): place for place, (_, image, _) in enumerate(data)}
    counts = [counts_of(line) for line in lines(uninterrupted)[1:]]

    def predict(self: hj.Predictor, images: tuple[np.ndarray, ...]) -> list[int]:
        batch = [places[image.tobytes()] for image in images]
        assert batch == [*range(9)][batch[0] // 2 * 2 :][:2]
        return batch

    monkeypatch.setattr(hj.Predictor, "__call__", predict)
    monkeypatch.setattr(SegmentationMetric, "count", lambda self, result, truth: counts[result])
    whole = (uninterrupted / "journal.0.jsonl").read_bytes()
    for kept in np.linspace(0, len(whole) - 1, 60, dtype=int):
        (tmp_path / "journal.0.jsonl").write_bytes(whole[:kept])
        evaluate(model, data, tmp_path, **OPTIONS)
        assert (tmp_path / "journal.0.jsonl").read_bytes() == whole


def counts_of(line: str) -> np.ndarray:
    """Of an image, by its line in a journal."""
    counts = np.zeros((19, 19), np.int64)
    for label, prediction, pixels in json.loads(line)["counts"]:
        counts[label, prediction] = pixels
    return counts


def test_a_finished_run_is_read_from_its_journal(
    model: Segmenter, data: Dataset, uninterrupted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = evaluate(model, data, uninterrupted, **OPTIONS)
    monkeypatch.setattr(hj.Predictor, "__call__", unprocessed)
    same(evaluate(model, data, uninterrupted, **OPTIONS), before)


def test_a_limited_run_is_of_the_first_images_and_can_be_continued(
    model: Segmenter, data: Dataset, uninterrupted: Path, tmp_path: Path
) -> None:
    limited = evaluate(model, data, tmp_path, **OPTIONS, limit=4)
    assert lines(tmp_path) == lines(uninterrupted)[:5]
    same(limited, METRIC.scores(sum(map(counts_of, lines(uninterrupted)[1:5]))))
    same(evaluate(model, data, tmp_path, **OPTIONS), evaluate(model, data, uninterrupted, **OPTIONS))
    same(evaluate(model, data, tmp_path, **OPTIONS, limit=4), limited)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "others"}, "expected model others, got random"),
        ({"size": 40}, "expected size 40, got 32"),
        ({"plan": PLAN}, "expected plan {'method': 'Hourglass', 'alpha': 1, .*}, got None"),
    ],
)
def test_the_journal_of_something_else_is_refused(
    changed: dict, message: str, model: Segmenter, data: Dataset, uninterrupted: Path
) -> None:
    before = lines(uninterrupted)
    fast = hj.expedite(model, changed.get("plan"))
    options = OPTIONS | {name: value for name, value in changed.items() if name != "plan"}
    with pytest.raises(ValueError, match="journal.0.jsonl is the journal of another evaluation: " + message):
        evaluate(fast, data, uninterrupted, **options)
    assert lines(uninterrupted) == before


@pytest.mark.parametrize("line", ["{", "[]", '{"key":"a"}', "\x00"])
def test_a_damaged_line_other_than_the_last_is_refused(
    line: str, model: Segmenter, data: Dataset, uninterrupted: Path, tmp_path: Path
) -> None:
    whole = lines(uninterrupted)
    damaged = "\n".join([*whole[:3], line, *whole[3:]]) + "\n"
    (tmp_path / "journal.0.jsonl").write_text(damaged)
    with pytest.raises(ValueError, match=r"journal.0.jsonl must be lines of JSON, and one is damaged"):
        evaluate(model, data, tmp_path, **OPTIONS)
    assert (tmp_path / "journal.0.jsonl").read_text() == damaged


def test_models_that_do_not_fit_are_refused(
    model: Segmenter, tiny_model: Saliency, data: Dataset, ade20k: Path, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="cityscapes needs a model for segmentation, got Saliency"):
        evaluate(tiny_model, data, tmp_path, **OPTIONS)
    with pytest.raises(ValueError, match="the 150 classes of ade20k apart, got one for 19 classes of cityscapes"):
        evaluate(model, open_dataset("ade20k", ade20k), tmp_path, **OPTIONS)
    for name in ("limit", "batch_size"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
            evaluate(model, data, tmp_path, **OPTIONS | {name: 0})
    assert list(tmp_path.iterdir()) == []


def test_images_are_scaled_as_for_published_figures(model: Segmenter, data: Dataset, ade20k: Path) -> None:
    assert input_size(model, data) == 1024
    assert input_size(model, data, 40) == 40
    assert input_size(model, open_dataset("ade20k", ade20k)) == 32
    config = replace(model.config, window=None, preprocessing=model.config.preprocessing.at(64))
    whole = nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0)))
    assert input_size(whole, data) == 64


def test_two_devices_share_batches(
    model: Segmenter, data: Dataset, model_file: Path, cityscapes: Path, uninterrupted: Path, tmp_path: Path
) -> None:
    """Batches of three images: the filled ones and the rest are odd."""
    code = """
seen = set()
class Watched(module.Predictor):
    def _run(self, images, sizes):
        output = super()._run(images, sizes)
        seen.add((len(output), len(output.sharding.device_set)))
        return output
module.Predictor = Watched
module.evaluate(model, data, folder, **options | {"batch_size": 3})
print(json.dumps(sorted(seen)))
"""
    two = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    running = child(code, model_file, cityscapes, tmp_path, **two)
    printed, _ = running.communicate(timeout=120)
    assert running.returncode == 0
    assert json.loads(printed) == [[4, 2]]
    assert lines(tmp_path)[0] == lines(uninterrupted)[0]
    alike(tmp_path, uninterrupted)


def alike(folder: Path, expected: Path) -> None:
    """The same images, and all but a few pixels on an edge between two classes."""
    found, wanted = (
        {
            json.loads(line)["key"]: counts_of(line)
            for path in sorted(each.iterdir())
            for line in path.read_text().splitlines()[1:]
        }
        for each in (folder, expected)
    )
    assert found.keys() == wanted.keys()
    for key, counts in found.items():
        np.testing.assert_array_equal(counts.sum(axis=1), wanted[key].sum(axis=1))
        assert np.abs(counts - wanted[key]).sum() <= 0.01 * counts.sum()


Run = Callable[..., str]


@pytest.fixture
def arguments(model_file: Path, cityscapes: Path, tmp_path: Path) -> list[str]:
    paths = {"--model": model_file, "--data-dir": cityscapes, "--output": tmp_path / "out"}
    given = [*(str(each) for pair in paths.items() for each in pair), "--dataset", "cityscapes"]
    return [*given, "--size", "32", "--batch", "2"]


@pytest.fixture
def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns what it prints."""

    def run(*options: object) -> str:
        tyro.cli(command, args=[*arguments, *map(str, options)], config=(tyro.conf.DisallowNone,))
        return capsys.readouterr().out

    return run


def test_two_processes_share_the_images(arguments: list[str], uninterrupted: Path, tmp_path: Path) -> None:
    """Started as Open MPI would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    code = "import jax, tyro\njax.config.update('jax_disable_most_optimizations', True)\n"
    code += "from hourglass_jax.cli.evaluate import eval\ntyro.cli(eval)"
    started = {
        "OMPI_MCA_orte_hnp_uri": "4096.0;tcp://127.0.0.1:1",
        "OMPI_COMM_WORLD_SIZE": "2",
        "OMPI_COMM_WORLD_LOCAL_RANK": "0",
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_COORDINATOR_BIND_ADDRESS": address,
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, *arguments, "--distributed"],
            env={**os.environ, **started, "OMPI_COMM_WORLD_RANK": rank},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert ["mIoU" in each for each in printed] == [True, False]
    folder = tmp_path / "out/original"
    assert [len(lines(folder, process)) for process in (0, 1)] == [1 + 5, 1 + 4]
    alike(folder, uninterrupted)
    counts = [counts_of(line) for process in (0, 1) for line in lines(folder, process)[1:]]
    result = json.loads((tmp_path / "out/result.json").read_text())
    assert result["original"]["miou"] == METRIC.scores(sum(counts)).miou


def test_the_command_shows_both_and_writes_json(run: Run, uninterrupted: Path, model_file: Path, tmp_path) -> None:
    plan = ["--alpha", 1, "--clusters", 2, 3]
    printed = run(*plan)
    for word in ["original", "expedited", "mIoU", "cityscapes val, 9 images", "2 x 3 clusters", "result.json"]:
        assert word in printed
    result = json.loads((tmp_path / "out/result.json").read_text())
    original, expedited = result["original"], result["expedited"]
    assert result["plan"]["clusters"] == [2, 3]
    assert (result["images"], result["size"]) == (9, 32)
    assert original.keys() == expedited.keys() == {"miou", "mean_accuracy", "pixel_accuracy", "iou"}
    assert next(iter(original["iou"])) == "road"
    assert original != expedited
    assert f"{100 * expedited['miou']:.2f}" in printed
    header, *counts = lines(tmp_path / "out/original")
    assert counts == lines(uninterrupted)[1:]
    assert json.loads(header)["model"] == file_hash(model_file)
    assert json.loads(run(*plan, "--json")) == result
    only = json.loads(run(*plan, "--no-original", "--json"))
    assert only == {key: value for key, value in result.items() if key != "original"}


def test_the_command_without_a_plan_is_of_the_original(run: Run) -> None:
    result = json.loads(run("--limit", 3, "--json"))
    assert result["images"] == 3
    assert result["plan"] is None
    assert "expedited" not in result


def test_classes_that_do_not_occur_are_null_in_json(run: Run, tmp_path: Path) -> None:
    for path, array in (("leftImg8bit", np.zeros((32, 32, 3))), ("gtFine", np.full((32, 32), 7))):
        file = tmp_path / f"{path}/val/a/a_000000_000000_{path}{'_labelIds' if path == 'gtFine' else ''}.png"
        file.parent.mkdir(parents=True)
        Image.fromarray(array.astype(np.uint8)).save(file)
    original = json.loads(run("--data-dir", tmp_path, "--json"))["original"]
    assert original["iou"]["road"] == original["pixel_accuracy"] == original["mean_accuracy"]
    assert None in original["iou"].values()


def test_an_interrupted_command_says_how_to_go_on(
    run: Run, tmp_path: Path, uninterrupted: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, calls = SegmentationMetric.count, []

    def interrupted(*arguments: object) -> np.ndarray:
        calls.append(arguments)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return count(*arguments)

    monkeypatch.setattr(SegmentationMetric, "count", interrupted)
    with pytest.raises(SystemExit) as exited:
        run()
    assert exited.value.code == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interrupted: {tmp_path / 'out'} keeps what was counted")
    assert len(lines(tmp_path / "out/original")) == 1 + 4
    assert not (tmp_path / "out/result.json").exists()
    run()
    assert lines(tmp_path / "out/original")[1:] == lines(uninterrupted)[1:]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--no-original", "nothing is left to evaluate"),
        ("--alpha 1", "--clusters missing"),
        ("--alpha 1 --clusters 5 5", "5 x 5 clusters for 4 x 4 tokens"),
        ("--limit 0", "limit must be at least 1, got 0"),
        ("--split train", "holds no train split of cityscapes"),
    ],
)
def test_wrong_options_are_refused_before_the_work(options: str, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(*options.split())
    assert not (tmp_path / "out").exists()
