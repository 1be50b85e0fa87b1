"""Wrappers of training code around a state dict: entries, prefixes, teachers and averages, chunks of blocks."""

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.rules import Given
from checkpoints_convert.wrappers import prefixes, state_dict
from tests.convert.checkpoints import DEPTH, WIDTH, Arrays, random_arrays, segmenter, timm_vit, write_safetensors
from tests.convert.test_convert import VARIANT

VIT = timm_vit().arrays
OTHER = {name: -array for name, array in VIT.items()}
MASK = random_arrays({"mask_token": (1, WIDTH)})
DINOV2 = timm_vit(scales=True).arrays | MASK


def wrapped(prefix: str, arrays: Mapping[str, np.ndarray] = VIT) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def found(tree: Mapping[str, object], key: str | None = None) -> tuple[Arrays, list[str]]:
    """The tensors of a tree, and what is said of them."""
    given = Given()
    return state_dict(tree, given, key).tensors, given.notes


def assert_same(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "prefix",
    ["model.", "net.", "encoder.", "model.backbone.", "base_model.model.", "anything.at.all.", "module.x."],
)
def test_one_prefix_before_all_names_comes_off(tmp_path: Path, prefix: str) -> None:
    source = write_safetensors(tmp_path / "tiny.pth", wrapped(prefix))
    summary = convert(source, family="vit-timm")
    np.testing.assert_array_equal(hj.load(summary.target).backbone.norm.bias[...], VIT["norm.bias"])
    assert f"the prefix {prefix.replace('module.', '')!r} comes off all names" in summary.notes


def test_a_prefix_comes_off_for_the_only_family_that_fits(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "tiny.pth", wrapped("image_encoder.", DINOV2))
    assert convert(source).family == "dinov2"


def test_names_of_a_system_keep_their_prefixes(tmp_path: Path) -> None:
    """encoder. and decoder. belong to a Segmenter."""
    arrays = segmenter(timm_vit("encoder."), "decoder.", classes=150, masks=True).arrays
    (tmp_path / "variant.yml").write_text(str(VARIANT).replace("'", '"'))
    assert convert(write_safetensors(tmp_path / "tiny.pth", wrapped("net.", arrays))).family == "segmenter"


def test_what_parallel_training_leaves_goes_from_anywhere_in_names() -> None:
    tensors = {
        re.sub(r"blocks\.(\d)", r"blocks.\1._checkpoint_wrapped_module", f"module._orig_mod.{name}"): array
        for name, array in VIT.items()
    }
    assert_same(found({"model": wrapped("backbone.module.", tensors)})[0], wrapped("backbone."))


def test_names_that_become_the_same_are_refused() -> None:
    with pytest.raises(CheckpointError, match=r"got two called 'norm\.bias'"):
        found({**VIT, "module.norm.bias": VIT["norm.bias"]})


@pytest.mark.parametrize(
    "tree",
    [
        {"model": OTHER, "model_ema": VIT, "epoch": 3},
        {"state_dict": OTHER, "state_dict_ema": VIT, "optimizer": {"x": np.ones(3)}},
        {"student": wrapped("module.", OTHER), "teacher": VIT},
        {"model": OTHER, "ema": {"module": VIT}},
        {"encoder": OTHER, "target_encoder": wrapped("module.", VIT)},
        {"model": {**wrapped("student.backbone.", OTHER), **wrapped("teacher.backbone.")}},
        {"state_dict": {**wrapped("model.", OTHER), **wrapped("ema_model.")}},
    ],
)
def test_of_several_weights_the_averaged_ones_are_taken_and_said(tree: dict) -> None:
    tensors, notes = found(tree)
    prefix = prefixes(tensors)[-1]
    assert_same({name.removeprefix(prefix): array for name, array in tensors.items()}, VIT)
    assert len(notes) == 1 and re.search("averaged", notes[0]) and "--key" in notes[0]


def test_what_is_no_average_of_the_weights_beside_it_is_not_taken() -> None:
    """mmengine's ema_state_dict holds the weights that were not averaged; an entry of counts is no weights."""
    assert_same(found({"state_dict": VIT, "ema_state_dict": OTHER})[0], VIT)
    assert_same(found({"model": VIT, "ema": {"decay": np.ones(())}})[0], VIT)
    assert_same(found({**VIT, "ema": {"decay": np.ones(())}})[0], {**VIT, "ema.decay": np.ones(())})


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"model": OTHER, "model_ema": VIT}, "model_ema"),
        ({"model": VIT, "model_ema": OTHER}, "model"),
        ({"runs": {"second": VIT, "first": OTHER}}, "runs.second"),
        ({"generator": VIT, "discriminator": OTHER}, "generator"),
        ({**wrapped("student."), **wrapped("teacher.", OTHER)}, "student"),
    ],
)
def test_a_key_names_another_entry(tree: dict, key: str) -> None:
    assert_same(found(tree, key)[0], VIT)


def test_a_key_without_tensors() -> None:
    with pytest.raises(CheckpointError, match=r"no tensors in an entry 'ema'; .*model, model_ema"):
        found({"model": VIT, "model_ema": OTHER}, "ema")


@pytest.mark.parametrize("restarts", [False, True], ids=["as in the whole", "from 0 in every chunk"])
def test_blocks_in_chunks_are_numbered_as_in_the_whole(restarts: bool) -> None:
    arrays = timm_vit(depth=12).arrays
    chunked = {
        re.sub(
            r"blocks\.(\d+)",
            lambda match: f"blocks.{int(match[1]) // 4}.{int(match[1]) % 4 if restarts else match[1]}",
            name,
        ): array
        for name, array in arrays.items()
    }
    assert chunked.keys() != arrays.keys()
    assert_same(found(chunked)[0], arrays)


def test_heads_of_self_supervised_training_are_dropped(tmp_path: Path) -> None:
    heads = {"dino_head.mlp.0.weight": np.ones((2, 2), "f"), "ibot_head.last_layer.weight": np.ones(2, "f")}
    source = write_safetensors(tmp_path / "tiny.pth", wrapped("backbone.", DINOV2) | heads)
    summary = convert(source)
    assert summary.family == "dinov2" and summary.dropped["head or loss of self-supervised training"] == 2
    assert summary.tensors == len(DINOV2) + 2


def test_a_mapping_that_stands_twice_or_too_deep() -> None:
    with pytest.raises(CheckpointError, match="twice in it"):
        found({"a": VIT, "b": VIT})
    deep: dict[str, object] = {"x": np.ones(1)}
    for _ in range(100):
        deep = {"a": deep}
    with pytest.raises(CheckpointError, match="at most 64 mappings inside one another"):
        found(deep)


@pytest.mark.parametrize("key", ["blocks.1.attn.proj.bias", "cls_token"])
def test_the_nearest_family_and_what_it_lacks_are_named(tmp_path: Path, key: str) -> None:
    arrays = {name: array for name, array in VIT.items() if name not in ("blocks.0.attn.qkv.weight", key)}
    source = write_safetensors(tmp_path / "tiny.pth", wrapped("net.", arrays))
    with pytest.raises(CheckpointError, match=r"of no known family; the nearest is .*"):
        convert(source)
    lack = "0 special tokens, got 10" if key == "cls_token" else r"no tensor 'blocks\.0\.attn\.qkv\.weight', which"
    with pytest.raises(CheckpointError, match=rf"is no checkpoint of the family vit-timm: .*{lack}"):
        convert(source, family="vit-timm")


def test_a_depth_of_blocks_is_counted_after_the_prefix(tmp_path: Path) -> None:
    source = write_safetensors(tmp_path / "tiny.pth", wrapped("model.", VIT))
    assert convert(source, family="deit-timm").config["backbone"]["depth"] == DEPTH
