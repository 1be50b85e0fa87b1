"""Mask2Former's checkpoints from random arrays: what becomes of their parts, and what settings and users say."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from hourglass_jax.imaging.segment_labels import segment_labels
from tests.convert.test_swin import WIDTH as NARROW
from tests.convert.test_swin import Arrays, swin
from tests.convert.test_swin import written as write

FAMILIES = {"mask2former", "mask2former-transformers"}
WIDTH, HEADS, QUERIES, LAYERS = 32, 2, 100, 2
PREDICTOR = "sem_seg_head.predictor."
MAPS = "model.pixel_level_module."


def affine(name: str, outputs: int, *inputs: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (outputs, *inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int = WIDTH) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def filled(shapes: dict[str, tuple[int, ...]]) -> Arrays:
    random = np.random.default_rng(1)
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def official(classes: int, *, queries: int = QUERIES, feature: str = "static_query") -> Arrays:
    """A checkpoint of detectron2, whose queries are called `feature`."""
    decoder = "sem_seg_head.pixel_decoder."
    shapes = {
        **affine(f"{decoder}mask_features", WIDTH, WIDTH, 1, 1),
        f"{decoder}adapter_1.weight": (WIDTH, NARROW, 1, 1),
        f"{decoder}layer_1.weight": (WIDTH, WIDTH, 3, 3),
        **norm(f"{decoder}adapter_1.norm"),
        **norm(f"{decoder}layer_1.norm"),
        f"{decoder}transformer.level_embed": (3, WIDTH),
        f"{PREDICTOR}{feature}.weight": (queries, WIDTH),
        f"{PREDICTOR}query_embed.weight": (queries, WIDTH),
        f"{PREDICTOR}level_embed.weight": (3, WIDTH),
        **norm(f"{PREDICTOR}decoder_norm"),
        **affine(f"{PREDICTOR}class_embed", classes + 1, WIDTH),
        "criterion.empty_weight": (classes + 1,),
    }
    for number in range(3):
        shapes |= affine(f"{decoder}input_proj.{number}.0", WIDTH, NARROW * 2 ** (3 - number), 1, 1)
        shapes |= norm(f"{decoder}input_proj.{number}.1")
        shapes |= affine(f"{PREDICTOR}mask_embed.layers.{number}", WIDTH, WIDTH)
    shapes |= _deformable(f"{decoder}transformer.encoder.layers.0.", "norm1", "norm2", "linear")
    for number in range(LAYERS):
        for part, attention in (("cross_attention", "multihead_attn"), ("self_attention", "self_attn")):
            layer = f"{PREDICTOR}transformer_{part}_layers.{number}."
            shapes |= {
                f"{layer}{attention}.in_proj_weight": (3 * WIDTH, WIDTH),
                f"{layer}{attention}.in_proj_bias": (3 * WIDTH,),
                **affine(f"{layer}{attention}.out_proj", WIDTH, WIDTH),
                **norm(f"{layer}norm"),
            }
        layer = f"{PREDICTOR}transformer_ffn_layers.{number}."
        shapes |= {**affine(f"{layer}linear1", 24, WIDTH), **affine(f"{layer}linear2", WIDTH, 24)}
        shapes |= norm(f"{layer}norm")
    return swin(prefix="backbone.", norms=("norm0", "norm1", "norm2", "norm3")) | filled(shapes)


def _deformable(layer: str, norm1: str, norm2: str, linear: str) -> dict[str, tuple[int, ...]]:
    return {
        **affine(f"{layer}self_attn.sampling_offsets", HEADS * 24, WIDTH),
        **affine(f"{layer}self_attn.attention_weights", HEADS * 12, WIDTH),
        **affine(f"{layer}self_attn.value_proj", WIDTH, WIDTH),
        **affine(f"{layer}self_attn.output_proj", WIDTH, WIDTH),
        **norm(f"{layer}{norm1}"),
        **affine(f"{layer}{linear}1", 48, WIDTH),
        **affine(f"{layer}{linear}2", WIDTH, 48),
        **norm(f"{layer}{norm2}"),
    }


def transformers(classes: int, *, version: int) -> Arrays:
    """A folder's weights, in the names of version 4 (as they are published) or 5."""
    decoder, module = f"{MAPS}decoder.", "model.transformer_module."
    shapes = {
        **affine(f"{decoder}mask_projection", WIDTH, WIDTH, 1, 1),
        f"{decoder}adapter_1.0.weight": (WIDTH, NARROW, 1, 1),
        f"{decoder}layer_1.0.weight": (WIDTH, WIDTH, 3, 3),
        **norm(f"{decoder}adapter_1.1"),
        **norm(f"{decoder}layer_1.1"),
        f"{decoder}level_embed": (3, WIDTH),
        f"{module}queries_features.weight": (QUERIES, WIDTH),
        f"{module}queries_embedder.weight": (QUERIES, WIDTH),
        f"{module}level_embed.weight": (3, WIDTH),
        **norm(f"{module}decoder.layernorm"),
        **affine("class_predictor", classes + 1, WIDTH),
        "criterion.empty_weight": (classes + 1,),
    }
    for number in range(3):
        shapes |= affine(f"{decoder}input_projections.{number}.0", WIDTH, NARROW * 2 ** (3 - number), 1, 1)
        shapes |= norm(f"{decoder}input_projections.{number}.1")
        shapes |= affine(f"{module}decoder.mask_predictor.mask_embedder.{number}.0", WIDTH, WIDTH)
    shapes |= _deformable(f"{decoder}encoder.layers.0.", "self_attn_layer_norm", "final_layer_norm", "fc")
    for number in range(LAYERS):
        layer = f"{module}decoder.layers.{number}."
        shapes |= {
            f"{layer}cross_attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{layer}cross_attn.in_proj_bias": (3 * WIDTH,),
            **affine(f"{layer}cross_attn.out_proj", WIDTH, WIDTH),
            **{key: value for each in ("q", "k", "v", "out")
               for key, value in affine(f"{layer}self_attn.{each}_proj", WIDTH, WIDTH).items()},
            **norm(f"{layer}cross_attn_layer_norm"),
            **norm(f"{layer}self_attn_layer_norm"),
            **norm(f"{layer}final_layer_norm"),
            **affine(f"{layer}fc1", 24, WIDTH),
            **affine(f"{layer}fc2", WIDTH, 24),
        }  # fmt: skip
    return _transformers_swin(version) | filled(shapes)


def _transformers_swin(version: int) -> Arrays:
    encoder = f"{MAPS}encoder."
    body = encoder if version == 4 else f"{encoder}swin."
    found = {}
    for name, array in swin(norms=("norm0", "norm1", "norm2", "norm3")).items():
        if name.startswith("norm"):
            found[f"{encoder}hidden_states_norms.stage{int(name[4]) + 1}.{name.split('.')[1]}"] = array
            continue
        name = name.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        name = name.replace("patch_embed.norm", "embeddings.norm")
        name = name.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        name = f"{body}{'' if name.startswith('embeddings') else 'encoder.'}{name}"
        if ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), np.split(array, 3), strict=True):
                theirs = f".attention.self.{part}." if version == 4 else f".attention.{part[0]}_proj."
                found[name.replace(".attn.qkv.", theirs)] = third
            continue
        if version == 4:
            name = name.replace("attn.proj", "attention.output.dense").replace("attn.rel", "attention.self.rel")
            name = name.replace("mlp.fc1", "intermediate.dense").replace("mlp.fc2", "output.dense")
        else:
            name = name.replace("attn.proj", "attention.o_proj")
            name = name.replace("attn.rel", "attention.relative_position_bias.rel")
        found[name] = array
    return found | {f"{body}layernorm.{leaf}": np.zeros(8 * NARROW, np.float32) for leaf in ("weight", "bias")}


def yaml_of(folder: Path, **test: object) -> Path:
    """detectron2's settings, resolved."""
    settings = {"MODEL": {"MASK_FORMER": {"TEST": test}}, "INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 128}}
    (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
    return folder / "settings.yaml"


@pytest.mark.parametrize("feature", ["static_query", "query_feat"])
def test_every_part_of_a_pickle_has_its_place(tmp_path: Path, feature: str) -> None:
    arrays = official(133, feature=feature)
    summary = convert(write(arrays, tmp_path), dataset="coco_panoptic")
    assert summary.family == "mask2former"
    model = hj.load(summary.target)
    packed = arrays[f"{PREDICTOR}transformer_cross_attention_layers.1.multihead_attn.in_proj_weight"]
    np.testing.assert_array_equal(model.decoder.layers[1].cross.key.kernel[...], packed[WIDTH : 2 * WIDTH].T)
    np.testing.assert_array_equal(model.decoder.queries[...], arrays[f"{PREDICTOR}{feature}.weight"])
    offsets = arrays["sem_seg_head.pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.weight"]
    np.testing.assert_array_equal(model.pixel_decoder.layers[0].attention.offsets.kernel[...], offsets.T)
    fusion = arrays["sem_seg_head.pixel_decoder.layer_1.weight"]
    np.testing.assert_array_equal(model.pixel_decoder.fusion.convolution.kernel[...], fusion.transpose(2, 3, 1, 0))
    assert list(summary.dropped.values()) == [1]
    config = model.config
    assert (config.tasks, config.dataset) == (("panoptic", "instances", "segmentation"), "coco_panoptic")
    assert (config.preprocessing.size, config.preprocessing.longest) == (800, 1333)


@pytest.mark.parametrize("version", [4, 5])
def test_every_part_of_a_folder_has_its_place(tmp_path: Path, version: int) -> None:
    arrays, labels = transformers(80, version=version), segment_labels("coco_instance", None)
    settings = {"model_type": "mask2former", "id2label": dict(enumerate(labels.names)), "num_queries": QUERIES}
    summary = convert(write(arrays, tmp_path, settings))
    assert summary.family == "mask2former-transformers"
    assert sum(summary.dropped.values()) == 3
    model = hj.load(summary.target)
    assert (model.config.dataset, model.config.tasks) == ("coco_instance", ("instances",))
    key = arrays["model.transformer_module.decoder.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(model.decoder.layers[1].own.key.kernel[...], key.T)
    qkv = swin()["layers.1.blocks.1.attn.qkv.weight"]
    np.testing.assert_array_equal(model.backbone.stages[1].blocks[1].attention.qkv.kernel[...], qkv.T)


@pytest.mark.parametrize(
    ("dataset", "classes", "queries", "tasks", "size"),
    [
        ("coco_instance", 80, 100, ("instances",), (800, 1333)),
        ("ade20k", 150, 100, ("segmentation",), (512, 2048)),
        ("ade20k", 150, 200, ("panoptic", "instances", "segmentation"), (512, 2048)),
        ("ade20k_instance", 100, 200, ("panoptic", "instances", "segmentation"), (640, 2560)),
        ("cityscapes", 19, 200, ("panoptic", "instances", "segmentation"), (1024, 2048)),
        ("cityscapes_instance", 8, 100, ("instances",), (1024, 2048)),
        ("mapillary_vistas", 65, 200, ("panoptic", "segmentation"), (2048, 2048)),
    ],
)
def test_the_user_says_which_data_set_it_is_for(
    tmp_path: Path, dataset: str, classes: int, queries: int, tasks: tuple[str, ...], size: tuple[int, int]
) -> None:
    summary = convert(write(official(classes, queries=queries), tmp_path), dataset=dataset)
    config = hj.load(summary.target).config
    assert (config.dataset, config.tasks) == (dataset, tasks)
    assert (config.preprocessing.size, config.preprocessing.longest) == size
    assert config.object_threshold == (0 if dataset == "mapillary_vistas" else 0.8)


def test_a_small_model_of_cityscapes_may_be_for_either_task(tmp_path: Path) -> None:
    source = write(official(19), tmp_path)
    with pytest.raises(
        CheckpointError, match="whether a Mask2Former is for panoptic maps, instances or label maps"
    ):
        convert(source, dataset="cityscapes")
    settings = yaml_of(tmp_path, SEMANTIC_ON=True, PANOPTIC_ON=False, INSTANCE_ON=False)
    summary = convert(source, settings=settings, dataset="cityscapes")
    assert hj.load(summary.target).config.tasks == ("segmentation",)


def test_settings_without_a_task_or_with_a_wrong_value_are_refused(tmp_path: Path) -> None:
    source = write(official(5), tmp_path)
    with pytest.raises(CheckpointError, match=r"tasks must be some of panoptic, instances, segmentation, got none"):
        convert(source, settings=yaml_of(tmp_path, SEMANTIC_ON=False))
    with pytest.raises(CheckpointError, match=r"object_threshold must lie in 0\.\.1, got 7"):
        convert(source, settings=yaml_of(tmp_path, SEMANTIC_ON=True, OBJECT_MASK_THRESHOLD=7))


def test_a_system_that_is_known_is_no_encoder_unless_that_is_asked_for(tmp_path: Path) -> None:
    source = write(official(133), tmp_path)
    assert convert(source, dataset="coco_panoptic").model == "mask2former"
    summary = convert(source, tmp_path / "encoder.safetensors", family="swin-detectron2")
    assert (summary.model, summary.family) == ("encoder", "swin-detectron2")


def test_a_config_json_of_another_model_is_refused(tmp_path: Path) -> None:
    arrays = transformers(5, version=4)
    source = write(arrays, tmp_path, {"model_type": "mask2former", "num_queries": 7})
    with pytest.raises(CheckpointError, match=r"config\.json is of another model: it says num_queries 7, not 100"):
        convert(source)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "maskformer"}))
    with pytest.raises(CheckpointError, match=r'config\.json must be of a mask2former, got "maskformer"'):
        convert(source)


SWIN = {
    "model_type": "swin",
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "qkv_bias": True,
    "use_absolute_embeddings": False,
    "image_size": 384,
    "patch_size": 4,
    "window_size": 12,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({}, None),
        ({"backbone_config": {"embed_dim": 192}}, r"they say embed_dim \(192,\), the checkpoint has"),
        ({"backbone_config": SWIN | {"layer_norm_eps": 1e-6}}, "layer_norm_eps 1e-06, which no Swin here has"),
        ({"backbone_config": SWIN | {"hidden_act": "relu"}}, "hidden_act 'relu', which no model here has"),
        ({"backbone_config": SWIN | {"use_absolute_embeddings": True}}, "use_absolute_embeddings True, which no"),
        ({"pre_norm": True}, "pre_norm True, which no model here has"),
        ({"activation_function": "gelu"}, "activation_function 'gelu', which no model here has"),
    ],
)
def test_the_whole_config_json_is_honoured_or_refused(tmp_path: Path, change: dict, message: str | None) -> None:
    settings = {
        "model_type": "mask2former",
        "pre_norm": False,
        "activation_function": "relu",
        "backbone_config": SWIN,
    }
    source = write(transformers(5, version=4), tmp_path, settings | change)
    if message is None:
        assert convert(source).model == "mask2former"
        return
    with pytest.raises(CheckpointError, match=message):
        convert(source)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"SWIN": {"APE": True}}, "ask for APE True, which no model here has"),
        ({"SWIN": {"DEPTHS": [1, 1, 1, 1]}}, r"they say depths \(1, 1, 1, 1\), the checkpoint has"),
        ({"SWIN": {"ROPE": True}}, "MODEL.SWIN.ROPE, whose meaning is not known here"),
        ({"MASK_FORMER": {"PRE_NORM": True}}, "they say MODEL.MASK_FORMER.PRE_NORM True, the checkpoint has False"),
        ({"PIXEL_MEAN": [103.53, 116.28, 123.675]}, "ask for MODEL.PIXEL_MEAN .*, which no model here has"),
    ],
)
def test_settings_of_detectron2_that_cannot_be_honoured(tmp_path: Path, model: dict, message: str) -> None:
    (tmp_path / "my.yaml").write_text(json.dumps({"MODEL": model}))
    with pytest.raises(CheckpointError, match=message):
        convert(write(official(5), tmp_path), settings=tmp_path / "my.yaml")
