"""`kill -9` at random moments of the long commands: no half-written file, and the same result in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import safetensors
from PIL import Image

pytestmark = pytest.mark.slow

KILLS = 4


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    draw = np.random.default_rng(0)
    for number in range(4):
        small = Image.fromarray(draw.integers(0, 256, (5, 5, 3), np.uint8))
        small.resize((80, 80), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
    return folder


def arguments(command: str, model: Path, photos: Path, out: Path) -> list[object]:
    plan = ["--alpha", 1, "--clusters", 3, 3]
    common = ["--model", model, "--size", 70, "--output", out]
    return {
        "predict": ["predict", photos, *plan, *common, "--resume"],
        "tune": ["tune", "--images", photos, "--method", "Hourglass", "--method", "Pooling", *common],
        "ablate": ["ablate", photos / "0.png", *plan, "--studies", "clusters", "neighbors", *common],
    }[command]


def start(*command: object) -> subprocess.Popen:
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "hourglass_jax.cli", *map(str, command)], env=environment, stdout=subprocess.DEVNULL
    )


def check_whole(folder: Path) -> None:
    """Every file that is there can be read; what was being written has a temporary name."""
    for path in folder.rglob("*") if folder.exists() else ():
        if path.name.startswith("."):
            continue
        if path.suffix == ".png":
            with Image.open(path) as image:
                image.load()
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
        elif path.suffix == ".safetensors":
            with safetensors.safe_open(path, "numpy") as file:
                [file.get_tensor(name) for name in file.keys()]  # noqa: SIM118


def outcome(folder: Path) -> dict[str, object]:
    """What the command found: plans as they are, pictures as pixels, measurements as the sets of their lines."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".json":
            found[path.name] = json.loads(path.read_bytes())
        elif path.suffix == ".jsonl":
            found[path.name] = sorted(line.replace(str(folder), "") for line in path.read_text().splitlines())
        elif path.suffix == ".png" and "plot" not in path.name and path.stem not in ("tune", "ablation"):
            found[path.name] = np.asarray(Image.open(path)).tobytes()
    return found


@pytest.mark.parametrize("command", ["predict", "tune", "ablate"])
def test_a_killed_command_ends_as_if_it_had_not_been(
    command: str, tiny_file: Path, photos: Path, tmp_path: Path
) -> None:
    begun = time.monotonic()
    assert start(*arguments(command, tiny_file, photos, tmp_path / "whole")).wait() == 0
    duration, rng = time.monotonic() - begun, random.Random(command)
    out = tmp_path / "killed"
    for _ in range(KILLS):
        running = start(*arguments(command, tiny_file, photos, out))
        time.sleep(rng.uniform(0.3, 1) * duration)
        running.send_signal(signal.SIGKILL)
        running.wait()
        check_whole(out)
    assert start(*arguments(command, tiny_file, photos, out)).wait() == 0
    check_whole(out)
    assert outcome(out) == outcome(tmp_path / "whole")
    assert not list(out.rglob(".hourglass-*.tmp"))


def test_a_killed_conversion_leaves_no_file_or_a_whole_one(tmp_path: Path) -> None:
    source, target = tmp_path / "vit.npz", tmp_path / "vit.safetensors"
    draw = np.random.default_rng(0)
    width, depth = 384, 12
    arrays = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 197, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(depth):
        for name, shape in {
            "norm1.weight": (width,),
            "norm1.bias": (width,),
            "attn.qkv.weight": (3 * width, width),
            "attn.qkv.bias": (3 * width,),
            "attn.proj.weight": (width, width),
            "attn.proj.bias": (width,),
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }.items():
            arrays[f"blocks.{block}.{name}"] = shape
    np.savez(source, **{name: draw.standard_normal(shape, np.float32) for name, shape in arrays.items()})
    command = ["convert", source, "-o", target, "--model", "vit-timm"]
    begun = time.monotonic()
    assert start(*command).wait() == 0
    duration, whole, rng = time.monotonic() - begun, target.read_bytes(), random.Random(1)
    target.unlink()
    for _ in range(2 * KILLS):
        running = start(*command)
        time.sleep(rng.uniform(0.5, 1) * duration)
        running.send_signal(signal.SIGKILL)
        running.wait()
        check_whole(tmp_path)
    assert start(*command).wait() == 0
    assert target.read_bytes() == whole
    assert not list(tmp_path.glob(".hourglass-*.tmp"))
