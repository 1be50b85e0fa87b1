"""SWAG: shapes, what the head reads, what the hourglass leaves out, and what the predictor makes of it."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.search.budget import Costs

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = SwagConfig(
    ViTConfig(
        patch_size=8, width=64, depth=4, heads=2, position_grid=(4, 4), position_resize="bicubic-align-corners"
    ),
    classes=9,
    preprocessing=Preprocessing(size=32, multiple=8, resize="crop", interpolation="bicubic"),
)
PLAN = hj.Hourglass(1, (2, 3), temperature=5.0, neighbors=3)


def swag(config: SwagConfig = CONFIG) -> Swag:
    """Random parameters."""
    model = nnx.eval_shape(lambda: Swag(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        model, jax.tree.map(lambda each: random.normal(0, 0.2, each.shape).astype(np.float32), nnx.state(model))
    )
    return model


@pytest.fixture(scope="module")
def model() -> Swag:
    return swag()


run = nnx.jit(lambda model, images: model(images))


def images(rows: int, columns: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, rows, columns, 3)).astype(np.float32)


def photo(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


def test_the_head_reads_the_class_token(model: Swag) -> None:
    features = model.backbone(images(32, 32))
    np.testing.assert_array_equal(model.head_input(features)[:, 0], features.special[:, 0])
    expected = features.special[:, 0] @ model.head.kernel[...] + model.head.bias[...]
    np.testing.assert_allclose(model.decode(features, (32, 32)), expected, atol=1e-5)


def test_as_many_clusters_as_tokens_change_nothing_and_fewer_do(model: Swag) -> None:
    image = images(32, 32)
    lossless = hj.Hourglass(1, (4, 4), window=1, temperature=1.0)
    np.testing.assert_allclose(run(hj.expedite(model, lossless), image), run(model, image), atol=1e-5)
    assert np.abs(run(hj.expedite(model, PLAN), image) - run(model, image)).max() > 1e-3


def test_nothing_is_reconstructed_unless_blocks_need_it(model: Swag) -> None:
    counts = {beta: count_macs(hj.expedite(model, replace(PLAN, beta=beta)), (32, 32)) for beta in (None, 1, 2, 3)}
    assert counts[None]["reconstruction"] == counts[3]["reconstruction"] == 0 < counts[2]["reconstruction"]
    assert (
        counts[None] == counts[3] == count_macs(hj.expedite(model, replace(PLAN, reconstruct="logits")), (32, 32))
    )
    blocks = {beta: each["blocks"] for beta, each in counts.items()}
    assert blocks[None] < blocks[2] < blocks[1] < count_macs(model, (32, 32))["blocks"]


def test_budgets_are_of_what_is_executed(model: Swag) -> None:
    original, expedited = (count_macs(each, (32, 32)) for each in (model, hj.expedite(model, PLAN)))
    shares = [each["total"] - each["head"] for each in (expedited, original)]
    assert Costs(model, (32, 32))(PLAN) == pytest.approx(shares[0] / shares[1])


def test_the_compiler_executes_what_is_counted() -> None:
    """A reconstruction that nothing reads costs nothing: the same as if there were none."""
    config = replace(CONFIG, backbone=replace(CONFIG.backbone, width=256, heads=4, depth=3))
    model, image = swag(config), images(128, 128, batch=1)
    flops = {
        reconstruct: jax.jit(lambda model, images: model(images))
        .lower(hj.expedite(model, hj.Hourglass(1, (12, 12), reconstruct=reconstruct)), image)
        .compile()
        .cost_analysis()["flops"]
        for reconstruct in ("tokens", "logits")
    }
    assert flops["tokens"] == flops["logits"]


def test_the_predictor_gives_the_probabilities_of_the_middle(model: Swag) -> None:
    image = photo(40, 70)
    found = hj.Predictor(model)(image)
    assert (found.shape, found.dtype) == ((9,), np.float32)
    logits = np.asarray(run(model, CONFIG.preprocessing(image)[None]))[0]
    np.testing.assert_allclose(found, np.exp(logits) / np.exp(logits).sum(), atol=1e-5)
    np.testing.assert_allclose(hj.Predictor(model)([photo(33, 90), image])[1], found, atol=1e-5)


def test_the_most_probable_classes_and_their_picture(model: Swag) -> None:
    result = np.array([0.05, 0.3, 0.02, 0.0, 0.3, 0.2, 0.1, 0.03, 0.0], np.float32)
    task = model.tasks["classification"]
    top = task.top(result)
    assert [each.label for each in top] == [1, 4, 5, 6, 0]
    assert top[0].name == "class 1"
    assert top[0].probability == pytest.approx(0.3)
    image = photo(240, 320)
    picture = task.render(image, result).overview
    np.testing.assert_array_equal(picture[:240], image)
    assert picture.shape[0] > 240
    three = swag(replace(CONFIG, classes=3))
    assert [each.label for each in three.tasks["classification"].top(np.array([0.1, 0.2, 0.7]))] == [2, 1, 0]
    imagenet = swag(replace(CONFIG, classes=1000, dataset="imagenet2012"))
    assert imagenet.tasks["classification"].labels.names[0] == "tench"


def test_the_difference_is_the_probability_that_moved(model: Swag) -> None:
    a, b = np.array([0.5, 0.5, 0.0]), np.array([0.0, 0.75, 0.25])
    task = model.tasks["classification"]
    assert task.difference(a, b) == pytest.approx(0.5)
    assert task.difference(a, a) == 0
    assert task.difference(np.array([1.0, 0]), np.array([0, 1.0])) == 1
    assert (task.agreement(a, a), task.agreement(a, b)) == (1, 0)


def test_config_checks_its_fields() -> None:
    with pytest.raises(ValueError, match="classes must be at least 1, got 0"):
        replace(CONFIG, classes=0)
