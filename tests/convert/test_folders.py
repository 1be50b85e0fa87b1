"""Checkpoints in folders: one file, or shards and their index."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import hourglass_jax as hj
from checkpoints_convert.convert import Summary, convert
from checkpoints_convert.errors import CheckpointError
from tests.convert.checkpoints import Arrays, timm_vit, write_safetensors

VIT = timm_vit().arrays
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def sharded(folder: Path, arrays: Arrays = VIT, index: str = "model.safetensors.index.json") -> Path:
    folder.mkdir(exist_ok=True)
    names = sorted(arrays)
    places = {name: SHARDS[number % 2] for number, name in enumerate(names)}
    for shard in SHARDS:
        write_safetensors(folder / shard, {name: arrays[name] for name in names if places[name] == shard})
    (folder / index).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return folder


def assert_whole(summary: Summary) -> None:
    assert summary.tensors == len(VIT)
    np.testing.assert_array_equal(hj.load(summary.target).backbone.norm.bias[...], VIT["norm.bias"])


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "checkpoint.pth", "weights.npz"])
def test_a_folder_with_one_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "vit.base"
    folder.mkdir()
    write_safetensors(folder / name, VIT)
    for other in (
        "config.json",
        "optimizer.pt",
        "training_args.bin",
        "rng_state_0.pth",
        ".hidden.pth",
        "README.md",
    ):
        (folder / other).write_text("{}")
    summary = convert(folder, family="vit-timm")
    assert summary.target == tmp_path / "vit.base.safetensors"
    assert_whole(summary)


def test_shards_by_their_folder_and_by_their_index(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "vit")
    assert_whole(convert(folder, family="vit-timm"))
    assert_whole(convert(folder / "model.safetensors.index.json", family="vit-timm"))
    assert_whole(convert(folder, tmp_path / "named.safetensors", family="vit-timm"))
    assert sorted(each.name for each in folder.iterdir()) == sorted((*SHARDS, "model.safetensors.index.json"))


def test_shards_of_pytorch_and_indices_of_other_names(tmp_path: Path) -> None:
    assert_whole(convert(sharded(tmp_path / "a", index="pytorch_model.bin.index.json"), family="vit-timm"))
    assert_whole(convert(sharded(tmp_path / "b", index="mine.safetensors.index.json"), family="vit-timm"))


def test_the_folder_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(sharded(tmp_path / "vit"))
    assert convert(Path("."), family="vit-timm").target.resolve() == tmp_path / "vit.safetensors"


def test_settings_are_those_of_the_folder(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "vit")
    (folder / "config.json").write_text(json.dumps({"model_args": {"num_heads": 4}}))
    assert convert(folder, family="vit-timm").config["backbone"]["heads"] == 4


def test_the_hash_is_of_all_shards(tmp_path: Path) -> None:
    import safetensors

    hashes = []
    for change in (0, 1):
        arrays = {**VIT, "norm.bias": VIT["norm.bias"] + change}
        target = convert(sharded(tmp_path / "vit", arrays), family="vit-timm").target
        with safetensors.safe_open(target, framework="numpy") as file:
            notes = file.metadata()
        assert notes["source"] == "vit"
        hashes.append(notes["source_sha256"])
    assert hashes[0] != hashes[1]


def test_one_shard_alone_is_refused(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "vit")
    with pytest.raises(CheckpointError, match=r"one of 2 shards .*: name the folder, or model\.safetensors\.index"):
        convert(folder / SHARDS[0], family="vit-timm")


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "vit")
    (folder / SHARDS[1]).unlink()
    with pytest.raises(CheckpointError, match=rf"lists 2 shards, but 1 are not there: {SHARDS[1]}"):
        convert(folder, family="vit-timm")


@pytest.mark.parametrize("change", ["more", "fewer"])
def test_shards_that_hold_other_tensors_than_the_index_says(tmp_path: Path, change: str) -> None:
    folder = sharded(tmp_path / "vit")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    if change == "more":
        del index["weight_map"]["norm.bias"]
    else:
        index["weight_map"]["more.bias"] = SHARDS[0]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"in 1 tensors, \['(norm|more)\.bias'\]"):
        convert(folder, family="vit-timm")


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": ["a"]}', "[" * 100_000],
)
def test_an_index_that_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CheckpointError, match="expected an index of shards, JSON with a weight_map"):
        convert(tmp_path)


@pytest.mark.parametrize("place", ["../secret.safetensors", "/etc/passwd", ".hidden", "a/b"])
def test_shards_lie_beside_their_index(tmp_path: Path, place: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(CheckpointError, match="shards must lie beside their index, got"):
        convert(tmp_path)


def test_a_folder_with_several_checkpoints_or_none(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="got a folder with none"):
        convert(tmp_path)
    for name in ("first.pth", "second.pth"):
        write_safetensors(tmp_path / name, VIT)
    with pytest.raises(CheckpointError, match=r"2: first\.pth, second\.pth"):
        convert(tmp_path)


def test_the_target_may_not_be_a_shard(tmp_path: Path) -> None:
    folder = sharded(tmp_path / "vit")
    before = (folder / SHARDS[0]).read_bytes()
    with pytest.raises(CheckpointError, match="target must not be the source itself"):
        convert(folder, folder / SHARDS[0], family="vit-timm")
    assert (folder / SHARDS[0]).read_bytes() == before
    assert os.listdir(tmp_path) == ["vit"]
