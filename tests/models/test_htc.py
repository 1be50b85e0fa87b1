"""Detectors on unusual photographs, from the command line, and what their configs refuse."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.cli import main
from hourglass_jax.imaging.keep_ratio import KeepRatio
from hourglass_jax.models.htc import HTC, HTCConfig
from hourglass_jax.ops.nms import Suppression
from hourglass_jax.predictor import run
from tests.evaluation.test_segment_datasets import write_instances
from tests.models.tiny import build, randomize

pytestmark = pytest.mark.usefixtures("quick_compilation")

SMALL = HTCConfig(
    SwinConfig(width=8, depths=(1, 2, 1, 1), head_width=4, window=4),
    width=8,
    hidden=8,
    box_head="2fc",
    class_agnostic=True,
    candidates=30,
    proposals=20,
    score_threshold=0.001,
    suppression=Suppression("linear"),
    detections=4,
    dataset="coco_instance",
    preprocessing=KeepRatio(size=32, longest=64),
)


def abstract(config: HTCConfig) -> HTC:
    return nnx.eval_shape(lambda: HTC(config, rngs=nnx.Rngs(0)))


@pytest.mark.parametrize("size", [(1, 2000), (2000, 1)])
@pytest.mark.slow
def test_thin_and_black_photographs_have_results(size: tuple[int, int]) -> None:
    """Their padded images are of two shapes; a box may not have a single pixel."""
    predictor = hj.Predictor(build("htc, Swin"))
    photo = np.zeros((*size, 3), np.uint8)
    result = predictor(photo)
    assert result.masks.shape == (len(result.scores), *size)
    assert (result.boxes >= 0).all()
    assert (result.boxes <= np.array([size[1], size[0]] * 2) + 1e-3).all()
    predictor.task.render(photo, result)


@pytest.mark.slow
def test_boxes_end_where_the_image_did_before_it_was_filled_up() -> None:
    """One compiled function for images of several sizes."""
    model = build("htc, Swin")
    image = np.random.default_rng(0).normal(size=(1, 32, 60, 3)).astype(np.float32)
    filled = np.pad(image, ((0, 0), (0, 0), (0, 4), (0, 0)))
    found = run(model, filled, np.array([[32, 60]], np.float32))
    jax.tree.map(np.testing.assert_array_equal, found, jax.jit(lambda model, images: model(images))(model, image))
    assert found.boxes[..., 2].max() <= 60
    assert run(model, filled, np.array([[32, 40]], np.float32)).boxes[..., 2].max() <= 40


def test_nothing_is_found_where_nothing_is() -> None:
    model = build("htc, Swin")
    for head in model.box_heads:
        head.classifier.bias[...] = head.classifier.bias[...].at[-1].set(1e3)
    result = hj.Predictor(model)(np.zeros((2000, 1, 3), np.uint8))
    assert (len(result.scores), result.masks.shape) == (0, (0, 2000, 1))


@pytest.mark.parametrize(
    ("rows", "columns", "expected"),
    [(480, 640, (800, 1067)), (427, 640, (800, 1199)), (500, 1000, (667, 1333)), (1333, 2666, (667, 1333))],
)
def test_images_have_mmdetections_sizes(rows: int, columns: int, expected: tuple[int, int]) -> None:
    assert KeepRatio().target_size(rows, columns) == expected
    assert KeepRatio().target_size(columns, rows) == expected[::-1]


def test_pixels_are_interpolated_without_antialiasing_and_rounded() -> None:
    photo = np.zeros((4, 12, 3), np.uint8)
    photo[:, ::3] = 201
    prepared = KeepRatio(size=4, longest=6, mean=(0.0,) * 3, std=(1.0,) * 3)(photo)
    assert prepared.shape == (2, 6, 3)
    np.testing.assert_allclose(255 * prepared[0, :, 0], [100, 100, 0, 100, 100, 0], atol=1e-4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"box_head": "3fc"}, "box_head must be '2fc' or '4conv1fc', got '3fc'"),
        ({"score_threshold": 2.0}, r"score_threshold must lie in 0\.\.1, got 2\.0"),
        ({"backbone": SwinConfig(width=8, depths=(1, 1), head_width=4)}, "four stages with a norm each"),
        ({"attention_heads": 3}, "attention_heads must divide 64 channels, got 3"),
        ({"classes": 7}, "classes must be 80 for the data set coco_instance, got 7"),
    ],
)
def test_a_config_that_fits_no_detector_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **fields)


def test_a_resnet_has_the_same_heads() -> None:
    model = abstract(replace(SMALL, backbone=DetectorResNetConfig((1, 1, 1, 1), 8, 4)))
    images = jax.ShapeDtypeStruct((2, 45, 64, 3), jnp.float32)
    found = nnx.eval_shape(lambda model, images: model(images), model, images)
    assert (found.boxes.shape, found.masks.shape) == ((2, 4, 4), (2, 4, 28, 28))


def test_multiply_accumulates_are_counted_by_part() -> None:
    model = abstract(SMALL)
    plain, fast = count_macs(model, (64, 96)), count_macs(hj.expedite(model, hj.Hourglass(1, (2, 2))), (64, 96))
    positions, width = sum(16 * 24 // 4**level for level in range(4)), SMALL.width
    laterals = sum(16 * 24 // 4**level * 8 * 2**level * width for level in range(4))
    assert plain["fpn"] == laterals + positions * 9 * width**2
    assert plain["rpn"] == (positions + 2) * width * (9 * width + 15) + 5 * SMALL.candidates**2
    assert plain["head"] == 0
    assert "semantic" not in plain
    assert {part: macs for part, macs in plain.items() if part in ("fpn", "rpn", "boxes", "masks")} == {
        part: fast[part] for part in ("fpn", "rpn", "boxes", "masks")
    }
    assert fast["blocks"] < plain["blocks"]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return hj.save(randomize(abstract(SMALL)), tmp_path_factory.mktemp("htc") / "htc.safetensors")


def test_photographs_are_predicted_with_a_threshold(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)).save(tmp_path / "7.png")
    arguments = ["predict", str(tmp_path / "7.png"), "-o", str(tmp_path), "--model", str(file)]
    main([*arguments, "--threshold", "0.001", "--json"])
    [image] = json.loads(capsys.readouterr().out)["images"]
    found = json.loads((tmp_path / "7_instances.json").read_text())
    assert len(found) == len(image["instances"]) == 4
    assert {each["image_id"] for each in found} == {7}
    assert [each["score"] for each in found] == sorted((each["score"] for each in found), reverse=True)
    assert (tmp_path / "7_overlay.png").is_file()
    with pytest.raises(SystemExit):
        main([*arguments, "--threshold", "3"])
    assert "--threshold must lie in 0..1, got 3" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("pycocotools") is None, reason="pycocotools is not installed")
def test_boxes_and_masks_are_evaluated_with_and_without_a_plan(
    file: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    write_instances(tmp_path / "data")
    main(
        ["eval", "--dataset", "coco_instance", "--data-dir", str(tmp_path / "data"), "--model", str(file),
         "--alpha", "1", "--clusters", "2", "2", "-o", str(tmp_path / "out"), "--json"]
    )  # fmt: skip
    result = json.loads(capsys.readouterr().out)
    for name in ("original", "expedited"):
        assert 0 <= result[name]["box_ap"] <= 1
        assert 0 <= result[name]["mask_ap"] <= 1
        assert set(result[name]["box_by_class"]) >= {"person", "toothbrush"}
