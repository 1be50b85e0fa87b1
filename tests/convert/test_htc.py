"""Detectors of mmdetection from random arrays: every part has its place, and what settings and users say."""

import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.htc import plain_settings
from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.models.registry import flat_parameters
from hourglass_jax.ops.nms import Suppression
from tests.convert.test_swin import WIDTH as NARROW
from tests.convert.test_swin import Arrays, buffers, swin
from tests.convert.test_swin import written as write

FAMILIES = {"htc", "htc-mmdet", "htc-resnet"}
WIDTH, HIDDEN = 8, 12
COCO = segment_labels("coco_instance", None)


def layer(name: str, outputs: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def heads(
    classes: int,
    *,
    convolutions: bool = True,
    class_agnostic: bool = False,
    flow: bool = False,
    semantic: bool = False,
    attention: bool = False,
    width: int = WIDTH,
    hidden: int = HIDDEN,
    narrow: int = NARROW,
) -> Arrays:
    """What a checkpoint of mmdetection holds besides the backbone, whose first map has `narrow` channels."""
    neck = "neck.1." if attention else "neck."
    shapes: dict[str, tuple[int, ...]] = {
        **layer("rpn_head.rpn_conv", width, width, 3, 3),
        **layer("rpn_head.rpn_cls", 3, width, 1, 1),
        **layer("rpn_head.rpn_reg", 12, width, 1, 1),
    }
    for number in range(4):
        shapes |= layer(f"{neck}lateral_convs.{number}.conv", width, narrow * 2**number, 1, 1)
        shapes |= layer(f"{neck}fpn_convs.{number}.conv", width, width, 3, 3)
    if attention:
        last = 8 * narrow
        norms = ("norm1", "norm2", "final_norm")
        shapes |= {f"neck.0.{norm}.{leaf}": (last,) for norm in norms for leaf in ("weight", "bias")}
        shapes |= layer("neck.0.attn.qkv", 3 * last, last) | layer("neck.0.attn.proj", last, last)
        shapes |= layer("neck.0.ffn.fc1", 4 * last, last) | layer("neck.0.ffn.fc2", last, 4 * last)
    for stage in range(3):
        head, mask = f"roi_head.bbox_head.{stage}.", f"roi_head.mask_head.{stage}."
        shapes |= layer(f"{head}shared_fcs.0", hidden, 49 * width)
        if convolutions:
            for number in range(4):
                conv = f"{head}shared_convs.{number}."
                shapes[f"{conv}conv.weight"] = (width, width, 3, 3)
                moments = ("weight", "bias", "running_mean", "running_var")
                shapes |= {f"{conv}bn.{leaf}": (width,) for leaf in moments}
        else:
            shapes |= layer(f"{head}shared_fcs.1", hidden, hidden)
        shapes |= layer(f"{head}fc_cls", classes + 1, hidden)
        shapes |= layer(f"{head}fc_reg", 4 if class_agnostic else 4 * classes, hidden)
        for number in range(4):
            shapes |= layer(f"{mask}convs.{number}.conv", width, width, 3, 3)
        if flow and stage:
            shapes |= layer(f"{mask}conv_res.conv", width, width, 1, 1)
        shapes[f"{mask}upsample.weight"], shapes[f"{mask}upsample.bias"] = (width, width, 2, 2), (width,)
        shapes |= layer(f"{mask}conv_logits", classes, width, 1, 1)
    if semantic:
        branch = "roi_head.semantic_head."
        for number in range(5):
            shapes |= layer(f"{branch}lateral_convs.{number}.conv", width, width, 1, 1)
        for number in range(4):
            shapes |= layer(f"{branch}convs.{number}.conv", width, width, 3, 3)
        shapes |= layer(f"{branch}conv_embedding.conv", width, width, 1, 1)
        shapes |= layer(f"{branch}conv_logits", 183, width, 1, 1)
    random = np.random.default_rng(2)
    found = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    for name in [*found]:
        if name.endswith("running_var"):
            found[name] = np.abs(found[name]) + 0.5
            found[name.replace("running_var", "num_batches_tracked")] = np.array(7)
    return found


def detector(classes: int, *, version: int = 1, **flags: bool) -> Arrays:
    """A checkpoint of mmdetection with a Swin of Microsoft's names."""
    backbone = swin(prefix="backbone.", norms=("norm0", "norm1", "norm2", "norm3"), version=version)
    return heads(classes, **flags) | backbone | buffers("backbone.", version, (3, 3, 2, 2))


SWIN_TEXT = """
norm = dict(type='BN', requires_grad=True)
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='CascadeRCNN',
    backbone=dict(type='SwinTransformer', embed_dim=8, depths=[1, 2, 1, 1], window_size=3, ape=False),
    rpn_head=dict(anchor_generator=dict(type='AnchorGenerator', scales=[8], ratios=[0.5, 1.0, 2.0])),
    roi_head=dict(bbox_head=[dict(bbox_coder=dict(target_stds=[0.1, 0.1, 0.2, 0.2])), dict(), dict()]),
    test_cfg=dict(
        rpn=dict(nms_pre=500, max_per_img=300, nms=dict(type='nms', iou_threshold=0.6)),
        rcnn=dict(score_thr=0.02, nms=dict(type='nms', iou_threshold=0.4), max_per_img=50, mask_thr_binary=0.5)))
data = dict(test=dict(pipeline=[dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(1333, 640), transforms=[dict(type='Pad', size_divisor=32)])]))
log_config = __import__('os').system('false')
"""
MMDET3_TEXT = """
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], bgr_to_rgb=True),
    test_cfg=dict(rcnn=dict(
        score_thr=0.001, nms=dict(type='soft_nms', iou_threshold=0.5, min_score=0.002, method='gaussian'))))
test_dataloader = dict(dataset=dict(pipeline=[dict(type='Resize', scale=(1600, 1400), keep_ratio=True)]))
"""


def saved(arrays: Arrays, folder: Path, **meta: object) -> Path:
    """A pickle as mmcv and mmengine save them."""
    path = folder / "checkpoint.pkl"
    path.write_bytes(pickle.dumps({"meta": {"epoch": 36, **meta}, "state_dict": OrderedDict(arrays)}))
    return path


def test_every_part_of_a_cascade_has_its_place(tmp_path: Path) -> None:
    arrays = detector(80)
    summary = convert(saved(arrays, tmp_path, CLASSES=COCO.names, config=SWIN_TEXT))
    assert (summary.family, summary.model, summary.notes) == ("htc", "htc", ())
    model = hj.load(summary.target)
    config = model.config
    assert (config.box_head, config.class_agnostic, config.mask_flow, config.semantic) == (
        *("4conv1fc", False, False, False),
    )
    assert (config.dataset, config.labels, config.hidden) == ("coco_instance", None, HIDDEN)
    assert (config.candidates, config.proposals, config.proposal_threshold) == (500, 300, 0.6)
    assert (config.score_threshold, config.detections) == (0.02, 50)
    assert config.suppression == Suppression(threshold=0.4)
    assert (config.preprocessing.size, config.preprocessing.longest) == (640, 1333)
    np.testing.assert_allclose(config.preprocessing.std, (0.229, 0.224, 0.225), atol=1e-7)
    first = arrays["roi_head.bbox_head.1.shared_fcs.0.weight"].reshape(HIDDEN, WIDTH, 7, 7)
    kernel = model.box_heads[1].linear[0].kernel[...].reshape(7, 7, WIDTH, HIDDEN)
    np.testing.assert_array_equal(kernel, first.transpose(2, 3, 1, 0))
    upsample = arrays["roi_head.mask_head.2.upsample.weight"]
    np.testing.assert_array_equal(model.mask_heads[2].doubling.kernel[...], upsample.transpose(2, 3, 0, 1))
    np.testing.assert_array_equal(
        model.pyramid.laterals[3].kernel[...], arrays["neck.lateral_convs.3.conv.weight"][:, :, 0, 0].T
    )


def test_batch_norms_are_folded_into_convolutions(tmp_path: Path) -> None:
    arrays = detector(80)
    model = hj.load(convert(saved(arrays, tmp_path)).target)
    theirs = "roi_head.bbox_head.2.shared_convs.3."
    weight, norm = (
        arrays[f"{theirs}conv.weight"].astype(np.float64),
        {
            leaf: arrays[f"{theirs}bn.{leaf}"].astype(np.float64)
            for leaf in ("weight", "bias", "running_mean", "running_var")
        },
    )
    patch = np.random.default_rng(0).normal(size=(WIDTH, 3, 3))
    before = np.einsum("ocij,cij->o", weight, patch)
    expected = (before - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5) * norm["weight"] + norm["bias"]
    ours = model.box_heads[2].convolutions[3]
    found = np.einsum("ijco,cij->o", np.asarray(ours.kernel[...], np.float64), patch) + ours.bias[...]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_part_of_htc_plus_plus_has_its_place(tmp_path: Path) -> None:
    """On a Swin V2, with two linear layers, saved by mmengine."""
    arrays = detector(
        3, convolutions=False, class_agnostic=True, flow=True, semantic=True, attention=True, version=2
    )
    meta = {"cfg": MMDET3_TEXT, "dataset_meta": {"classes": ("ant", "bee", "cow")}}
    summary = convert(saved(arrays, tmp_path, **meta))
    assert summary.notes == ("no settings say how many heads the global attention has: 2 of 32 channels are taken",)
    model = hj.load(summary.target)
    config = model.config
    assert (config.box_head, config.class_agnostic, config.mask_flow, config.semantic) == ("2fc", True, True, True)
    assert (config.backbone.version, config.attention_heads) == (2, 2)
    assert config.labels.names == ("ant", "bee", "cow")
    assert config.suppression == Suppression("gaussian", least=0.002)
    assert (config.preprocessing.size, config.preprocessing.longest) == (1400, 1600)
    assert config.preprocessing.mean == (0.5, 0.5, 0.5)
    qkv = arrays["neck.0.attn.qkv.weight"]
    np.testing.assert_array_equal(model.pyramid.attention.block.attention.qkv.kernel[...], qkv.T)
    residual = arrays["roi_head.mask_head.1.conv_res.conv.weight"]
    np.testing.assert_array_equal(model.mask_heads[1].residual.kernel[...], residual[:, :, 0, 0].T)
    assert model.mask_heads[0].residual is None
    embedding = arrays["roi_head.semantic_head.conv_embedding.conv.weight"]
    np.testing.assert_array_equal(model.semantic_branch.embedding.kernel[...], embedding[:, :, 0, 0].T)


def test_a_swin_with_mmdetections_own_names(tmp_path: Path) -> None:
    """Of what patches are merged from, every fourth channel belongs together there: rows and columns in turns."""
    arrays, own = detector(80), {}
    for name, array in arrays.items():
        if name.startswith("backbone."):
            name = name.replace(".layers.", ".stages.").replace(".attn.", ".attn.w_msa.")
            name = name.replace("mlp.fc1", "ffn.layers.0.0").replace("mlp.fc2", "ffn.layers.1")
            name = name.replace("patch_embed.proj.", "patch_embed.projection.")
            if ".downsample." in name:
                chunks = np.split(array, 4, axis=-1)
                array = np.stack([chunks[0], chunks[2], chunks[1], chunks[3]], axis=-1).reshape(array.shape)
            if "attn_mask" in name:
                continue
        own[name] = array
    text = SWIN_TEXT.replace("embed_dim=8", "embed_dims=8")
    summary = convert(saved(own, tmp_path, CLASSES=COCO.names, config=text), tmp_path / "own.safetensors")
    assert summary.family == "htc-mmdet"
    official = convert(saved(arrays, tmp_path, CLASSES=COCO.names, config=SWIN_TEXT), tmp_path / "a.safetensors")
    found, expected = (flat_parameters(hj.load(each.target)) for each in (summary, official))
    assert found.keys() == expected.keys()
    for name, parameter in found.items():
        np.testing.assert_array_equal(parameter, expected[name])


def resnet() -> Arrays:
    """A backbone with mmdetection's names; its first map has as many channels as the Swin's."""
    shapes: dict[str, tuple[int, ...]] = {"backbone.conv1.weight": (4, 3, 7, 7)}
    norms, inputs = {"backbone.bn1": 4}, 4
    for stage in range(4):
        block, outputs = f"backbone.layer{stage + 1}.0.", NARROW * 2**stage
        width = outputs // 4
        shapes |= {
            f"{block}conv1.weight": (width, inputs, 1, 1),
            f"{block}conv2.weight": (width, width, 3, 3),
            f"{block}conv3.weight": (outputs, width, 1, 1),
            f"{block}downsample.0.weight": (outputs, inputs, 1, 1),
        }
        norms |= {f"{block}bn1": width, f"{block}bn2": width, f"{block}bn3": outputs}
        norms[f"{block}downsample.1"] = inputs = outputs
    moments = ("weight", "bias", "running_mean", "running_var")
    shapes |= {f"{norm}.{leaf}": (width,) for norm, width in norms.items() for leaf in moments}
    random = np.random.default_rng(3)
    return {name: random.random(shape).astype(np.float32) + 0.1 for name, shape in shapes.items()}


def test_htc_with_a_resnet(tmp_path: Path) -> None:
    flags = {"convolutions": False, "class_agnostic": True, "flow": True, "semantic": True}
    text = "model = dict(backbone=dict(type='ResNet', style='caffe'))"
    summary = convert(saved(resnet() | heads(80, **flags), tmp_path, CLASSES=COCO.names, config=text))
    assert (summary.family, summary.notes) == ("htc-resnet", ())
    config = hj.load(summary.target).config
    assert config.backbone == DetectorResNetConfig((1, 1, 1, 1), NARROW, 4, stride_first=True)
    assert (config.box_head, config.score_threshold, config.suppression) == ("2fc", 0.001, Suppression())


@pytest.mark.parametrize(
    ("flags", "threshold", "kind", "size"),
    [
        ({}, 0.05, "hard", (800, 1333)),
        ({"flow": True, "semantic": True, "class_agnostic": True}, 0.001, "linear", (1400, 1600)),
        ({"flow": True, "convolutions": False}, 0.001, "hard", (800, 1333)),
    ],
)
def test_without_settings_what_was_published_is_taken_and_said(
    tmp_path: Path, flags: dict[str, bool], threshold: float, kind: str, size: tuple[int, int]
) -> None:
    summary = convert(write(detector(80, **flags), tmp_path))
    assert any("holds no settings" in note and "images of up to" in note for note in summary.notes)
    assert any("taken for COCO's" in note for note in summary.notes)
    config = hj.load(summary.target).config
    assert (config.score_threshold, config.suppression.method) == (threshold, kind)
    assert (config.preprocessing.size, config.preprocessing.longest) == size


def test_classes_without_names_are_numbered(tmp_path: Path) -> None:
    summary = convert(write(detector(4), tmp_path))
    assert any("4 classes without names" in note for note in summary.notes)
    with pytest.raises(CheckpointError, match="classes must be 80 for the data set coco_instance, got 4"):
        convert(write(detector(4), tmp_path), dataset="coco_instance")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("scales=[8]", "scales=[4]", r"ask for rpn_head\.anchor_generator\.scales \(4,\), which no model here has"),
        ("[0.1, 0.1, 0.2, 0.2]", "[0.1, 0.1, 0.1, 0.1]", r"roi_head\.bbox_head\.0\.bbox_coder\.target_stds"),
        ("mask_thr_binary=0.5", "mask_thr_binary=0.4", r"test_cfg\.rcnn\.mask_thr_binary 0\.4"),
        ("embed_dim=8", "embed_dim=96", r"of another model: they say embed_dim \(96,\), the checkpoint has \(8,\)"),
        ("to_rgb=True", "to_rgb=False", "to_rgb False, which no model here has"),
        ("dict(type='nms', iou_threshold=0.4)", "dict(type='matrix')", "suppression .* is not known here"),
        ("(1333, 640)", "[(1333, 640), (1333, 800)]", "img_scale in the settings must be a list of integers"),
    ],
)
def test_settings_of_what_is_not_here_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    source = saved(detector(80), tmp_path, CLASSES=COCO.names, config=SWIN_TEXT.replace(old, new))
    with pytest.raises(CheckpointError, match=message):
        convert(source)


def test_a_cut_off_or_larger_checkpoint_is_refused(tmp_path: Path) -> None:
    arrays = detector(80)
    with pytest.raises(CheckpointError, match=r"no tensor 'roi_head\.mask_head\.2\.upsample\.weight'"):
        convert(write({n: a for n, a in arrays.items() if n != "roi_head.mask_head.2.upsample.weight"}, tmp_path))
    more = arrays | {"roi_head.bbox_head.3.fc_cls.weight": np.zeros((81, HIDDEN), np.float32)}
    with pytest.raises(CheckpointError, match=r"no place for: roi_head\.bbox_head\.3\.fc_cls\.weight"):
        convert(write(more, tmp_path))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a = dict(b=[1, -2.5], c=(True, None))", {"a": {"b": (1, -2.5), "c": (True, None)}}),
        ("a = {'b': 1, **c}\nimport os\nb = os.getcwd()", {"a": {"b": 1}}),
        ("a = 1\na = open('x')", {}),
        ("a = dict(b=lambda: 1, c=[f(), 2], d='x')\nprint(1)", {"a": {"d": "x"}}),
        ("a = " + "[" * 70 + "]" * 70, {}),
    ],
)
def test_only_plain_values_of_a_python_text_are_read(text: str, found: dict) -> None:
    assert plain_settings(text) == found


@pytest.mark.parametrize("text", ["a = (", "a" * (1 << 21), "a = " + "(" * 5000, "\0"])
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"expected a config in Python|more than 262,144 bytes of a config"):
        plain_settings(text)
