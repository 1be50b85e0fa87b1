"""Top-1 and top-5: by hand, against scikit-learn, and a whole evaluation of a small classifier by the command."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import pytest
import tyro
from flax import nnx
from PIL import Image
from sklearn.metrics import top_k_accuracy_score

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.cli.evaluate import eval as command
from hourglass_jax.evaluation.datasets import open_dataset
from hourglass_jax.evaluation.evaluate import check_fit
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import labels_of, wordnet_ids
from hourglass_jax.metrics.classification import ClassificationMetric
from hourglass_jax.models.segmenter import Segmenter
from hourglass_jax.models.swag import Swag, SwagConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

METRIC = ClassificationMetric(7)
CLASSES = (3, 998, 134)
"""Of the images in `imagenet`, by turns."""


def test_by_hand() -> None:
    result = np.array([0.1, 0.3, 0.2, 0.0, 0.15, 0.2, 0.05])
    found = [METRIC.count(result, truth)[truth].tolist() for truth in range(7)]
    assert found == [[1, 0, 1], [1, 1, 1], [1, 0, 1], [1, 0, 0], [1, 0, 1], [1, 0, 1], [1, 0, 0]]
    counts = METRIC.count(result, 3)
    assert (counts.dtype, counts.sum()) == (np.int64, 1)


def test_of_equal_results_the_first_counts_more() -> None:
    equal = np.zeros(7)
    assert [METRIC.count(equal, truth)[truth, 2] for truth in range(7)] == [1] * 5 + [0] * 2
    assert METRIC.count(equal, 0)[0, 1] == 1


def test_figures_are_those_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truths, results = random.integers(0, 6, 200), random.random((200, 7)).astype(np.float32)
    results[np.arange(200), truths] += 0.3
    total = sum((METRIC.count(*each) for each in zip(results, truths, strict=True)), METRIC.zeros())
    found = METRIC.scores(total)
    for value, k in ((found.top1, 1), (found.top5, 5)):
        assert value == pytest.approx(top_k_accuracy_score(truths, results, k=k, labels=range(7)))
    for label in range(6):
        mine = truths == label
        assert found.top1_by_class[label] == pytest.approx(np.mean(results[mine].argmax(axis=1) == label))
    assert np.isnan(found.top1_by_class[6])
    assert METRIC.shown(found) == {"top-1, %": f"{100 * found.top1:.2f}", "top-5, %": f"{100 * found.top5:.2f}"}


def test_no_images_have_no_figures() -> None:
    found = METRIC.scores(METRIC.zeros())
    assert np.isnan([found.top1, found.top5, *found.top1_by_class]).all()


@pytest.mark.parametrize(
    ("result", "truth", "message"),
    [
        (np.zeros(6), 0, r"result must be floats \[7\], got float64 \[6\]"),
        (np.zeros((7, 1)), 0, r"result must be floats \[7\], got float64 \[7, 1\]"),
        (np.zeros(7, int), 0, r"result must be floats \[7\], got int64 \[7\]"),
        (np.full(7, np.nan), 0, "result must be finite, got NaN or infinity"),
        (np.zeros(7), 7, "truth must lie in 0..6, got 7"),
        (np.zeros(7), -1, "truth must lie in 0..6, got -1"),
    ],
)
def test_wrong_results_and_truths_are_refused(result: np.ndarray, truth: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        METRIC.count(result, truth)


def swag(classes: int = 1000, dataset: str | None = "imagenet2012") -> Swag:
    """A small classifier of images of 32 pixels."""
    config = SwagConfig(
        ViTConfig(patch_size=8, width=64, depth=2, heads=1, position_grid=(4, 4)),
        classes,
        dataset,
        Preprocessing(size=32, multiple=8, resize="crop", interpolation="bicubic"),
    )
    made = nnx.eval_shape(lambda: Swag(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    state = jax.tree.map(lambda each: random.normal(0, 0.2, each.shape).astype(np.float32), nnx.state(made))
    nnx.update(made, state)
    return made


@pytest.fixture(scope="module")
def classifier() -> Swag:
    """Its first classes are those that it finds in half of the images of `imagenet`, by its biases."""
    made = swag()
    bias = np.array(made.head.bias[...])
    bias[list(CLASSES)] += 3
    made.head.bias[...] = bias
    return made


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eleven images in folders by WordNet id, one grey, of several sizes."""
    root = tmp_path_factory.mktemp("imagenet")
    for seed in range(11):
        random = np.random.default_rng(seed)
        size = (40, 33 + seed) if seed == 4 else (40, 33 + seed, 3)
        folder = root / "val" / wordnet_ids()[CLASSES[seed % 3]]
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"ILSVRC2012_val_{seed:08d}.JPEG"
        Image.fromarray(random.integers(0, 256, size, np.uint8)).save(path, "JPEG")
    return root


Run = Callable[..., str]


@pytest.fixture
def run(classifier: Swag, imagenet: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command; returns what it prints."""
    file = hj.save(classifier, tmp_path / "swag.safetensors")
    paths = ["--model", file, "--data-dir", imagenet, "--output", tmp_path / "out"]

    def run(*options: object) -> str:
        arguments = ["--dataset", "imagenet2012", *paths, "--batch", 2, *options]
        tyro.cli(command, args=[*map(str, arguments)], config=(tyro.conf.DisallowNone,))
        return capsys.readouterr().out

    return run


def test_the_command_evaluates_a_classifier(run: Run, classifier: Swag, imagenet: Path, tmp_path: Path) -> None:
    plan = hj.Hourglass(1, (2, 3))
    printed = run("--alpha", 1, "--clusters", 2, 3)
    result = json.loads((tmp_path / "out/result.json").read_text())
    for word in ["imagenet2012 val, 11 images, size 32", "top-1, %", "top-5, %", "original", "expedited"]:
        assert word in printed
    data = open_dataset("imagenet2012", imagenet)
    for name, fast in (("original", classifier), ("expedited", hj.expedite(classifier, plan))):
        probabilities = hj.Predictor(fast, batch_size=2)([image for _, image, _ in data])
        ranks = [int((each > each[truth]).sum()) for each, (_, _, truth) in zip(probabilities, data, strict=True)]
        assert result[name]["top1"] == pytest.approx(np.mean(np.array(ranks) < 1))
        assert result[name]["top5"] == pytest.approx(np.mean(np.array(ranks) < 5))
        assert f"{100 * result[name]['top5']:.2f}" in printed
    assert 0 < result["original"]["top1"] < result["original"]["top5"]
    by_class = result["original"]["top1_by_class"]
    names = labels_of("imagenet2012", 1000).names
    assert list(by_class) == list(names)
    assert {name for name, value in by_class.items() if value is not None} == {names[label] for label in CLASSES}
    assert json.loads(run("--alpha", 1, "--clusters", 2, 3, "--json")) == result


def test_the_command_goes_on_where_it_ended(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = json.loads(run("--json"))
    journal = tmp_path / "out/original/journal.0.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    assert json.loads(lines[1])["key"] == "n01491361/ILSVRC2012_val_00000000.JPEG"
    assert all(json.loads(line)["counts"][0][1:] == [0, 1] for line in lines[1:])
    journal.write_text("".join(lines[:5]) + lines[5][:20])
    counted = []
    count = ClassificationMetric.count
    monkeypatch.setattr(ClassificationMetric, "count", lambda *each: counted.append(each) or count(*each))
    assert json.loads(run("--json")) == whole
    assert len(counted) == 7
    assert journal.read_text().splitlines(keepends=True) == lines


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--alpha 1 --clusters 5 4", "5 x 4 clusters for 4 x 4 tokens"),
        ("--size 33", "size must be a positive multiple of 8, got 33"),
        ("--split train", r"holds no train split of imagenet2012: looked for \[{val,train}/\]CLASS"),
    ],
)
def test_wrong_options_are_refused_before_the_work(options: str, message: str, run: Run, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        run(*options.split())
    assert not (tmp_path / "out").exists()


def test_models_that_do_not_fit_are_refused(
    imagenet: Path, cityscapes: Path, classifier: Swag, model: Segmenter
) -> None:
    data = open_dataset("imagenet2012", imagenet)
    check_fit(swag(dataset=None), data)
    with pytest.raises(ValueError, match="the 1000 classes of imagenet2012 apart, got one for 10 classes"):
        check_fit(swag(10, None), data)
    with pytest.raises(ValueError, match="imagenet2012 needs a model for classification, got Segmenter"):
        check_fit(model, data)
    with pytest.raises(ValueError, match="cityscapes needs a model for segmentation, got Swag"):
        check_fit(classifier, open_dataset("cityscapes", cityscapes))
