"""DPT: its parts against their definitions, all heads, the hourglass, and what is written of depth."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.comparison import compare
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.vit import BlockFeatures, ViTConfig, ViTFeatures
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.dpt import (
    DPTDepth,
    DPTDepthConfig,
    DPTSegmentation,
    DPTSegmentationConfig,
    Fusion,
    Reassemble,
)
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.depth import Depth

pytestmark = pytest.mark.usefixtures("quick_compilation")

VIT = ViTConfig(patch_size=8, width=32, depth=4, heads=1, position_grid=(4, 4), position_resize="bilinear")
SHAPE = {
    "hooks": (0, 1, 2, 3),
    "widths": (8, 12, 16, 20),
    "fusion_width": 8,
    "preprocessing": Preprocessing(size=32, multiple=16, resize="minimal", interpolation="cubic"),
}
DEPTH = DPTDepthConfig(VIT, **SHAPE)
HYBRID = DPTDepthConfig(
    replace(VIT, stem=ResNetConfig((1, 1), (128, 128), 32)),
    **{**SHAPE, "hooks": (2, 3), "widths": (128, 128, 16, 20)},
)
LABELS = DPTSegmentationConfig(VIT, **SHAPE, classes=5)
PLAN = hj.Hourglass(1, (2, 3), window=3, temperature=5.0, neighbors=3)

run = nnx.jit(lambda model, images: model(images))


def dpt(config: DPTDepthConfig | DPTSegmentationConfig = DEPTH):
    """Random parameters; depth is mostly positive."""
    kind = DPTSegmentation if isinstance(config, DPTSegmentationConfig) else DPTDepth
    model = nnx.eval_shape(lambda: kind(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)

    def fill(path, each):
        values = random.normal(0, 0.2, each.shape).astype(np.float32)
        return abs(values) + 0.1 if path[-1].key in ("var", "scale") else values

    nnx.update(model, jax.tree.map_with_path(fill, nnx.to_pure_dict(nnx.state(model))))
    if kind is DPTDepth:
        model.regression.kernel[...] = abs(model.regression.kernel[...])
    return model


@pytest.fixture(scope="module")
def depth() -> DPTDepth:
    return dpt()


@pytest.fixture(scope="module")
def labels() -> DPTSegmentation:
    return dpt(LABELS)


def images(rows: int, columns: int, batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, rows, columns, 3)).astype(np.float32)


def photo(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 256, (rows, columns, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("config", "plan"),
    [(DEPTH, None), (DEPTH, PLAN), (HYBRID, PLAN), (LABELS, None)],
    ids=["original", "expedited", "hybrid, expedited", "labels"],
)
def test_outputs_have_the_images_size_and_those_of_one_image_are_its_own(config, plan) -> None:
    """Also of a grid with odd sides, whose coarsest map has half of them, rounded up."""
    model, batch = hj.expedite(dpt(config), plan), images(24, 40)
    found = np.asarray(run(model, batch))
    assert (found.shape[:3], found.dtype) == ((2, 24, 40), np.float32)
    beside_another = batch.copy()
    beside_another[0] = 1
    np.testing.assert_allclose(run(model, beside_another)[1], found[1], atol=1e-4)
    assert found.std(axis=(1, 2)).min() > 1e-3


def reassemble(index: int) -> Reassemble:
    module = Reassemble(DEPTH, index, dtype=np.float32, rngs=nnx.Rngs(index))
    noise = jax.tree.map(lambda each: each + 0.1, nnx.state(module))
    nnx.update(module, noise)
    return module


def features(count: int, width: int = 32) -> BlockFeatures:
    random = np.random.default_rng(3)
    return BlockFeatures(*(random.normal(size=(1, n, width)).astype(np.float32) for n in (1, count)))


def test_the_class_token_is_joined_to_every_token() -> None:
    module, found = reassemble(2), features(6)
    joined = np.concatenate([found.tokens, np.repeat(found.special, 6, axis=1)], axis=2)
    expected = nnx.gelu(joined @ module.readout.kernel[...] + module.readout.bias[...], approximate=False)
    expected = expected @ module.projection.kernel[...] + module.projection.bias[...]
    np.testing.assert_allclose(module(found, (2, 3)), expected.reshape(1, 2, 3, -1), atol=1e-5)


@pytest.mark.parametrize(("index", "side"), [(0, 4), (1, 2)])
def test_every_position_becomes_a_tile(index: int, side: int) -> None:
    module, found = reassemble(index), features(6)
    projected = np.asarray(module(found, (2, 3)))
    without = replace(DEPTH, readout="ignore")
    plain = Reassemble(without, index, dtype=np.float32, rngs=nnx.Rngs(index))
    x = np.asarray(plain.projection(found.tokens)).reshape(2, 3, -1)
    width = x.shape[-1]
    kernel = np.asarray(plain.upsampling.kernel[...]).reshape(width, side, side, width)
    tiled = np.asarray(plain(found, (2, 3)))[0]
    assert projected.shape == (1, 2 * side, 3 * side, width)
    for y, x_ in np.ndindex(2 * side, 3 * side):
        expected = x[y // side, x_ // side] @ kernel[:, y % side, x_ % side]
        np.testing.assert_allclose(tiled[y, x_], expected, atol=1e-5)


def test_projection_and_upsampling_commute() -> None:
    """The official code upsamples first."""
    module = Fusion(8, is_first=False, batch_norm=False, dtype=np.float32, rngs=nnx.Rngs(0))
    module.projection.bias[...] = np.arange(8.0)
    x, fused = (np.random.default_rng(seed).normal(size=(1, 3, 4, 8)).astype(np.float32) for seed in (0, 1))
    officially = module.projection(resize(module.unit2(fused + module.unit1(x)), (5, 8), "bilinear-align-corners"))
    np.testing.assert_allclose(module(x, fused, (5, 8)), officially, atol=1e-5)


def test_metres_from_inverse_depth_and_from_a_share(depth: DPTDepth) -> None:
    x = images(32, 32)
    relative = np.asarray(run(depth, x))
    inverted = dpt(replace(DEPTH, inversion=(0.01, 0.2)))
    np.testing.assert_allclose(run(inverted, x), 1 / (0.01 * relative + 0.2), rtol=1e-5)
    shared = np.asarray(run(dpt(replace(DEPTH, max_depth=20.0)), x))
    np.testing.assert_allclose(
        np.where(relative > 0, shared, 0), np.where(relative > 0, 20 / (1 + np.exp(-relative)), 0), rtol=1e-4
    )
    assert 0 < shared[relative == 0].max(initial=5) <= 10
    assert (inverted.config.farthest, depth.config.farthest) == (5.0, None)


def test_features_pass_the_final_norm_where_they_should() -> None:
    module = dpt(replace(DEPTH, norm_features=True, readout="ignore"))
    bare = dpt(replace(DEPTH, readout="ignore"))
    random = np.random.default_rng(0)
    found = ViTFeatures(
        None, None, (4, 4), tuple(BlockFeatures(*random.normal(size=(2, 1, 16, 32))) for _ in range(4))
    )
    normed = found._replace(
        intermediates=tuple(
            BlockFeatures(each.special, module.backbone.norm(each.tokens)) for each in found.intermediates
        )
    )
    fused = np.asarray(module.fused(found))
    np.testing.assert_allclose(bare.fused(normed), fused, atol=1e-4)
    assert np.abs(fused - bare.fused(found)).max() > 0.1


def test_as_many_clusters_as_tokens_change_nothing(depth: DPTDepth) -> None:
    lossless = hj.Hourglass(1, (4, 4), window=1, temperature=1.0, neighbors=1)
    x = images(32, 32)
    np.testing.assert_allclose(run(hj.expedite(depth, lossless), x), run(depth, x), atol=1e-4)


def test_the_hourglass_saves_in_the_blocks_alone(depth: DPTDepth) -> None:
    original, expedited = count_macs(depth, (64, 64)), count_macs(hj.expedite(depth, PLAN), (64, 64))
    assert expedited["blocks"] < original["blocks"]
    assert expedited["head"] == original["head"] > 0
    assert expedited["reconstruction"] > 0


def test_depth_of_photographs_and_what_is_written_of_it(depth: DPTDepth) -> None:
    image = photo(50, 70)
    found = hj.Predictor(depth)(image)
    assert (found.shape, found.dtype) == ((50, 70), np.float32)
    rendering = depth.tasks["depth"].render(image, found)
    pictures = rendering.pictures
    assert list(pictures) == ["depth", "colors"]
    sixteen = pictures["depth"]
    assert (sixteen.dtype, sixteen.min(), sixteen.max()) == (np.uint16, 0, 65535)
    assert pictures["colors"].shape[1] > 70
    assert list(rendering.arrays) == ["inverse_depth"]
    np.testing.assert_array_equal(rendering.arrays["inverse_depth"], found)
    far, near = (
        dpt(replace(DEPTH, max_depth=metres)).tasks["depth"].render(image, found) for metres in (80.0, 20.0)
    )
    assert list(far.arrays) == ["depth_metres"]
    np.testing.assert_array_equal(far.pictures["depth"], np.rint(256 * np.clip(found, 0, 256)))
    assert (far.units, near.units) == ({"depth": "metres times 256"}, {"depth": "millimetres"})


def test_differences_are_relative_to_the_larger_depth() -> None:
    a, b = np.array([[1.0, 2.0, 0.0, 4.0]]), np.array([[2.0, 2.0, 0.0, 0.0]])
    np.testing.assert_allclose(Depth().difference(a, b), [[0.5, 0, 0, 1]])


def test_label_maps_of_photographs(labels: DPTSegmentation) -> None:
    """The most probable class after the resize of the probabilities, not of the logits."""
    image = photo(50, 70)
    prepared = labels.config.preprocessing(image)
    shares = np.asarray(jax.nn.softmax(run(labels, prepared[None])))
    expected = np.asarray(resize(shares, (50, 70), "bicubic")).argmax(axis=-1)[0]
    found = hj.Predictor(labels)(image)
    assert found.dtype == np.uint8 and len(np.unique(found)) >= 3
    assert np.mean(found == expected) > 0.999
    assert list(labels.tasks["segmentation"].render(image, found).pictures) == ["labels", "colors", "overlay"]


def test_compared_with_its_hooked_features(depth: DPTDepth) -> None:
    [[found]] = compare(depth, [PLAN], [images(32, 48)[0]], repeats=1)
    assert found.result.shape == found.difference.shape == (32, 48)
    assert found.figures.cosine < 1 and 0 < found.figures.mae < 1 and found.figures.agreement is None


@pytest.mark.parametrize(
    ("config", "fields", "message"),
    [
        (DEPTH, {"hooks": (2, 3)}, "expected 4 hooks and 4 widths, got 2 and 4"),
        (HYBRID, {"hooks": (0, 1, 2, 3)}, "expected 2 hooks and 4 widths, got 4 and 4"),
        (DEPTH, {"readout": "add"}, "readout must be 'project' or 'ignore', got 'add'"),
        (DEPTH, {"backbone": replace(VIT, special_tokens=0)}, "for a backbone without a class token"),
        (DEPTH, {"inversion": (1.0, 1.0), "max_depth": 2.0}, r"got \(1\.0, 1\.0\) and max_depth 2\.0"),
        (DEPTH, {"inversion": (1.0, 0.0)}, "inversion must be a positive scale and shift"),
        (DEPTH, {"max_depth": 0.0}, r"max_depth must be a positive number of metres, got 0\.0"),
        (LABELS, {"classes": 0}, "classes must be at least 1, got 0"),
    ],
)
def test_configs_check_their_fields(config, fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(config, **fields)
