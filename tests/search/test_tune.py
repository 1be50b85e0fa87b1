"""The tuner: figures against direct computations, what it finds among few plans, a journal, the command."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.cli import tune as tune_command
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.plans.files import plan_of
from hourglass_jax.search import tune as module
from hourglass_jax.search.tune import Candidate, NoPlan, Target, Tuner

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (70, 84, 3), dtype=np.uint8) for name in NAMES}


@pytest.fixture
def tuner(tiny_model: Saliency, photographs: dict[str, np.ndarray], tmp_path: Path) -> Tuner:
    return Tuner(tiny_model, photographs, tmp_path / "tune.jsonl", weights="random")


def features(model: Saliency, photo: np.ndarray) -> jax.Array:
    image = model.config.preprocessing(photo[:, 7:77])[None]
    return jax.jit(lambda backbone: backbone(image).tokens.values)(model.backbone)


def test_every_other_photograph_is_held_out(tuner: Tuner) -> None:
    assert (tuner.tuned_on, tuner.held_out) == (("a", "c"), ("b", "d"))


@pytest.mark.slow
def test_cosines_are_of_the_final_features(tuner: Tuner, tiny_model: Saliency, tiny_plan, photographs) -> None:
    found = tuner.measure(tiny_plan, ["a", "d"])
    for name, cosine in found.cosines.items():
        pair = (features(each, photographs[name]) for each in (hj.expedite(tiny_model, tiny_plan), tiny_model))
        assert cosine == pytest.approx(float(cosine_similarity(*pair)[0]), abs=1e-5)
    assert found.share == tuner.costs(tiny_plan)
    assert (found.cosine, found.worst) == (np.mean(list(found.cosines.values())), min(found.cosines.values()))
    tuner.measure(tiny_plan, ["b"])
    assert tuner.candidates[tiny_plan].cosines.keys() == {"a", "b", "d"}


@pytest.mark.parametrize(
    "plan", [hj.Hourglass(1, (3, 3)), hj.Hourglass(0, (3, 3)), hj.EViT(0.5)], ids=["alpha 1", "alpha 0", "EViT"]
)
@pytest.mark.slow
def test_the_gradient_is_that_of_the_temperature(plan: hj.Plan, tuner: Tuner) -> None:
    """Against the plan with that temperature as a plain number, and against differences of it."""
    auto = tuner._auto_temperature(plan, "a")
    position, step = float(np.log(3 * auto)), 0.02
    loss, slope = tuner._slope(plan, position, "a")
    around = [
        1 - tuner.measure(replace(plan, temperature=float(np.exp(position + shift))), ["a"]).cosine
        for shift in (-step, 0, step)
    ]
    assert loss == pytest.approx(around[1], abs=1e-5)
    assert slope == pytest.approx((around[2] - around[0]) / (2 * step), rel=0.1, abs=2e-4)


def test_following_the_gradient_finds_the_best_temperature(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a loss whose best temperature is known."""
    best = np.log(3.0)
    monkeypatch.setattr(Tuner, "_slope", lambda self, plan, at, name: [(at - best) ** 2, 2 * (at - best)])
    monkeypatch.setattr(module, "STEPS", 30)
    assert tuner.follow_gradient(hj.Hourglass(1, (3, 3), temperature=2.0)) == pytest.approx(3, rel=0.1)


def test_it_turns_back_where_the_gradient_leads_astray(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def slope(self: Tuner, plan: hj.Plan, at: float, name: str) -> list[float]:
        asked.append(at)
        return [at, -1.0]

    monkeypatch.setattr(Tuner, "_slope", slope)
    assert tuner.follow_gradient(hj.Hourglass(1, (3, 3), temperature=2.0)) == 2
    assert len(asked) == 3 * 2


class Cosines:
    """Cosines out of thin air in place of those that are measured; keeps which plans were asked for."""

    def __init__(self, cosine: Callable[[hj.Plan, float], float]) -> None:
        self.cosine, self.asked = cosine, []

    def __call__(self, tuner: Tuner, plan: hj.Plan, names: list[str]) -> Candidate:
        self.asked.append(plan)
        found = self.cosine(plan, tuner.costs(plan))
        candidate = Candidate(plan, tuner.costs(plan), {name: found for name in names})
        tuner.candidates[plan] = candidate
        return candidate


@pytest.fixture
def cosines(monkeypatch: pytest.MonkeyPatch) -> Cosines:
    """The dearer the better; best with Hourglass, 3 iterations, medoids and a window of 7."""

    def cosine(plan: hj.Plan, share: float) -> float:
        if not isinstance(plan, hj.Hourglass):
            return 0.5 * share
        settings = (plan.iterations == 3) + (plan.representative == "medoid") + (plan.window == 7)
        return 0.5 + 0.1 * share + 0.1 * settings

    stub = Cosines(cosine)
    monkeypatch.setattr(Tuner, "measure", lambda self, plan, names: stub(self, plan, names))
    monkeypatch.setattr(Tuner, "_cosines", lambda self, plan, names: dict.fromkeys(names, 0.9))
    monkeypatch.setattr(Tuner, "_measure_nearby", lambda self, *around: None)
    monkeypatch.setattr(Tuner, "follow_gradient", lambda self, plan: 0.25)
    monkeypatch.setattr(Tuner, "_time", lambda self, plan: 1 / (0.1 + 0.9 * self.costs(plan)))
    return stub


METHODS = ("Pooling", "Hourglass")


def test_the_best_settings_at_a_cost_are_found(tuner: Tuner, cosines: Cosines) -> None:
    found = tuner.tune(Target("share", 0.8), METHODS)
    plan = found.best.plan
    assert (plan.iterations, plan.representative, plan.window) == (3, "medoid", 7)
    assert 0.7 < found.best.share <= 0.8
    assert found.best.cosines.keys() == {"a", "c"} and found.held_out.keys() == {"b", "d"}
    assert [each.method for each in found.finalists] == ["Hourglass", "Pooling"]
    assert all(tuner.costs(each) <= 0.8 for each in cosines.asked)
    assert any(each.alpha != plan.alpha for each in cosines.asked)
    assert any(each.temperature == 0.25 for each in cosines.asked if isinstance(each, hj.Hourglass))


def test_the_wanted_speedup_is_reached_with_little_to_spare(tuner: Tuner, cosines: Cosines) -> None:
    found = tuner.tune(Target("speedup", 1.25), METHODS)
    assert found.best.method == "Hourglass"
    assert found.best.speedup == pytest.approx(1 / (0.1 + 0.9 * found.best.share))
    assert 1.25 <= found.best.speedup < 1.45


def test_the_wanted_cosine_costs_as_little_as_it_can(tuner: Tuner, cosines: Cosines) -> None:
    found = tuner.tune(Target("cosine", 0.85), METHODS)
    assert found.best.cosine >= 0.85
    cheaper = [tuner.costs(each) for each in cosines.asked if cosines.cosine(each, tuner.costs(each)) >= 0.85]
    assert found.best.share == min(cheaper) < 0.8


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (Target("share", 0.05), "no plan meets the target: Pooling cannot do with 0.05 of the encoder's cost"),
        (Target("cosine", 0.99), "no plan meets the target: cosine 0.99 was wanted, and the best is 0.8"),
        (Target("speedup", 50), "no plan meets the target: "),
    ],
)
def test_it_says_when_no_plan_meets_the_target(
    target: Target, message: str, tuner: Tuner, cosines: Cosines
) -> None:
    with pytest.raises(NoPlan, match=message):
        tuner.tune(target, METHODS)


def test_it_warns_where_images_differ(tuner: Tuner, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(self: Tuner, plan: hj.Plan, names: list[str]) -> Candidate:
        return Candidate(plan, self.costs(plan), {name: 0.7 if name == "d" else 0.99 for name in names})

    monkeypatch.setattr(Tuner, "measure", measure)
    monkeypatch.setattr(Tuner, "_cosines", lambda self, plan, names: measure(self, plan, names).cosines)
    [warning] = tuner.tune(Target("share", 0.8), ["Pooling"]).warnings
    assert warning.startswith("fidelity differs much between images: the cosine is 0.7000 on d, and 0.9175")
    first, second = tuner.tune(Target("cosine", 0.9), ["Pooling"]).warnings
    assert first == warning
    assert second.startswith("on the images that were held out the mean cosine is 0.8450, less than the 0.9")


def test_a_run_goes_on_from_its_journal(tiny_model: Saliency, photographs, tmp_path: Path) -> None:
    path, target = tmp_path / "tune.jsonl", Target("share", 0.8)

    def run(name: Path) -> module.Tuned:
        with Tuner(tiny_model, photographs, name, weights="random") as tuner:
            return tuner.tune(target, ["Pooling"])

    found, whole = run(path), path.read_bytes()
    assert run(path) == found and path.read_bytes() == whole
    lines = whole.splitlines(keepends=True)
    for kept in (0, 1, len(lines) // 2):
        path.write_bytes(b"".join(lines[:kept]) + lines[kept][:20])
        assert run(path) == found
        assert path.read_bytes().splitlines()[: kept + 1] == whole.splitlines()[: kept + 1]
    with pytest.raises(ValueError, match=r"tune.jsonl is of another search: expected model others, got random"):
        Tuner(tiny_model, photographs, path, weights="others")


def test_weights_are_never_touched(tuner: Tuner, tiny_model: Saliency, tiny_plan) -> None:
    before = [np.array(each) for each in jax.tree.leaves(tiny_model)]
    tuner._slope(tiny_plan, 0.0, "a")
    tuner.speedup(tiny_plan)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.leaves(tiny_model))
    assert tiny_model.backbone.plan is None


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        ("speedup", 1, "a wanted speed-up must be more than 1, got 1"),
        ("speedup", float("nan"), "a wanted speed-up must be more than 1, got nan"),
        ("share", 0, "a wanted share of the multiply-accumulates must be between 0 and 1, got 0"),
        ("share", 1, "a wanted share of the multiply-accumulates must be between 0 and 1, got 1"),
        ("cosine", 1.5, "a wanted cosine must be between 0 and 1, got 1.5"),
    ],
)
def test_targets_out_of_range_are_refused(kind: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Target(kind, value)


Run = Callable[..., str]


@pytest.fixture
def run(tiny_file: Path, tmp_path: Path, photographs, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on the tiny model; returns what it prints."""
    (tmp_path / "photos").mkdir()
    for name, photo in photographs.items():
        Image.fromarray(photo).save(tmp_path / "photos" / f"{name}.png")
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    given = ["--model", tiny_file, "--images", tmp_path / "photos", "-o", tmp_path / "out"]

    def run(*options: object) -> str:
        tyro.cli(tune_command.tune, args=[*map(str, (*given, *options))], config=(tyro.conf.DisallowNone,))
        return capsys.readouterr().out

    return run


def test_the_command_writes_a_plan_that_the_others_take(run: Run, cosines: Cosines, tmp_path: Path) -> None:
    options = ["--share", 0.8, "--method", "Hourglass", "--method", "Pooling"]
    printed = run(*options)
    for word in ["share 0.8", "Hourglass, 2 images held out", "Pooling", "--plan", "clusters after block"]:
        assert word in printed
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["plan.json", "tune.jsonl", "tune.png"]
    result = json.loads(run(*options, "--json"))
    assert hj.load_plan(tmp_path / "out" / "plan.json") == plan_of(result["plan"])
    assert result["tuned_on"].keys() == {"a.png", "c.png"} and result["held_out"].keys() == {"b.png", "d.png"}
    assert result["target"] == {"share": 0.8} and result["share"] <= 0.8
    assert [each["plan"]["method"] for each in result["finalists"]] == ["Hourglass", "Pooling"]
    with Image.open(tmp_path / "out" / "tune.png") as picture:
        assert picture.width > 500 and np.asarray(picture).std() > 5


def test_the_command_exits_with_1_and_no_plan_if_none_meets_the_target(
    run: Run, cosines: Cosines, tmp_path: Path, capsys
) -> None:
    with pytest.raises(SystemExit) as exited:
        run("--min-cosine", 0.999, "--method", "Pooling")
    assert exited.value.code == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("error: no plan meets the target: cosine 0.999 was wanted")
    assert not (tmp_path / "out" / "plan.json").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--share", 0.5, "--faster", 2], "expected one target, got several of --share, --faster"),
        (["--share", 1.5], "share of the multiply-accumulates must be between 0 and 1, got 1.5"),
        (["--limit", 1], "limit must be at least 2"),
        (["--images", "{}/photos/a.png"], "must be a folder of images, and is none"),
        (["--images", "{}/out"], "must be a folder of images, and is none"),
        (["--images", "{}"], "holds no photograph: expected files that end in"),
        (["--output", "{}/photos/a.png"], "a.png is a file"),
        (["--size", 71], "size must be a positive multiple of 14, got 71"),
    ],
)
def test_wrong_input_is_refused_before_the_work(options: list, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(*(str(option).format(tmp_path) for option in options))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("limit", "kept"), [(2, ["a.png", "c.png"]), (3, ["a.png", "b.png", "c.png"]), (9, None)])
def test_a_limit_spreads_over_the_folder(limit: int, kept: list[str] | None, run: Run, tmp_path: Path) -> None:
    found = list(tune_command._files(tmp_path / "photos", limit))
    assert found == (kept or [f"{name}.png" for name in NAMES])
