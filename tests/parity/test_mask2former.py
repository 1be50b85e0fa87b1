"""Mask2Former against transformers, converted from its folders and from the official names."""

import copy
import json
import pickle
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import torch
import yaml
from flax import nnx

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.mask2former import Mask2Former
from hourglass_jax.models.registry import flat_parameters
from hourglass_jax.tasks.queries import QueryOutputs
from tests.parity.vits import channels_first, random_images
from tests.reference import swin as reference

pytest.importorskip("transformers")

from tests.parity.mask2formers import CLASSES, HEADS, QUERIES, WIDTH, build, official_names, saved_folder
from tests.parity.resnets import config as resnet_config

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4
SIZES = [(64, 64), (96, 128), (128, 64)]


@nnx.jit
def predictions(model: Mask2Former, images: jax.Array) -> list[QueryOutputs]:
    return model.predictions(model.features(images))


@pytest.fixture(scope="module")
def theirs() -> torch.nn.Module:
    return build()


@pytest.fixture(scope="module")
def ours(theirs: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Mask2Former:
    folder = saved_folder(theirs, tmp_path_factory.mktemp("mask2former") / "checkpoint")
    summary = convert(folder)
    assert summary.family == "mask2former-transformers"
    assert any("nothing says what it was trained for" in note for note in summary.notes)
    return hj.load(summary.target)


def all_predictions(model: torch.nn.Module, images: np.ndarray) -> list[QueryOutputs]:
    """Of every layer, by transformers."""
    with torch.no_grad():
        found = model(channels_first(images), output_auxiliary_logits=True)
    before = [
        QueryOutputs(each["class_queries_logits"], each["masks_queries_logits"]) for each in found.auxiliary_logits
    ]
    return [*before, QueryOutputs(found.class_queries_logits, found.masks_queries_logits)]


def test_the_config_is_read_off_the_shapes(ours: Mask2Former) -> None:
    config = ours.config
    assert (config.width, config.queries, config.classes, config.heads) == (WIDTH, QUERIES, CLASSES, HEADS)
    assert (config.encoder_layers, config.encoder_hidden) == (2, 48)
    assert (config.decoder_layers, config.decoder_hidden) == (3, 40)
    assert (config.backbone.depths, config.backbone.window, config.backbone.head_width) == ((1, 2, 2, 1), 4, 16)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_predictions_of_every_layer(ours: Mask2Former, theirs: torch.nn.Module, size: tuple[int, int]) -> None:
    """Two images in a batch, square and not. No mask logit that decides what is read is near zero by chance."""
    images = random_images(*size)
    expected, found = all_predictions(theirs, images), predictions(ours, images)
    assert len(found) == len(expected) == 4
    for mine, their in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine.class_logits, their.class_logits, rtol=0, atol=ATOL)
        np.testing.assert_allclose(mine.mask_logits, their.mask_logits, rtol=0, atol=ATOL)
    assert found[-1].mask_logits.shape == (len(images), QUERIES, size[0] // 4, size[1] // 4)


def nearest_to_the_threshold(found: list[QueryOutputs], grids: list[tuple[int, ...]]) -> float:
    """The least absolute mask logit of those that say what a layer may read of its level, the coarsest first."""
    least = np.inf
    for number, outputs in enumerate(found[:-1]):
        masks = torch.nn.functional.interpolate(outputs.mask_logits, grids[number % len(grids)], mode="bilinear")
        least = min(least, float(masks.abs().min()))
    return least


def test_every_layer_of_queries_given_the_masks_of_transformers(ours: Mask2Former, theirs: torch.nn.Module) -> None:
    """Each with the input that it has there, so that no mask depends on rounding before it."""
    calls = []

    def keep(module: torch.nn.Module, inputs: tuple, named: dict, outputs: tuple) -> None:
        calls.append((inputs, named["encoder_attention_mask"], outputs[0]))

    layers = theirs.model.transformer_module.decoder.layers
    hooks = [layer.register_forward_hook(keep, with_kwargs=True) for layer in layers]
    all_predictions(theirs, random_images(96, 128))
    for hook in hooks:
        hook.remove()
    run = nnx.jit(lambda layer, *inputs: layer(*inputs))
    for layer, (inputs, forbidden, expected) in zip(ours.decoder.layers, calls, strict=True):
        state, level, _, places, position, tokens = inputs
        forbidden = forbidden.reshape(-1, HEADS, *forbidden.shape[1:]).numpy() > 0
        assert 0.1 < forbidden.mean() < 0.9
        by_image = [each.transpose(0, 1).numpy() for each in (state, tokens[level])]
        shared = [each[:, 0].numpy() for each in (position, places[level])]
        found = run(layer, by_image[0], shared[0], by_image[1], shared[1], ~forbidden[:, 0])
        np.testing.assert_allclose(found, expected.transpose(0, 1), rtol=0, atol=2e-5)


def test_images_are_padded_on_the_right_and_below(ours: Mask2Former, theirs: torch.nn.Module) -> None:
    images = random_images(70, 90)
    padded = np.pad(images, ((0, 0), (0, 26), (0, 6), (0, 0)))
    expected, found = all_predictions(theirs, padded)[-1], predictions(ours, images)[-1]
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, rtol=0, atol=ATOL)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_hourglass_of_the_reference_under_the_decoders_of_transformers(
    ours: Mask2Former, theirs: torch.nn.Module, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maps of two windows and a part of a third; the backbone in NumPy, float64."""
    plan = hj.Hourglass(4, (2, 2), beta=1, window=3, temperature=30.0, neighbors=3)
    image = np.random.default_rng(seed).normal(size=(64, 160, 3)).astype(np.float32)
    config = ours.config.backbone
    stages = reference.swin(
        image.astype(np.float64),
        {name: np.asarray(each, np.float64) for name, each in flat_parameters(ours.backbone).items()},
        depths=config.depths,
        heads=[config.width * 2**stage // config.head_width for stage in range(4)],
        window=config.window,
        patch_size=config.patch_size,
        version=1,
        plan=plan,
    )
    maps = [torch.from_numpy(each.transpose(2, 0, 1)[None].astype(np.float32)) for each in stages]
    encoder = theirs.model.pixel_level_module.encoder
    monkeypatch.setattr(encoder, "forward", lambda images: SimpleNamespace(feature_maps=maps))
    every = all_predictions(theirs, image[None])
    expected = every[-1]
    assert nearest_to_the_threshold(every, [each.shape[2:] for each in maps[:0:-1]]) > 1e-3
    before = predictions(ours, image[None])[-1]
    found = predictions(hj.expedite(ours, plan), image[None])[-1]
    np.testing.assert_allclose(found.class_logits, expected.class_logits, rtol=0, atol=2 * ATOL)
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, rtol=0, atol=2 * ATOL)
    assert np.abs(found.mask_logits - before.mask_logits).max() > 0.01


def written(tensors: dict[str, torch.Tensor], path: Path) -> Path:
    """A pickle as detectron2's model zoo has them."""
    model = OrderedDict((name, tensor.numpy()) for name, tensor in tensors.items())
    model._metadata = OrderedDict({"": {"version": 1}, "sem_seg_head": {"version": 2}})
    path.write_bytes(pickle.dumps({"model": model, "__author__": "Third-Party Model"}))
    return path


SETTINGS = {
    "MODEL": {
        "SEM_SEG_HEAD": {"NUM_CLASSES": CLASSES},
        "MASK_FORMER": {
            "NUM_OBJECT_QUERIES": QUERIES,
            "TEST": {
                "SEMANTIC_ON": True,
                "INSTANCE_ON": False,
                "PANOPTIC_ON": True,
                "OBJECT_MASK_THRESHOLD": 0.0,
                "OVERLAP_THRESHOLD": 0.7,
            },
        },
    },
    "INPUT": {"MIN_SIZE_TEST": 512, "MAX_SIZE_TEST": 2048},
    "TEST": {"DETECTIONS_PER_IMAGE": 50},
    "DATASETS": {"TEST": ["somebodys_val"]},
}


@pytest.mark.parametrize("prefix", ["sem_seg_head.pixel_decoder.", "sem_seg_head."])
def test_pickles_of_the_model_zoo(ours: Mask2Former, theirs: torch.nn.Module, tmp_path: Path, prefix: str) -> None:
    tensors = official_names(theirs)
    tensors = {name.replace("sem_seg_head.pixel_decoder.", prefix): tensor for name, tensor in tensors.items()}
    source = written(tensors, tmp_path / "model_final.pkl")
    with pytest.raises(ValueError, match="name its resolved YAML with --config, or the data set with --dataset"):
        convert(source)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SETTINGS))
    summary = convert(source)
    assert summary.family == "mask2former"
    model = hj.load(summary.target)
    assert model.config.tasks == ("panoptic", "segmentation")
    assert (model.config.object_threshold, model.config.overlap_threshold, model.config.detections) == (0, 0.7, 50)
    assert (model.config.preprocessing.size, model.config.preprocessing.longest) == (512, 2048)
    images = random_images(64, 64)
    jax.tree.map(np.testing.assert_array_equal, predictions(model, images), predictions(ours, images))


def test_settings_of_another_model_are_refused(theirs: torch.nn.Module, tmp_path: Path) -> None:
    source = written(official_names(theirs), tmp_path / "model_final.pkl")
    settings = {**SETTINGS, "MODEL": SETTINGS["MODEL"] | {"SEM_SEG_HEAD": {"NUM_CLASSES": 133}}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"they say MODEL\.SEM_SEG_HEAD\.NUM_CLASSES 133, the checkpoint has 5"):
        convert(source, settings=tmp_path / "other.yaml")
    with pytest.raises(ValueError, match="classes must be 133 for the data set coco_panoptic, got 5"):
        convert(source, dataset="coco_panoptic")
    (tmp_path / "based.yaml").write_text(yaml.safe_dump({"_BASE_": "../base.yaml", "MODEL": {}}))
    with pytest.raises(ValueError, match=r"the settings build on \.\./base\.yaml, which is not read"):
        convert(source, settings=tmp_path / "based.yaml")


def test_a_folder_that_names_its_classes(theirs: torch.nn.Module, tmp_path: Path) -> None:
    folder = saved_folder(theirs, tmp_path / "checkpoint")
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = {str(number): f"kind {number}" for number in range(CLASSES)}
    (folder / "config.json").write_text(json.dumps(config))
    assert hj.load(convert(folder).target).config.labels.names == tuple(f"kind {n}" for n in range(CLASSES))
    config["id2label"] = {"0": "one"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"names 1 classes, but the checkpoint tells 5 apart"):
        convert(folder)


def test_a_checkpoint_that_was_cut_off(theirs: torch.nn.Module, tmp_path: Path) -> None:
    tensors = official_names(theirs)
    del tensors["sem_seg_head.predictor.mask_embed.layers.2.weight"]
    with pytest.raises(ValueError, match=r"has no tensor 'sem_seg_head\.predictor\.mask_embed\.layers\.2\.weight'"):
        convert(
            written(tensors, tmp_path / "model_final.pkl"),
            settings=_settings(tmp_path),
        )


def _settings(folder: Path) -> Path:
    (folder / "settings.yaml").write_text(yaml.safe_dump(SETTINGS))
    return folder / "settings.yaml"


@pytest.fixture(scope="module")
def theirs_with_resnet() -> torch.nn.Module:
    return build(backbone=resnet_config(downsample_in_bottleneck=True))


def test_a_resnet_in_place_of_the_swin(theirs_with_resnet: torch.nn.Module, tmp_path: Path) -> None:
    """From a folder and from a pickle, whose settings say where the strides are; sides that are padded."""
    folder = convert(saved_folder(theirs_with_resnet, tmp_path / "checkpoint"))
    assert folder.config["backbone"]["stride_first"] is True
    images = random_images(70, 96)
    padded = np.pad(images, ((0, 0), (0, 26), (0, 0), (0, 0))).astype(np.float64)
    # In float32 their masks are 4e-4 from those in float64 here, and ours 2e-5.
    expected = all_predictions(copy.deepcopy(theirs_with_resnet).double(), padded)[-1]
    found = predictions(hj.load(folder.target), images)[-1]
    np.testing.assert_allclose(found.class_logits, expected.class_logits, rtol=0, atol=ATOL)
    np.testing.assert_allclose(found.mask_logits, expected.mask_logits, rtol=0, atol=ATOL)
    source = written(official_names(theirs_with_resnet), tmp_path / "model_final.pkl")
    resnets = {"STRIDE_IN_1X1": True, "DEPTH": 20, "RES5_DILATION": 1, "STEM_OUT_CHANNELS": 8}
    settings = SETTINGS | {"MODEL": SETTINGS["MODEL"] | {"RESNETS": resnets, "SWIN": {"EMBED_DIM": 96}}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    pickled = convert(source)
    assert pickled.family == "mask2former"
    assert not any("strides" in note for note in (*folder.notes, *pickled.notes))
    jax.tree.map(np.testing.assert_array_equal, predictions(hj.load(pickled.target), images)[-1], found)


def test_what_settings_say_of_a_resnet(theirs_with_resnet: torch.nn.Module, tmp_path: Path) -> None:
    source = written(official_names(theirs_with_resnet), tmp_path / "model_final.pkl")
    notes = convert(source, settings=_settings(tmp_path)).notes
    assert any("no settings say STRIDE_IN_1X1" in note for note in notes)
    for resnets, message in (
        ({"RES5_DILATION": 2}, "ask for RES5_DILATION 2, which no model here has"),
        ({"DEPTH": 50}, r"they say MODEL\.RESNETS\.DEPTH 50, the checkpoint has 20"),
    ):
        settings = SETTINGS | {"MODEL": SETTINGS["MODEL"] | {"RESNETS": resnets}}
        (tmp_path / "other.yaml").write_text(yaml.safe_dump(settings))
        with pytest.raises(ValueError, match=message):
            convert(source, settings=tmp_path / "other.yaml")
