"""The examples do what they say, outside the package."""

import json
import runpy
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest

import hourglass_jax as hj
from hourglass_jax.cli import main
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.plans import registry

pytestmark = pytest.mark.usefixtures("quick_compilation")

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def every_second() -> Iterator[type[hj.Plan]]:
    """The plan of examples/own_plan.py, registered for one test."""
    yield runpy.run_path(str(EXAMPLES / "own_plan.py"))["EverySecond"]
    del registry._METHODS["EverySecond"]


def test_a_plan_of_ones_own_is_under_30_lines() -> None:
    assert len((EXAMPLES / "own_plan.py").read_text("utf-8").splitlines()) < 30


def test_a_plan_of_ones_own_runs_on_fewer_tokens(every_second, tiny_model: Saliency) -> None:
    images = np.random.default_rng(0).normal(size=(2, 70, 70, 3)).astype(np.float32)
    plan = every_second(1)
    run = jax.jit(lambda backbone: backbone(images).tokens.values)
    found = np.asarray(run(hj.expedite(tiny_model, plan).backbone))
    pairs = found[:, :24].reshape(2, 12, 2, -1)
    np.testing.assert_array_equal(pairs[:, :, 0], pairs[:, :, 1])
    assert found.shape[1] == 25 and np.ptp(found[:, ::2], axis=1).min() > 0
    assert plan.counts(3, (5, 5)) == [25, 13, 13, 25]


def test_a_plan_of_ones_own_is_saved_and_loaded(every_second, tmp_path: Path) -> None:
    path = hj.save_plan(every_second(2), tmp_path / "plan.json")
    assert json.loads(path.read_text()) == {"method": "EverySecond", "alpha": 2}
    assert hj.load_plan(path) == every_second(2)


def test_a_plan_of_ones_own_is_given_on_the_command_line(
    every_second, tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["flops", "--size", "70", "--model", str(tiny_file), "--json"]
    path = hj.save_plan(every_second(2), tmp_path / "plan.json")
    for options in (["--method", "everysecond"], ["--plan", str(path)]):
        main([*command, *options, "--alpha", "1"])
        printed = json.loads(capsys.readouterr().out)
        assert printed["plan"] == {"method": "EverySecond", "alpha": 1}
        assert printed["expedited"]["blocks"] < printed["original"]["blocks"]
    with pytest.raises(SystemExit) as exited:
        main(["flops", "--help"])
    assert exited.value.code == 0
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "EverySecond: number of blocks that run on all tokens." in printed
