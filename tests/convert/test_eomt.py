"""EoMT's checkpoints from random arrays: what becomes of their parts, and what settings and users say."""

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from hourglass_jax.imaging.segment_labels import segment_labels
from hourglass_jax.models.registry import flat_parameters
from tests.convert.checkpoints import WIDTH, Arrays, random_arrays, timm_vit
from tests.convert.test_swin import written as write

FAMILIES = {"eomt", "eomt-transformers", "eomt-dinov3-transformers"}
BACKBONE = "network.encoder.backbone."
DEPTH = 3


def official(classes: int, *, queries: int = 100, gated: bool = False, masked: float = 0) -> Arrays:
    """What Lightning saves of an EoMT of 3 x 3 patches; `masked` is the last block's share of masked queries."""
    vit = timm_vit(BACKBONE, special=("cls_token", "reg_token"), positions=0, scales=True, gated=gated, depth=DEPTH)
    shapes = {
        vit.patches: (WIDTH, 3, 16, 16),
        "network.q.weight": (queries, WIDTH),
        "network.class_head.weight": (classes + 1, WIDTH),
        "network.class_head.bias": (classes + 1,),
        "criterion.empty_weight": (classes + 1,),
    }
    for number in (0, 2, 4):
        shapes |= {
            f"network.mask_head.{number}.weight": (WIDTH, WIDTH),
            f"network.mask_head.{number}.bias": (WIDTH,),
        }
    for number in range(2):
        block = f"network.upscale.{number}."
        shapes |= {
            f"{block}conv1.weight": (WIDTH, WIDTH, 2, 2),
            f"{block}conv2.weight": (WIDTH, 1, 3, 3),
            **{f"{block}{leaf}": (WIDTH,) for leaf in ("conv1.bias", "norm.weight", "norm.bias")},
        }
    colours = {
        "network.encoder.pixel_mean": np.array([0.5, 0.4, 0.3], np.float32).reshape(1, 3, 1, 1),
        "network.encoder.pixel_std": np.array([0.2, 0.3, 0.4], np.float32).reshape(1, 3, 1, 1),
        "network.attn_mask_probs": np.array([0, masked], np.float32),
    }
    return vit.arrays | random_arrays(shapes, seed=1) | colours


NAMES = (
    (r"patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"pos_embed", "embeddings.position_embeddings.weight"),
    (r"cls_token", "embeddings.cls_token"),
    (r"reg_token", "embeddings.register_tokens"),
    (r"blocks\.(\d)\.attn\.proj", r"layers.\1.attention.out_proj"),
    (r"blocks\.(\d)\.attn", r"layers.\1.attention"),
    (r"blocks\.(\d)\.ls(\d)\.gamma", r"layers.\1.layer_scale\2.lambda1"),
    (r"blocks\.(\d)", r"layers.\1"),
    (r"^norm\.", "layernorm."),
    (r"^q\.", "query."),
    (r"class_head", "class_predictor"),
    (r"upscale\.(\d)\.norm", r"upscale_block.block.\1.layernorm2d"),
    (r"upscale\.(\d)", r"upscale_block.block.\1"),
    (r"mask_head\.0", "mask_head.fc1"),
    (r"mask_head\.2", "mask_head.fc2"),
    (r"mask_head\.4", "mask_head.fc3"),
)


def transformers(arrays: Arrays, *, gated: str | None = None) -> Arrays:
    """The same arrays in the names of transformers; `gated` says how the parts of a SwiGLU are called."""
    found = {}
    for name, array in arrays.items():
        name = name.removeprefix("network.").removeprefix("encoder.backbone.")
        if name.startswith("encoder.pixel"):
            continue
        for theirs, ours in NAMES:
            name = re.sub(theirs, ours, name)
        if "qkv" in name:
            found |= {
                name.replace("qkv", f"{part}_proj"): third
                for part, third in zip("qkv", np.split(array, 3), strict=True)
            }
        elif gated == "weights" and ".mlp." in name:
            found[name.replace("fc1", "weights_in").replace("fc2", "weights_out")] = array
        elif gated == "projections" and ".mlp.fc1." in name:
            found |= {
                name.replace("fc1", part): half
                for part, half in zip(("gate_proj", "up_proj"), np.split(array, 2), strict=True)
            }
        elif gated == "projections" and ".mlp.fc2." in name:
            found[name.replace("fc2", "down_proj")] = array
        else:
            found[name] = array[0] if name.endswith("position_embeddings.weight") else array
    return found


def test_every_part_of_a_checkpoint_has_its_place(tmp_path: Path) -> None:
    arrays = official(133, queries=200)
    summary = convert(write(arrays, tmp_path), dataset="coco_panoptic")
    assert summary.family == "eomt"
    assert sum(summary.dropped.values()) == 4
    model = hj.load(summary.target)
    config = model.config
    assert (config.dataset, config.tasks[0], config.window) == ("coco_panoptic", "panoptic", None)
    assert (config.query_blocks, config.masked_blocks, config.padding) == (2, (), "square")
    assert (config.preprocessing.size, config.preprocessing.resize) == (48, "longest")
    assert (config.preprocessing.mean, config.preprocessing.std) == ((0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    assert config.backbone.position_resize == "bicubic-antialias"
    np.testing.assert_array_equal(model.queries[...], arrays["network.q.weight"])
    np.testing.assert_array_equal(model.mask_layers[1].kernel[...], arrays["network.mask_head.2.weight"].T)
    depthwise = arrays["network.upscale.1.conv2.weight"]
    np.testing.assert_array_equal(model.scale_blocks[1].depthwise[...][0, 2], depthwise[:, 0, 0, 2])
    expansion = model.scale_blocks[0].expansion.kernel[...].reshape(WIDTH, 2, 2, WIDTH)
    np.testing.assert_array_equal(expansion[:, 0, 1], arrays["network.upscale.0.conv1.weight"][:, :, 0, 1])
    registers = arrays[f"{BACKBONE}reg_token"]
    np.testing.assert_array_equal(model.backbone.special_tokens[...][1:], registers[0])


@pytest.mark.parametrize("gated", [None, "weights", "projections"])
def test_a_folder_of_transformers_has_the_same_parts(tmp_path: Path, gated: str | None) -> None:
    arrays, labels = official(80, queries=200, gated=gated is not None), segment_labels("coco_instance", None)
    expected = hj.load(convert(write(arrays, tmp_path), dataset="coco_instance").target)
    folder = tmp_path / "folder"
    folder.mkdir()
    settings = {
        "model_type": "eomt",
        "id2label": dict(enumerate(labels.names)),
        "num_queries": 200,
        "num_blocks": 2,
    }
    summary = convert(write(transformers(arrays, gated=gated), folder, settings))
    assert summary.family == "eomt-transformers"
    found = hj.load(summary.target)
    assert (found.config.dataset, found.config.tasks) == ("coco_instance", ("instances",))
    assert found.config.backbone == expected.config.backbone
    theirs = flat_parameters(expected)
    for name, mine in flat_parameters(found).items():
        np.testing.assert_array_equal(mine, theirs[name])


@pytest.mark.parametrize(("dataset", "classes"), [("ade20k", 150), ("cityscapes", 19)])
def test_checkpoints_for_label_maps_see_windows(tmp_path: Path, dataset: str, classes: int) -> None:
    config = hj.load(convert(write(official(classes), tmp_path), dataset=dataset).target).config
    assert config.tasks == ("segmentation",)
    assert (config.window.size, config.window.stride, config.preprocessing.resize) == (48, None, "shortest")


def yaml_of(folder: Path, model: str, data: str) -> Path:
    settings = {"model": {"class_path": f"training.{model}"}, "data": {"class_path": f"datasets.{data}"}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder / "settings.yaml"


def test_the_yaml_of_a_training_says_what_it_is_for(tmp_path: Path) -> None:
    source = write(official(150), tmp_path)
    settings = yaml_of(tmp_path, "x.MaskClassificationPanoptic", "ade20k_panoptic.ADE20KPanoptic")
    config = hj.load(convert(source, settings=settings).target).config
    assert (config.dataset, config.tasks[0]) == ("ade20k", "panoptic")
    settings = yaml_of(tmp_path, "x.MaskClassificationDepth", "x.X")
    with pytest.raises(CheckpointError, match="class_path of the model must be one of MaskClassificationPanoptic"):
        convert(source, settings=settings)


def test_what_nothing_says_is_asked_for_or_told(tmp_path: Path) -> None:
    source = write(official(7), tmp_path)
    with pytest.raises(CheckpointError, match="whether an EoMT is for panoptic maps, instances or label maps"):
        convert(source)
    folder = tmp_path / "folder"
    folder.mkdir()
    summary = convert(write(transformers(official(19)), folder, {"model_type": "eomt"}))
    [note] = [each for each in summary.notes if each.startswith("nothing says")]
    assert note.endswith("if the classes are those of cityscapes, say so with --dataset")
    without = transformers(official(19))
    del without["attn_mask_probs"]
    source = write(without, folder, {"model_type": "eomt"})
    with pytest.raises(CheckpointError, match="how many of the last blocks hold the queries"):
        convert(source)
    assert hj.load(convert(write(without, folder, {"num_blocks": 1})).target).config.query_blocks == 1


def test_blocks_whose_attention_is_masked(tmp_path: Path) -> None:
    summary = convert(write(official(19, masked=0.5), tmp_path), dataset="cityscapes")
    assert hj.load(summary.target).config.masked_blocks == (2,)
    assert any("was being phased out" in note for note in summary.notes)


def test_differences_from_pretrained_weights_are_refused(tmp_path: Path) -> None:
    arrays = official(19)
    arrays |= {f"network.encoder.pixel_{name}": np.zeros((1, 3, 1, 1), np.float32) for name in ("mean", "std")}
    with pytest.raises(CheckpointError, match=r"differences from the pretrained ones \(its pixel_std is 0\)"):
        convert(write(arrays, tmp_path), dataset="cityscapes")


def test_another_vit_is_refused(tmp_path: Path) -> None:
    arrays = {name: array for name, array in official(19).items() if "pos_embed" not in name}
    with pytest.raises(CheckpointError, match="on another ViT than DINOv2's"):
        convert(write(arrays, tmp_path), dataset="cityscapes")
    with pytest.raises(CheckpointError, match="on another ViT than DINOv2's"):
        convert(write(transformers(arrays), tmp_path))


def test_a_config_json_of_another_model_is_refused(tmp_path: Path) -> None:
    arrays = transformers(official(19))
    with pytest.raises(CheckpointError, match=r'config\.json must be of an eomt, got "eomt_dinov3"'):
        convert(write(arrays, tmp_path, {"model_type": "eomt_dinov3"}))
    for key, said in (("num_queries", 7), ("num_blocks", 1)):
        with pytest.raises(CheckpointError, match=f"they say {key} {said}, not "):
            convert(write(arrays, tmp_path, {key: said}))
    names = {"id2label": {"0": "one"}}
    with pytest.raises(CheckpointError, match="names 1 classes, but the checkpoint tells 19 apart"):
        convert(write(arrays, tmp_path, names))
