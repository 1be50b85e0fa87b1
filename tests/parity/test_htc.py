"""Whole detectors against their composition in PyTorch, converted from mmdetection's checkpoints."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.imaging.images import resampled
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.models.htc import HTC
from hourglass_jax.ops.roi_align import roi_align
from hourglass_jax.tasks.detections import DetectionOutputs
from tests.convert import test_htc as checkpoints
from tests.parity.htcs import Detector, Found, Tensors, pasted, sized
from tests.parity.swins import detection_names, normed
from tests.parity.vits import channels_first, random_images, randomize

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

CLASSES, DEPTHS, SIZE, PADDED = 6, (1, 2, 1, 1), (90, 121), (96, 128)
FLAGS = {
    "cascade": {"version": 1},
    "htc": {
        "version": 2, "convolutions": False, "class_agnostic": True, "flow": True, "semantic": True,
        "attention": True,
    },
}  # fmt: skip
TEXT = """
model = dict(neck=[dict(num_head=4)], test_cfg=dict(
    rpn=dict(nms_pre=200, max_per_img=150),
    rcnn=dict(score_thr={threshold}, nms=dict(type='{kind}', iou_threshold=0.5))))
"""


class Case:
    """A detector in PyTorch, in float64, and ours with the same weights, made from its checkpoint."""

    def __init__(self, name: str, folder: Path) -> None:
        flags = FLAGS[name]
        self.version = flags["version"]
        kind = "Swin" if self.version == 1 else "Swinv2"
        config = getattr(transformers, f"{kind}Config")(
            embed_dim=8,
            depths=DEPTHS,
            num_heads=(2, 4, 8, 16),
            window_size=4,
            image_size=256,
            out_features=[f"stage{number}" for number in range(1, 5)],
        )
        self.backbone = randomize(getattr(transformers, f"{kind}Backbone")(config))
        flags = {name: value for name, value in flags.items() if name != "version"}
        self.tensors = sized(checkpoints.heads(CLASSES, **flags))
        self.tensors |= {n: t.as_subclass(torch.Tensor) for n, t in norms(detection_names(self.backbone)).items()}
        is_cascade = name == "cascade"
        self.detector = Detector(
            self.tensors,
            flow=not is_cascade,
            semantic=not is_cascade,
            soft=not is_cascade,
            threshold=0.05 if is_cascade else 0.001,
            attention_heads=0 if is_cascade else 4,
            candidates=200,
            proposals=150,
        )
        text = TEXT.format(threshold=self.detector.threshold, kind="soft_nms" if self.detector.soft else "nms")
        meta = {"CLASSES": tuple("abcdef"), "config": text}
        torch.save({"meta": meta, "state_dict": self.tensors}, folder / "detector.pth")
        summary = convert(folder / "detector.pth")
        assert (summary.family, summary.notes) == ("htc", ())
        self.ours: HTC = hj.load(summary.target)
        self.detector = replace(self.detector, tensors={n: t.double() for n, t in self.tensors.items()})

    def maps(self, image: np.ndarray) -> list[np.ndarray]:
        """What transformers' backbone makes of an image, [1, H, W, C]."""
        padded = np.zeros((1, *PADDED, 3), np.float32)
        padded[0, : SIZE[0], : SIZE[1]] = image
        with torch.no_grad():
            maps = self.backbone(channels_first(padded)).feature_maps
        if self.version == 2:
            return normed(maps, self.tensors)
        return [each.permute(0, 2, 3, 1).numpy() for each in maps]

    def theirs(self, maps: tuple[np.ndarray, ...]) -> Found:
        """What the composition makes of maps."""
        torch.set_default_dtype(torch.float64)
        try:
            with torch.no_grad():
                return self.detector([channels_first(np.array(each)).double() for each in maps], SIZE)
        finally:
            torch.set_default_dtype(torch.float32)


def norms(tensors: Tensors) -> Tensors:
    """Norms of the narrower backbone, which are made up for one of another width."""
    for number in range(4):
        for leaf, ends in (("weight", (0.5, 1.5)), ("bias", (-1, 1))):
            name = f"backbone.norm{number}.{leaf}"
            if len(tensors[name]) != 8 * 2**number:
                tensors[name] = torch.linspace(*ends, 8 * 2**number)
    return tensors


@pytest.fixture(scope="module", params=[*FLAGS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return Case(request.param, tmp_path_factory.mktemp("htc"))


@nnx.jit
def detect(model: HTC, images: jax.Array) -> tuple[tuple[jax.Array, ...], DetectionOutputs]:
    features = model.features(images)
    return features.maps, model.decode(features, None)


def smooth_image(seed: int) -> np.ndarray:
    """Boxes are rounded to 1e-5 px: what is read of them must not change more over so small a step."""
    noise = 2 * random_images(8, 10, batch=1, seed=seed)[0]
    return resampled(noise, SIZE, "bicubic")


@pytest.mark.parametrize("seed", range(3))
def test_boxes_scores_classes_and_masks(case: Case, seed: int) -> None:
    """The heads are compared on maps that are the same bit by bit."""
    image = smooth_image(seed)
    maps, found = jax.tree.map(np.asarray, detect(case.ours, image[None]))
    for mine, theirs in zip(maps, case.maps(image), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=0, atol=1e-4)
    expected = case.theirs(maps)
    count = len(expected.scores)
    assert (found.scores[0] > 0).sum() == count > 5
    boxes, scores, labels, masks = (each[0, :count] for each in found)
    np.testing.assert_allclose(scores, expected.scores, rtol=0, atol=1e-5)
    gaps = np.abs(np.diff(scores, prepend=np.inf, append=-np.inf))
    sure = (gaps[:-1] > 1e-4) & (gaps[1:] > 1e-4)
    assert sure.sum() > 5
    np.testing.assert_array_equal(labels[sure], expected.labels[sure])
    np.testing.assert_allclose(boxes[sure], expected.boxes[sure], rtol=0, atol=1e-3)
    np.testing.assert_allclose(masks[sure], expected.masks[sure], rtol=0, atol=5e-4)
    size = (173, 260)
    [task] = case.ours.tasks.values()
    result = task.postprocess(found, whole_layout(SIZE), size)
    scale = np.array([size[1] / SIZE[1], size[0] / SIZE[0]] * 2, np.float32)
    bits = pasted(expected.masks[sure], expected.boxes[sure] * torch.from_numpy(scale), size).numpy()
    assert np.mean(np.asarray(result.masks)[sure] == bits) > 0.9999


def test_nothing_is_found_in_either_under_a_high_threshold(case: Case) -> None:
    """And what is not there takes part in nothing: no score, no box, no class."""
    image = random_images(*SIZE, batch=1)
    model = nnx.clone(case.ours)
    for head in model.box_heads:
        head.classifier.bias[...] = head.classifier.bias[...].at[-1].set(1e3)
    _, found = detect(model, image)
    assert not np.any(found.scores)
    assert not np.any(found.boxes)


@pytest.mark.parametrize("bins", [7, 14])
def test_roi_align_is_torchvisions_inside_a_map(bins: int) -> None:
    ops = pytest.importorskip("torchvision.ops.roi_align")
    random = np.random.default_rng(0)
    image = random.normal(size=(20, 24, 5)).astype(np.float32)
    corners = np.sort(random.uniform(0, (96, 80), (20, 2, 2)), axis=1)
    boxes = corners.reshape(20, 4).astype(np.float32)
    found = roi_align((jnp.asarray(image),), jnp.asarray(boxes), jnp.zeros(20, jnp.int32), (4,), bins)
    rois = torch.from_numpy(np.pad(boxes, ((0, 0), (1, 0))))
    plain: Callable = ops._roi_align.__wrapped__
    expected = plain(channels_first(image[None]), rois, 0.25, bins, bins, 0, True)
    np.testing.assert_allclose(found, expected.permute(0, 2, 3, 1), atol=5e-5)
