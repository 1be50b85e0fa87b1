"""Depth: figures, crops and alignment by the pixel, data sets in folders and as built, and the command."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.cli.evaluate import eval as command
from hourglass_jax.cli.options import ModelOptions, PlanOptions
from hourglass_jax.evaluation.datasets import open_dataset, restrict_depth
from hourglass_jax.evaluation.evaluate import check_fit, evaluate
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.metrics.depth import EIGEN, EIGEN_NYU, GARG, DepthMetric, DepthScores
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig
from tests.evaluation.conftest import write
from tests.evaluation.test_datasets import build

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = DPTDepthConfig(
    ViTConfig(patch_size=8, width=32, depth=4, heads=1, position_grid=(4, 4), position_resize="bilinear"),
    hooks=(0, 1, 2, 3),
    widths=(8, 8, 8, 8),
    fusion_width=8,
    inversion=(0.1, 0.1),
    preprocessing=Preprocessing(
        size=(32, 48), multiple=16, resize="minimal", interpolation="cubic", mean=(0.5,) * 3, std=(0.5,) * 3
    ),
)


def model(**fields: object) -> DPTDepth:
    """Random parameters; outputs vary over an image."""
    made = nnx.eval_shape(lambda: DPTDepth(replace(CONFIG, **fields), rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        made, jax.tree.map(lambda each: random.normal(0, 0.2, each.shape).astype(np.float32), nnx.state(made))
    )
    return made


def depth_map(seed: int, rows: int, columns: int, far: float = 9.0) -> np.ndarray:
    """Depths in metres with some that are not known."""
    random = np.random.default_rng(seed)
    depth = random.uniform(0.5, far, (rows, columns))
    depth[random.random(depth.shape) < 0.2] = 0
    return depth.astype(np.float32)


def by_pixels(found: np.ndarray, true: np.ndarray, kept: list[tuple[int, int]]) -> DepthScores:
    """The figures as their definitions say, one pixel after the other."""
    sums = np.zeros(9)
    logs = []
    for place in kept:
        a, b = float(found[place]), float(true[place])
        factor, log = max(a / b, b / a), np.log(a) - np.log(b)
        logs.append(log)
        within = [float(factor < 1.25), float(factor < 1.5625), float(factor < 1.953125)]
        sums += [*within, abs(a - b) / b, (a - b) ** 2 / b, (a - b) ** 2, log**2, 0, abs(np.log10(a) - np.log10(b))]
    means = sums / len(kept)
    mean_log = sum(logs) / len(logs)
    silog = 100 * np.sqrt(sum((log - mean_log) ** 2 for log in logs) / len(logs))
    return DepthScores(*means[:5], np.sqrt(means[5]), np.sqrt(means[6]), silog, means[8])


def test_figures_are_their_definitions() -> None:
    true, found = depth_map(0, 12, 15), depth_map(1, 12, 15) + 0.2
    kept = [place for place in np.ndindex(true.shape) if 1e-3 < true[place] < 7]
    metric = DepthMetric(cap=7.0)
    scores = metric.scores(metric.count(found, true))
    np.testing.assert_allclose(scores, by_pixels(np.clip(found, 1e-3, 7), true, kept), rtol=1e-6)
    assert 0 < scores.delta1 < scores.delta2 < scores.delta3 < 1


@pytest.mark.parametrize(
    ("crop", "size", "expected"),
    [
        (GARG, (375, 1242), (153, 371, 44, 1197)),
        (GARG, (370, 1226), (151, 366, 44, 1181)),
        (EIGEN, (375, 1242), (124, 342, 44, 1197)),
        (EIGEN_NYU, (480, 640), (45, 471, 41, 601)),
    ],
)
def test_crops_keep_whole_pixels(crop: tuple, size: tuple[int, int], expected: tuple[int, ...]) -> None:
    """Those that int() of the published products gives."""
    metric = DepthMetric(cap=10.0, crop=crop)
    rows, columns = np.nonzero(metric._counted_pixels(np.full(size, 5.0)))
    assert (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1) == expected
    assert len(rows) == (expected[1] - expected[0]) * (expected[3] - expected[2])


def test_relative_inverse_depth_is_aligned() -> None:
    """Any scale and shift of the true inverse depth is the truth; beyond the cap it is clipped."""
    true = depth_map(0, 20, 30)
    inverse = 1 / np.where(true > 0, true, 3)
    metric = DepthMetric(cap=80.0, is_relative=True)
    scores = metric.scores(metric.count((700 * inverse + 50).astype(np.float32), true))
    assert (scores.delta1, scores.abs_rel < 1e-3) == (1, True)
    noisy = inverse + np.random.default_rng(1).normal(0, 0.1, inverse.shape)
    kept = true > 0
    terms = np.stack([noisy[kept], np.ones(kept.sum())])
    scale, shift = np.linalg.solve(terms @ terms.T, terms @ (1 / true[kept]))
    aligned = np.zeros_like(noisy)
    aligned[kept] = 1 / np.maximum(scale * noisy[kept] + shift, 1 / 80)
    expected = by_pixels(aligned, true, [*zip(*np.nonzero(kept), strict=True)])
    np.testing.assert_allclose(metric.scores(metric.count(noisy, true)), expected, rtol=1e-4)


def test_a_smaller_result_is_of_the_middle_at_the_bottom() -> None:
    metric, true, found = DepthMetric(cap=10.0), depth_map(0, 20, 31), depth_map(1, 14, 20) + 0.5
    expected = metric.count(found, true[6:, 5:25])
    np.testing.assert_array_equal(metric.count(found, true), expected)
    assert expected[0] == 1


def test_means_are_over_images_and_nothing_known_counts_nothing() -> None:
    metric = DepthMetric(cap=10.0)
    assert np.isnan(metric.scores(metric.zeros())).all()
    np.testing.assert_array_equal(metric.count(np.ones((4, 5)), np.zeros((4, 5))), metric.zeros())
    counts = [metric.count(depth_map(i, 9, 9) + 0.1, depth_map(i + 9, 9, 9)) for i in range(2)]
    means = np.mean([metric.scores(each) for each in counts], axis=0)
    np.testing.assert_allclose(metric.scores(sum(counts)), means, rtol=1e-12)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (np.ones((5, 4)), r"at most the truth's shape \[4, 5\], got \[5, 4\]"),
        (np.ones(4), r"at most the truth's shape \[4, 5\], got \[4\]"),
        (np.full((4, 5), np.nan), "result must be finite"),
    ],
)
def test_bad_results_are_named(result: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DepthMetric().count(result, np.ones((4, 5)))


@pytest.fixture(scope="module")
def kitti(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of KITTI's own folders, of which one has no depth."""
    root = tmp_path_factory.mktemp("kitti")
    lines = []
    for seed, split in enumerate(("val", "train", None)):
        drive = f"2011_09_26_drive_000{seed}_sync"
        image = f"2011_09_26/{drive}/image_02/data/000000000{seed}.png"
        depth = f"{drive}/proj_depth/groundtruth/image_02/000000000{seed}.png"
        write(root / "raw" / image, np.random.default_rng(seed).integers(0, 256, (375, 1242, 3), np.uint8))
        if split:
            values = np.round(depth_map(seed, 375, 1242, far=90) * 256).astype(np.uint16)
            write(root / "data_depth_annotated" / split / depth, values)
        lines.append(f"{image} {depth if split else 'None'} 721.5377")
    (root / "eigen_test_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    return root


def test_kitti(kitti: Path) -> None:
    data = open_dataset("kitti", kitti)
    assert data.keys == tuple(f"2011_09_26_drive_000{i}_sync/000000000{i}" for i in range(2))
    key, image, truth = data[1]
    assert key == data.keys[1]
    whole = np.random.default_rng(1).integers(0, 256, (375, 1242, 3), np.uint8)
    np.testing.assert_array_equal(image, whole[23:, 13:1229])
    assert (truth.dtype, truth.shape) == (np.float32, (375, 1242))
    np.testing.assert_allclose(truth, depth_map(1, 375, 1242, far=90), atol=1 / 512)
    assert (data.metric, data.classes) == (DepthMetric(80.0, GARG), 0)
    assert restrict_depth(data, "eigen", 50.0).metric == DepthMetric(50.0, EIGEN)
    assert restrict_depth(data, "none", None).metric == DepthMetric(80.0)
    assert restrict_depth(data, None, None) is data


@pytest.fixture(scope="module")
def nyu(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with depth in millimetres."""
    root = tmp_path_factory.mktemp("nyu")
    for seed in range(3):
        photo = np.random.default_rng(seed).integers(0, 256, (48, 64, 3), np.uint8)
        write(root / f"val/images/{seed}.png", photo)
        write(root / f"val/depth/{seed}.png", np.round(depth_map(seed, 48, 64) * 1000).astype(np.uint16))
    return root


def test_a_folder_of_images_and_depth(nyu: Path) -> None:
    data = open_dataset("nyu_depth_v2", nyu)
    assert (data.keys, data.source.kind, data.metric) == (("0", "1", "2"), "folder", DepthMetric(10.0, EIGEN_NYU))
    _, image, truth = data[2]
    assert image.shape == (48, 64, 3)
    np.testing.assert_allclose(truth, depth_map(2, 48, 64), atol=1 / 1999)


def test_built_nyu_depth_v2(tmp_path: Path) -> None:
    images = [np.random.default_rng(seed).integers(0, 256, (480, 640, 3), np.uint8) for seed in range(2)]
    depths = [depth_map(seed, 480, 640).astype(np.float16) for seed in range(2)]
    records = []
    for image, depth in zip(images, depths, strict=True):
        write(tmp_path / "image.png", image)
        records.append({"image": (tmp_path / "image.png").read_bytes(), "depth": depth})
    build(tmp_path, "nyu_depth_v2", "validation", records)
    data = open_dataset("nyu_depth_v2", tmp_path)
    assert (len(data), data.source.kind) == (2, "tfds")
    _, image, truth = data[1]
    np.testing.assert_array_equal(image, images[1])
    assert truth.dtype == np.float32
    np.testing.assert_array_equal(truth, depths[1].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda root: (root / "depth/0.png").unlink(), "1 images with their depth maps are expected"),
        (lambda root: write(root / "depth/0.png", np.ones((6, 8), np.uint8)), "one channel of 16 bits, got L"),
        (
            lambda root: write(root / "depth/0.png", np.ones((6, 9), np.uint16)),
            r"image's size \[6, 8\], got \[6, 9\]",
        ),
        (lambda root: (root / "depth/0.png").write_bytes(b"no image"), "the depth map cannot be opened"),
        (
            lambda root: (root / "eigen_test_files_with_gt.txt").write_text("a.png\n"),
            "must hold an image and its depth map in each line",
        ),
    ],
)
def test_bad_data_are_named(change, message: str, tmp_path: Path) -> None:
    write(tmp_path / "images/0.png", np.zeros((6, 8, 3), np.uint8))
    write(tmp_path / "depth/0.png", np.ones((6, 8), np.uint16))
    open_dataset("kitti", tmp_path)[0]
    change(tmp_path)
    with pytest.raises(ValueError, match=message):
        open_dataset("kitti", tmp_path)[0]


def test_options_that_do_not_fit_are_named(nyu: Path, ade20k: Path) -> None:
    with pytest.raises(ValueError, match="crops of nyu_depth_v2 are eigen, none; got crop garg and cap None"):
        restrict_depth(open_dataset("nyu_depth_v2", nyu), "garg", None)
    with pytest.raises(ValueError, match="crops of ade20k are none, nor a cap; got crop None and cap 10"):
        restrict_depth(open_dataset("ade20k", ade20k), None, 10.0)
    with pytest.raises(ValueError, match=r"cap must be more than 0\.001 metres, got 0"):
        restrict_depth(open_dataset("nyu_depth_v2", nyu), None, 0.0)


def test_a_model_for_something_else_is_named(nyu: Path, tiny_model) -> None:
    with pytest.raises(ValueError, match="nyu_depth_v2 needs a model for depth, got Saliency"):
        check_fit(tiny_model, open_dataset("nyu_depth_v2", nyu))


def test_the_command(nyu: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metric = model()
    file = hj.save(metric, tmp_path / "model.safetensors")
    options = ModelOptions(model=str(file), json=True)
    plan = PlanOptions(alpha=1, clusters=(2, 3), temperature=5.0, neighbors=3)
    for _ in range(2):  # the second time everything is counted already
        command("nyu_depth_v2", nyu, options, plan, batch=2, crop="none", output=tmp_path / "out")
        result = json.loads(capsys.readouterr().out)
    assert (result["size"], result["images"]) == ([32, 48], 3)
    predictor = hj.Predictor(metric)
    counts = [
        DepthMetric(10.0).count(predictor(image), truth) for _, image, truth in open_dataset("nyu_depth_v2", nyu)
    ]
    np.testing.assert_allclose([*result["original"].values()], DepthMetric(10.0).scores(sum(counts)), rtol=1e-4)
    assert 0 < abs(result["original"]["rmse"] - result["expedited"]["rmse"]) < 1
    first = (tmp_path / "out/original/journal.0.jsonl").read_text().splitlines()[0]
    assert json.loads(first)["metric"] == {"cap": 10.0, "crop": None, "is_relative": False}


def test_a_real_scene_measures_relative_models_by_their_alignment(tmp_path: Path) -> None:
    """scikit-image's motorcycle with the disparity of its stereo pair: the disparity itself is a perfect result."""
    skimage = pytest.importorskip("skimage.data")
    left, _, disparity = skimage.stereo_motorcycle()
    disparity = np.where(np.isfinite(disparity), disparity, 0)
    # Middlebury 2014, Motorcycle at this size: focal length 994.978, baseline 193.001 mm, offset 31.086 pixels.
    depth = np.where(disparity > 0, 0.193001 * 994.978 / (disparity + 31.086), 0)
    write(tmp_path / "images/motorcycle.png", left)
    write(tmp_path / "depth/motorcycle.png", np.round(1000 * depth).astype(np.uint16))
    data = replace(open_dataset("nyu_depth_v2", tmp_path), metric=DepthMetric(10.0))
    [(_, image, truth)] = data
    assert image.shape[:2] == truth.shape == (500, 741)
    assert 2 < truth[truth > 0].min() < truth.max() < 10
    perfect = DepthMetric(10.0, is_relative=True)
    assert perfect.scores(perfect.count(disparity, truth)).rmse < 2e-3
    relative = model(inversion=None)
    found = evaluate(relative, data, tmp_path / "journals", weights="random")
    assert perfect.scores(perfect.count(hj.Predictor(relative)(image), truth)) == pytest.approx(found)
    constant = perfect.scores(perfect.count(np.ones(truth.shape), truth))
    assert found.rmse <= constant.rmse * 1.1
