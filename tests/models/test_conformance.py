"""Every model keeps the contract of `models.base`: a new one is tested by standing in `tiny.MODELS`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.detector_resnet import DetectorResNet
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.classification import ClassificationMetric
from hourglass_jax.metrics.depth import DepthMetric
from hourglass_jax.metrics.panoptic import PanopticMetric
from hourglass_jax.metrics.segmentation import SegmentationMetric
from hourglass_jax.models.base import VisionModel
from hourglass_jax.models.registry import MODELS as REGISTERED
from hourglass_jax.tasks.base import Rendering, Task
from tests.models.tiny import MODELS, MeanOverlap, PromptedToy, build, build_prompted

pytestmark = pytest.mark.usefixtures("quick_compilation")

PLANS = {
    "hourglass": hj.Hourglass(1, (3, 3)),
    "hourglass, logits": hj.Hourglass(1, (3, 3), reconstruct="logits"),
    "hourglass in windows": hj.Hourglass(1, (2, 2)),
    "token merging": hj.TokenMerging(keep=0.8),
    "staged merging": hj.StagedMerging(0.8),
    "evit": hj.EViT(0.7),
    "dynamic vit": hj.DynamicViT(0.7),
    "act": hj.ACT(9),
    "pooling": hj.Pooling(1, (2, 2)),
    "downsampling": hj.Downsampling(0.5),
}
SIZE = (48, 64)
SLOW = ("htc, Swin", "mask2former, Swin", "mask2former, ResNet", "eomt, in windows and masked")
"""They compile for long, and have quick tests of their own."""
every_model = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in MODELS]
)


@pytest.fixture(scope="module")
def models() -> dict[str, VisionModel]:
    return {name: build(name) for name in MODELS}


def random_images(batch: int = 2, dtype: jnp.dtype = jnp.float32) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *SIZE, 3)), dtype)


def photo(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


@jax.jit
def run(model: VisionModel, images: jax.Array) -> object:
    return model(images)


def buffers(model: nnx.Module) -> list[int]:
    return [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]


def plan_for(model: VisionModel) -> hj.Plan | None:
    """One that the backbone takes, if there is one for backbones of its kind."""
    for plan in PLANS.values():
        try:
            hj.expedite(model, plan).backbone.check_plan(plan, SIZE)
        except ValueError:
            continue
        return plan
    assert isinstance(model.backbone, DetectorResNet), "no plan fits"
    return None


def test_every_registered_model_is_here() -> None:
    assert {name.split(",")[0] for name in MODELS} | {"sam"} == set(REGISTERED)


@every_model
def test_a_call_is_the_head_on_the_features(name: str, models: dict[str, VisionModel]) -> None:
    model, images = models[name], random_images()
    split = jax.jit(lambda model, images: model.decode(model.features(images), images.shape[1:3]))(model, images)
    jax.tree.map(np.testing.assert_array_equal, split, run(model, images))


@every_model
def test_a_batch_is_its_single_images(name: str, models: dict[str, VisionModel]) -> None:
    images = random_images()
    fast = hj.expedite(models[name], plan_for(models[name]))
    together, alone = run(fast, images), run(fast, images[1:])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a[1], b[0], rtol=0, atol=1e-4), together, alone)
    assert not np.allclose(jax.tree.leaves(together)[0][0], jax.tree.leaves(together)[0][1])


@every_model
def test_a_saved_model_is_the_same(name: str, models: dict[str, VisionModel], tmp_path) -> None:
    model = models[name]
    loaded = hj.load(hj.save(model, tmp_path / "model.safetensors"))
    assert (type(loaded), loaded.config) == (type(model), model.config)
    jax.tree.map(np.testing.assert_array_equal, run(loaded, random_images()), run(model, random_images()))


SELECTING = {"htc, Swin"}
"""Models whose outputs are what was selected, which another rounding may change altogether."""


@every_model
@pytest.mark.slow
def test_bfloat16_follows_float32(name: str, models: dict[str, VisionModel]) -> None:
    """What the head reads with a cosine of 0.999, token by token in the mean; then the outputs."""

    @jax.jit
    def read(model: VisionModel, images: jax.Array) -> tuple[jax.Array, object]:
        features = model.features(images)
        return model.head_input(features).astype(jnp.float32), model.decode(features, SIZE)

    (read_half, half), (read_full, full) = (
        read(model, random_images()) for model in (build(name, dtype=jnp.bfloat16), models[name])
    )
    lengths = np.linalg.norm(read_half, axis=-1) * np.linalg.norm(read_full, axis=-1)
    assert np.mean(np.sum(read_half * read_full, axis=-1) / lengths) > 0.999
    for found, wanted in zip(jax.tree.leaves(half), jax.tree.leaves(full), strict=True):
        if name in SELECTING:
            assert np.isfinite(found).all()
            continue
        assert found.dtype == jnp.float32
        assert np.isfinite(found).all()
        assert np.abs(found - wanted).mean() < 0.1 * np.abs(wanted).mean() + 0.02


@every_model
def test_a_plan_shares_the_arrays_and_changes_the_result(name: str, models: dict[str, VisionModel]) -> None:
    model, plan = models[name], plan_for(models[name])
    if plan is None:
        pytest.skip("no plan fits its backbone")
    before = run(model, random_images())
    fast = hj.expedite(model, plan)
    assert (fast.backbone.plan, model.backbone.plan) == (plan, None)
    assert buffers(fast) == buffers(model)
    assert not np.allclose(jax.tree.leaves(run(fast, random_images()))[0], jax.tree.leaves(before)[0], atol=1e-4)
    jax.tree.map(np.testing.assert_array_equal, run(model, random_images()), before)


@every_model
def test_every_plan_that_fits_keeps_the_form_of_the_outputs(name: str, models: dict[str, VisionModel]) -> None:
    images = jax.ShapeDtypeStruct((2, *SIZE, 3), jnp.float32)
    original = nnx.eval_shape(lambda model, images: model(images), models[name], images)
    taken = 0
    for plan in PLANS.values():
        try:
            fast = hj.expedite(models[name], plan)
            fast.backbone.check_plan(plan, SIZE)
        except ValueError as problem:
            assert "\n" not in str(problem)
            continue
        assert nnx.eval_shape(lambda model, images: model(images), fast, images) == original
        taken += 1
    assert taken == {"Swin": 2, "ResNet": 0}.get(name.split(", ")[-1], len(PLANS))


@every_model
def test_what_the_head_reads_has_a_vector_for_each_place(name: str, models: dict[str, VisionModel]) -> None:
    found = jax.jit(lambda model, images: model.head_input(model.features(images)))(models[name], random_images())
    assert (found.ndim, len(found)) == (3, 2)


def check_rendering(rendering: Rendering, photo: np.ndarray) -> None:
    assert rendering.overview.dtype == np.uint8
    assert rendering.overview.ndim == 3
    for picture in rendering.pictures.values():
        assert picture.dtype in (np.uint8, np.uint16)
        assert picture.shape[0] >= photo.shape[0]
    json.dumps(rendering.records)
    assert set(rendering.units) <= set(rendering.pictures)


@every_model
def test_photographs_become_results_and_pictures(name: str, models: dict[str, VisionModel]) -> None:
    """Every task of the model: alone and together, compared, drawn and measured."""
    model = models[name]
    photos = [photo(50, 64), photo(40, 40, seed=1), photo(50, 64, seed=2)]
    assert next(iter(model.tasks)) == hj.Predictor(model).task.name
    for key, task in model.tasks.items():
        assert key == task.name
        predictor = hj.Predictor(model, task=key, batch_size=2)
        results = predictor(photos)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), results[1], predictor(photos[1]))
        for image, result in zip(photos, results, strict=True):
            check_rendering(task.render(image, result), image)
            assert task.difference(result, result).max() <= 1e-5
            assert task.agreement(result, result) in (1, None)
        other = task.difference(results[0], results[2])
        assert 0 < other.max() <= 2
        check_metric(task, results[0])


METRICS: dict[str, tuple[Metric, object]] = {
    "segmentation": (SegmentationMetric(5), None),
    "panoptic": (PanopticMetric(5, (0, 2)), None),
    "depth": (DepthMetric(1e4), None),
    "classification": (ClassificationMetric(7), 3),
}
"""Task -> a metric for the tiny models' classes, and a ground truth where a result is none itself."""


def check_metric(task: Task, result: np.ndarray) -> None:
    """A metric takes the result, its record passes through JSON, and a perfect result has perfect figures."""
    if task.name not in METRICS:
        with pytest.raises(ValueError, match=r"no |must tell the 150 classes of ade20k apart"):
            task.check_dataset("ade20k", 150)
        return
    published, truth = METRICS[task.name]
    metric = task.metric(published)
    total = metric.empty()
    metric.add(total, json.loads(json.dumps(metric.record(result, result if truth is None else truth))))
    assert metric.shown(metric.scores(total))
    if task.name == "segmentation":
        assert metric.scores(total).pixel_accuracy == 1
        with pytest.raises(ValueError, match="must tell the 6 classes of x apart, got one for 5"):
            task.check_dataset("x", 6)


@every_model
def test_a_task_that_the_model_has_not_is_named(name: str, models: dict[str, VisionModel]) -> None:
    with pytest.raises(ValueError, match=r"has the tasks .*, and not 'tea'"):
        hj.Predictor(models[name], task="tea")


@every_model
def test_what_is_not_finite_is_no_result(name: str, models: dict[str, VisionModel]) -> None:
    broken = nnx.clone(models[name])
    nnx.update(broken.backbone, jax.tree.map(lambda each: jnp.nan * each, nnx.state(broken.backbone, nnx.Param)))
    with pytest.raises(ValueError, match="the model's output for an image must be finite, got NaN or infinity"):
        hj.Predictor(broken)(photo(40, 40))


POINTS = jnp.array([[[4.0, 4], [40, 60], [20, 30]]] * 2)


@jax.jit
def answer(model: PromptedToy, features: object, points: jax.Array) -> object:
    return model.decode(features, points, None)


@pytest.mark.parametrize("plan", [None, hj.Hourglass(1, (3, 3)), hj.StagedMerging(0.8)], ids=str)
def test_an_image_is_encoded_once_for_many_prompts(plan: hj.Plan | None) -> None:
    toy = hj.expedite(build_prompted(), plan)
    encode = jax.jit(lambda model, images: model.features(images))
    encoded = encode(toy, random_images())
    before = jax.tree.map(np.array, encoded)
    first, second = answer(toy, encoded, POINTS), answer(toy, encoded, POINTS[:, ::-1])
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.asarray, encoded))
    np.testing.assert_allclose(first.masks, second.masks[:, ::-1], rtol=0, atol=1e-4)
    np.testing.assert_allclose(first.qualities, second.qualities[:, ::-1], rtol=0, atol=1e-6)
    alone = answer(toy, encode(toy, random_images()[1:]), POINTS[1:])
    np.testing.assert_allclose(first.masks[1], alone.masks[0], rtol=0, atol=1e-4)


def test_answers_to_prompts_are_results_like_others() -> None:
    toy, image = build_prompted(), photo(50, 64)
    task = toy.tasks["point masks"]
    prepared = toy.config.preprocessing(image)[None]
    size = prepared.shape[1:3]
    outputs = jax.tree.map(np.asarray, answer(toy, toy.features(prepared), POINTS[:1] // 2))
    result = task.postprocess(outputs, whole_layout(size), (50, 64))
    assert (result.shape, result.dtype) == ((3, 50, 64), bool)
    check_rendering(task.render(image, result), image)
    assert task.agreement(result, result) == 1
    metric = task.metric(MeanOverlap())
    total = metric.empty()
    for truth in (result, ~result, result):
        metric.add(total, json.loads(json.dumps(metric.record(result, truth))))
    assert metric.scores(total) == 1
    assert metric.progress(total) == "3 images"


@pytest.mark.slow
def test_bfloat16_answers_follow_float32() -> None:
    half, full = (
        answer(toy, toy.features(random_images()), POINTS)
        for toy in (build_prompted(dtype=jnp.bfloat16), build_prompted())
    )
    assert half.masks.dtype == jnp.float32
    assert np.abs(half.masks - full.masks).mean() < 0.1 * np.abs(full.masks).mean()
