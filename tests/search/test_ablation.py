"""Ablations: figures against direct computations, a journal that outlives a kill, tables and plots."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.cli import ablate as module
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.plans.base import Tokens
from hourglass_jax.search.ablation import STUDIES, Ablation, Layers, Measurement, Point

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLAN = hj.Hourglass(1, (3, 3))
QUICK = ("beta", "alpha")
GRID, CELLS = (5, 4), (3, 2)


@pytest.fixture(scope="module")
def photographs() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {name: random.integers(0, 256, (70, 84, 3), dtype=np.uint8) for name in ("a", "b")}


@pytest.fixture(scope="module")
def ablation(tiny_model: Saliency, photographs: dict[str, np.ndarray]) -> Ablation:
    return Ablation(tiny_model, photographs, PLAN, weights="random")


@pytest.fixture(scope="module")
def journal(ablation: Ablation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a run that was not interrupted."""
    path = tmp_path_factory.mktemp("ablation") / "ablation.jsonl"
    list(ablation.run(path, QUICK))
    return path


def prepared(model: Saliency, photographs: dict[str, np.ndarray], side: int = 70) -> np.ndarray:
    return np.stack([model.config.preprocessing.at(side)(photo[:, 7:77]) for photo in photographs.values()])


@jax.jit
def features(model: Saliency, images: jax.Array) -> jax.Array:
    return model.backbone(images).tokens.values


@pytest.mark.slow
def test_a_classifier_is_compared_by_what_its_head_reads(photographs: dict[str, np.ndarray]) -> None:
    """The class token; a smaller image has one, too, and nothing is reconstructed for it."""
    config = SwagConfig(
        ViTConfig(patch_size=14, width=32, heads=2, depth=3, position_grid=(4, 4)),
        classes=5,
        preprocessing=Preprocessing(size=70, resize="crop"),
    )
    model = nnx.eval_shape(lambda: Swag(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        model, jax.tree.map(lambda each: random.normal(0, 0.4, each.shape).astype(np.float32), nnx.state(model))
    )
    ablation = Ablation(model, photographs, PLAN, weights="random")
    tokens = nnx.jit(lambda model, images: model.backbone(images).special[:, :1])
    original = tokens(model, prepared(model, photographs))
    for point, side in ((Point("", 0, None, side=42), 42), (Point("", 0, PLAN), 70)):
        found = tokens(hj.expedite(model, point.plan), prepared(model, photographs, side))
        expected = np.asarray(cosine_similarity(found, original))
        figures = ablation.measure(point)
        assert figures.cosine == pytest.approx(float(expected.mean()), abs=1e-5)
        assert figures.worst == pytest.approx(float(expected.min()), abs=1e-5)
        assert figures.cosine < 0.99999
    counted = count_macs(hj.expedite(model, PLAN), (70, 70))
    assert figures.gflops == pytest.approx((counted["total"] - counted["head"]) / 1e9, abs=1e-6)


def point_of(ablation: Ablation, study: str, label: str, series: str = "") -> Point:
    [point] = [each for each in ablation.studies[study].points if (each.label, each.series) == (label, series)]
    return point


@pytest.mark.parametrize(
    ("study", "label", "series", "plan"),
    [
        ("representative", "2 x 2", "medoid", hj.Hourglass(1, (2, 2), representative="medoid")),
        ("iterations", "0", "", hj.Hourglass(1, (3, 3), iterations=0)),
        ("layers", "clustering, bilinear", "3 x 3", Layers(PLAN, reconstruction="bilinear")),
    ],
)
def test_figures_are_those_of_the_plan(
    study: str,
    label: str,
    series: str,
    plan: hj.Plan,
    ablation: Ablation,
    tiny_model: Saliency,
    photographs: dict[str, np.ndarray],
) -> None:
    images = prepared(tiny_model, photographs)
    expected = cosine_similarity(features(hj.expedite(tiny_model, plan), images), features(tiny_model, images))
    point = point_of(ablation, study, label, series)
    assert point.plan == plan
    found = ablation.measure(point)
    assert found.cosine == pytest.approx(float(expected.mean()), abs=2e-5)
    assert found.worst == pytest.approx(float(expected.min()), abs=2e-5)
    assert found.cosine_at_block is None
    assert 0 < found.gflops_ratio < 1


def test_blocks_are_compared_after_the_reconstruction(
    journal: Path, ablation: Ablation, tiny_model: Saliency, photographs: dict[str, np.ndarray]
) -> None:
    @jax.jit
    def run(model: Saliency, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        found = model.backbone(images, intermediates=[1])
        return found.tokens.values, found.intermediates[0].tokens

    images = prepared(tiny_model, photographs)
    found, original = run(hj.expedite(tiny_model, replace(PLAN, beta=1)), images), run(tiny_model, images)
    final, at_block = (float(cosine_similarity(*pair).mean()) for pair in zip(found, original, strict=True))
    row, last = (json.loads(line) for line in journal.read_text().splitlines()[1:3])
    assert (row["study"], row["label"], last["label"]) == ("beta", "block 2", "block 3")
    assert row["cosine"] == pytest.approx(final, abs=2e-5)
    assert row["cosine_at_block"] == pytest.approx(at_block, abs=2e-5)
    assert last["cosine_at_block"] != row["cosine_at_block"]


def test_smaller_images_are_those_of_equal_cost(
    ablation: Ablation, tiny_model: Saliency, photographs: dict[str, np.ndarray]
) -> None:
    points = ablation.studies["downsampling"].points
    smaller = [point for point in points if point.side]
    assert smaller
    costs = np.array([ablation.measure(replace(point, plan=None)).gflops_ratio for point in smaller])
    np.testing.assert_allclose([point.x for point in smaller], costs, atol=1e-5)
    images, small = prepared(tiny_model, photographs), prepared(tiny_model, photographs, smaller[0].side)
    side = smaller[0].side // 14
    found = features(tiny_model, small).reshape(2, side, side, -1)
    resized = jax.image.resize(found, (2, 5, 5, 32), "bilinear").reshape(2, 25, -1)
    expected = cosine_similarity(resized, features(tiny_model, images))
    assert ablation.measure(smaller[0]).cosine == pytest.approx(float(expected.mean()), abs=2e-5)


@pytest.mark.parametrize("clustering", ["clustering", "pooling"])
def test_layers_are_the_operators(clustering: str) -> None:
    random = np.random.default_rng(0)
    z, added = (jnp.asarray(random.normal(size=(2, count, 8)), jnp.float32) for count in (20, 6))
    plan = hj.Hourglass(1, CELLS, beta=1, window=3, iterations=2, temperature=5.0, neighbors=3)
    if clustering == "pooling":
        clusters = hj.pool_tokens(z, token_grid=GRID, cluster_grid=CELLS)
    else:
        clusters = hj.cluster_tokens(
            z, token_grid=GRID, cluster_grid=CELLS, window=3, iterations=2, temperature=5.0
        )
    refined = clusters + added
    expected = {
        "reconstruction": hj.reconstruct_tokens(refined, tokens=z, clusters=clusters, neighbors=3, temperature=5.0),
        "nearest": hj.unpool_tokens(refined, tokens=z, clusters=clusters),
        "bilinear": hj.upsample_tokens(refined, cluster_grid=CELLS, token_grid=GRID),
    }
    for reconstruction, restored in expected.items():
        layers = Layers(plan, clustering, reconstruction)
        whole = Tokens.whole(z, GRID, depth=4)
        assert layers.before_block(0, whole, None) is whole
        tokens = layers.before_block(1, whole, None)
        np.testing.assert_allclose(tokens.values, clusters, atol=1e-6)
        tokens = layers.before_block(2, tokens.with_values(refined), None)
        np.testing.assert_allclose(tokens.values, restored, atol=1e-5)
        assert layers.counts(4, GRID) == plan.counts(4, GRID)
        with pytest.raises(ValueError, match="clusters must not outnumber"):
            layers.check(4, (1, 1))


def test_studies_change_one_field_each(ablation: Ablation) -> None:
    assert tuple(ablation.studies) == STUDIES
    fields = set(STUDIES) - {"layers", "downsampling", "representative"}
    for name in fields:
        for point in ablation.studies[name].points:
            assert replace(point.plan, **{name: getattr(PLAN, name)}) == PLAN
    for name, study in ablation.studies.items():
        keys = [(point.series, point.label) for point in study.points]
        assert len(set(keys)) == len(keys) > 1
        assert any(point.plan == PLAN for point in study.points), name
    assert {point.plan for point in ablation.studies["layers"].points} == {
        used if (clustering, reconstruction) == ("clustering", "reconstruction") else layers
        for used in (hj.Hourglass(1, (2, 2)), PLAN)
        for clustering in ("clustering", "pooling")
        for reconstruction in ("reconstruction", "nearest", "bilinear")
        for layers in [Layers(used, clustering, reconstruction)]
    }


def test_the_plan_is_measured_once(ablation: Ablation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured = stub(monkeypatch)
    found = list(ablation.run(tmp_path / "ablation.jsonl"))
    assert len(found) == sum(len(study.points) for study in ablation.studies.values())
    assert len(measured) == len({(point.plan, point.block, point.side) for _, point, _ in found}) < len(found)
    assert list(ablation.run(tmp_path / "ablation.jsonl")) == found
    assert len(measured) < len(found)


def stub(monkeypatch: pytest.MonkeyPatch) -> list[Point]:
    """Puts figures out of thin air in place of the measurements; returns the list of points asked for."""
    asked: list[Point] = []

    def measure(self: Ablation, point: Point) -> Measurement:
        asked.append(point)
        share = len(asked) / 100
        return Measurement(
            0.9 + share / 10, 0.8 + share / 10, None if point.block is None else 0.85, 2 * share, share
        )

    monkeypatch.setattr(Ablation, "measure", measure)
    return asked


CHILD = """
import sys, time
import jax
jax.config.update("jax_disable_most_optimizations", True)
import numpy as np
import hourglass_jax as hj
from hourglass_jax.search.ablation import Ablation
random = np.random.default_rng(0)
photographs = {name: random.integers(0, 256, (70, 84, 3), dtype=np.uint8) for name in ("a", "b")}
ablation = Ablation(hj.load(sys.argv[1]), photographs, hj.Hourglass(1, (3, 3)), weights="random")
for _ in ablation.run(sys.argv[2], ("beta", "alpha")):
    time.sleep(0.5)
"""


def test_a_killed_run_goes_on_and_gives_the_same(
    ablation: Ablation, journal: Path, tiny_file: Path, tmp_path: Path
) -> None:
    """Killed in the middle of a line, as far as the journal can tell."""
    path, deadline = tmp_path / "ablation.jsonl", time.monotonic() + 120
    running = subprocess.Popen([sys.executable, "-c", CHILD, str(tiny_file), str(path)], env=os.environ)
    while running.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= 3:
            break
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    kept, whole = path.read_bytes(), journal.read_bytes()
    assert 3 <= kept.count(b"\n") < whole.count(b"\n")
    path.write_bytes(whole[: len(kept) + 20])
    assert path.read_bytes().startswith(kept)
    list(ablation.run(path, QUICK))
    assert path.read_bytes() == whole


def test_a_journal_that_ends_anywhere_is_continued(
    ablation: Ablation, journal: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, path = journal.read_bytes(), tmp_path / "ablation.jsonl"
    figures = {(name, point): each for name, point, each in ablation.run(journal, QUICK)}
    by_work = {(point.plan, point.block): each for (_, point), each in figures.items()}
    monkeypatch.setattr(Ablation, "measure", lambda self, point: by_work[point.plan, point.block])
    for kept in np.linspace(0, len(whole) - 1, 40, dtype=int):
        path.write_bytes(whole[:kept])
        list(ablation.run(path, QUICK))
        assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weights": "others"}, "expected model others, got random"),
        ({"plan": hj.Hourglass(1, (2, 2))}, "expected plan {'alpha': 1, 'clusters': .2, 2.*}, got {'alpha': 1"),
        ({"photographs": {"a": np.zeros((70, 70, 3), np.uint8)}}, "expected photographs {'a': '.*'}, got {'a': '"),
    ],
)
def test_the_journal_of_something_else_is_refused(
    changed: dict, message: str, tiny_model: Saliency, photographs: dict[str, np.ndarray], journal: Path
) -> None:
    before = journal.read_bytes()
    options = {"photographs": photographs, "plan": PLAN, "weights": "random"} | changed
    other = Ablation(tiny_model, **options)
    with pytest.raises(ValueError, match=r"ablation.jsonl is of another ablation: " + message):
        next(other.run(journal))
    assert journal.read_bytes() == before


@pytest.mark.parametrize("line", ["{", "[]", '{"study":"beta"}', "\x00"])
def test_a_damaged_line_other_than_the_last_is_refused(
    line: str, ablation: Ablation, journal: Path, tmp_path: Path
) -> None:
    whole = journal.read_text().splitlines()
    damaged, path = "\n".join([*whole[:2], line, *whole[2:]]) + "\n", tmp_path / "ablation.jsonl"
    path.write_text(damaged)
    with pytest.raises(ValueError, match=r"ablation.jsonl must be lines of JSON, and one is damaged"):
        next(ablation.run(path))
    assert path.read_text() == damaged


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"photographs": {}}, "expected at least one photograph, got none"),
        ({"plan": hj.Hourglass(0, (3, 3))}, "alpha must be at least 1 for an ablation, got 0"),
        ({"plan": hj.Hourglass(1, (6, 6))}, "6 x 6 clusters for 5 x 5 tokens"),
    ],
)
def test_what_cannot_be_ablated_is_refused(
    changed: dict, message: str, tiny_model: Saliency, photographs: dict[str, np.ndarray]
) -> None:
    with pytest.raises(ValueError, match=message):
        Ablation(tiny_model, **{"photographs": photographs, "plan": PLAN, "weights": "random"} | changed)


def test_unknown_studies_are_refused(ablation: Ablation, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown study 'colour'; known: beta, alpha, clusters"):
        next(ablation.run(tmp_path / "ablation.jsonl", ["colour"]))
    assert list(tmp_path.iterdir()) == []


Run = Callable[..., str]


@pytest.fixture
def run(tiny_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command on the tiny model; returns what it prints."""
    given = ["--model", tiny_file, "--alpha", 1, "--clusters", 3, 3, "-o", tmp_path / "out"]

    def run(*options: object) -> str:
        tyro.cli(module.ablate, args=[*map(str, (*options, *given))], config=(tyro.conf.DisallowNone,))
        return capsys.readouterr().out

    return run


@pytest.fixture
def photo(tmp_path: Path, photographs: dict[str, np.ndarray]) -> Path:
    Image.fromarray(photographs["a"]).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_the_command_prints_tables_and_draws_all_studies(
    run: Run, photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub(monkeypatch)
    printed = run(photo)
    assert get_args(module.Name) == STUDIES
    for word in [*STUDIES, "worst photograph", "3 x 3 *", "pooling, bilinear", "56 x 56 pixels", "1 photographs"]:
        assert word in printed
    with Image.open(tmp_path / "out/ablation.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 1000 and picture.height > 2 * 5 * 300 / 2
        assert np.asarray(picture).std() > 10
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ablation.jsonl", "ablation.png"]
    result = json.loads(run(photo, "--json", "--studies", "window", "layers"))
    assert list(result["studies"]) == ["window", "layers"]
    assert [row["label"] for row in result["studies"]["window"] if row["base"]] == ["5"]
    assert (result["size"], result["photographs"], result["plan"]["clusters"]) == (70, ["photo"], [3, 3])


def test_the_command_starts_from_the_papers_iterations_and_means(run: Run, photo: Path, monkeypatch) -> None:
    stub(monkeypatch)
    plan = json.loads(run(photo, "--json", "--studies", "alpha"))["plan"]
    assert (plan["iterations"], plan["representative"], plan["temperature"]) == (5, "mean", "auto")


def test_an_interrupted_command_says_how_to_go_on(
    run: Run, photo: Path, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = stub(monkeypatch)
    stubbed = Ablation.measure

    def interrupted(self: Ablation, point: Point) -> Measurement:
        if len(asked) == 3:
            raise KeyboardInterrupt
        return stubbed(self, point)

    monkeypatch.setattr(Ablation, "measure", interrupted)
    with pytest.raises(SystemExit) as exited:
        run(photo)
    assert exited.value.code == 130
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"interrupted: {tmp_path / 'out'} keeps what was measured")
    assert len((tmp_path / "out/ablation.jsonl").read_text().splitlines()) == 1 + 3
    assert not (tmp_path / "out/ablation.png").exists()


def test_a_missing_matplotlib_is_named_before_the_work(run: Run, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r'plots need matplotlib.*pip install "hourglass-jax\[demo\]"'):
        run()
    assert not (tmp_path / "out").exists()


def test_no_study_is_an_error(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected at least one study, got none"):
        run("--studies")
    assert not (tmp_path / "out").exists()
