"""A conversion replaces no file that it did not write itself, unless its user names that file."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from checkpoints_convert.convert import convert
from checkpoints_convert.errors import CheckpointError
from hourglass_jax.models.registry import FORMAT
from tests.convert.checkpoints import timm_vit, write_safetensors

VIT = timm_vit().arrays


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_safetensors(tmp_path / "model.pth", VIT)


def some_weights(path: Path, metadata: dict[str, str] | None) -> bytes:
    save_file({"weight": np.ones(3, np.float32)}, path, metadata)
    return path.read_bytes()


@pytest.mark.parametrize(
    "metadata",
    [None, {"format": "pt"}, {"format": FORMAT, "source": "another.pth"}, {"source": "model.pth"}],
)
def test_somebody_elses_safetensors_stay_as_they_are(source: Path, metadata: dict[str, str] | None) -> None:
    target = source.with_suffix(".safetensors")
    before = some_weights(target, metadata)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is there, and no conversion of model\.pth: .* -o"
    ):
        convert(source, family="vit-timm")
    assert target.read_bytes() == before


@pytest.mark.parametrize("content", [b"", b"the only copy of somebody's notes", b"\xff" * 100])
def test_files_of_any_kind_stay_as_they_are(source: Path, content: bytes) -> None:
    target = source.with_suffix(".safetensors")
    target.write_bytes(content)
    with pytest.raises(CheckpointError, match="is there, and no conversion"):
        convert(source, family="vit-timm")
    assert target.read_bytes() == content


def test_a_link_that_leads_nowhere_stays(source: Path) -> None:
    target = source.with_suffix(".safetensors")
    target.symlink_to(source.with_name("unplugged"))
    with pytest.raises(CheckpointError, match="is there, and no conversion"):
        convert(source, family="vit-timm")
    assert target.is_symlink()


def test_an_earlier_conversion_of_the_same_source_is_replaced(source: Path) -> None:
    first = convert(source, family="vit-timm")
    second = convert(source, family="deit-timm")
    assert first.target == second.target == source.with_suffix(".safetensors")


def test_a_conversion_of_another_file_of_the_same_stem_stays(source: Path) -> None:
    convert(source, family="vit-timm")
    np.savez(source.with_suffix(".npz"), **VIT)
    with pytest.raises(CheckpointError, match=r"no conversion of model\.npz"):
        convert(source.with_suffix(".npz"), family="vit-timm")


def test_the_target_that_is_named_is_replaced(source: Path) -> None:
    target = source.with_suffix(".safetensors")
    some_weights(target, None)
    assert convert(source, target, family="vit-timm").target == target


def test_the_command_line_says_it_in_one_line(source: Path) -> None:
    target = source.with_suffix(".safetensors")
    target.write_bytes(b"mine")
    command = [sys.executable, "-m", "checkpoints_convert", str(source), "--model", "vit-timm"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert target.read_bytes() == b"mine"
