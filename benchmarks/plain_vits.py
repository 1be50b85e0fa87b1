"""Plain ViTs with many tokens, whole and expedited, against transformers' eager PyTorch, in one run.

    python benchmarks/plain_vits.py [--json] [--processes N] [--repeats N] [--model NAME ...]

Weights are random and the same on both sides, the image is a photograph at the model's size. In each of several
fresh processes the runs of all candidates alternate, and their medians are compared; the table has the median, the
least and the greatest of the processes. "transformers" has PyTorch's fused attention, its default, and
"transformers_eager" the attention that its own code writes out. The plan is StagedMerging at 0.6 of the encoder's
multiply-accumulates. "error" is the largest difference of ours, whole, from transformers'. Run it on an idle
machine.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import alone, report, torchvision_operators
from tqdm import tqdm

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.imaging.images import center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.search.budget import at_budget

METHOD, SHARE = "StagedMerging", 0.6


class Case(NamedTuple):
    """A model of transformers, and how both sides are called.

    Attributes:
        side: pixels of a square image.
        build: transformers' model with random weights, which `convert` reads once it is saved.
        theirs: their model's output for images [1, 3, side, side].
        ours: the same of ours, [1, side, side, 3].
    """

    side: int
    build: Callable[[], torch.nn.Module]
    theirs: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
    ours: Callable[[Any, jax.Array], jax.Array]


def dinov3_small() -> torch.nn.Module:
    """ViT-S/16 with four registers."""
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    return DINOv3ViTModel(DINOv3ViTConfig(num_register_tokens=4))


CASES = {
    "DINOv3-S, 512": Case(
        512,
        dinov3_small,
        lambda model, images: model(images).last_hidden_state[:, 5:],
        lambda model, images: model.head_input(model.features(images)),
    ),
}
"""Another model is another entry."""


def photograph(side: int) -> np.ndarray:
    """[1, side, side, 3], normalised."""
    square = center_crop_square(read_image(photographs()["astronaut"])).astype(np.float32)
    image = jax.image.resize(jnp.asarray(square), (side, side, 3), "cubic")
    return np.asarray(image / 127.5 - 1)[None]


def run_case(name: str, repeats: int) -> dict[str, float]:
    torchvision_operators()
    case = CASES[name]
    torch.manual_seed(0)
    peer = case.build().eval()
    with tempfile.TemporaryDirectory() as folder:
        peer.save_pretrained(folder)
        target = convert(Path(folder), Path(folder) / "ours.safetensors").target
        model = hj.load(target)
        model = jax.tree.map(jnp.array, model)  # the file goes
    image = photograph(case.side)
    plan = at_budget(model, METHOD, SHARE, (case.side, case.side))
    models = {"original": model, "expedited": hj.expedite(model, plan)}
    images, pixels = jnp.asarray(image), torch.from_numpy(image.transpose(0, 3, 1, 2).copy())
    run = jax.jit(case.ours)

    def run_peer(attention: str) -> np.ndarray:
        peer.set_attn_implementation(attention)
        with torch.inference_mode():
            return case.theirs(peer, pixels).numpy()

    candidates: dict[str, Callable[[], object]] = {
        "transformers": lambda: run_peer("sdpa"),
        "transformers_eager": lambda: run_peer("eager"),
        "original": lambda: run(models["original"], images),
        "expedited": lambda: run(models["expedited"], images),
    }
    error = np.abs(np.asarray(run(model, images)) - run_peer("sdpa")).max()
    with tqdm(total=len(candidates) * (repeats + 1), desc=name, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=repeats, on_call=bar.update)
    seconds = {key: each.median for key, each in zip(candidates, times, strict=True)}
    macs = {key: count_encoder_macs(each, (case.side, case.side)) for key, each in models.items()}
    speedup, flops_ratio = seconds["original"] / seconds["expedited"], macs["original"] / macs["expedited"]
    return {
        **{f"{key}_ms": 1e3 * value for key, value in seconds.items()},
        **{f"{key}_gmacs": value / 1e9 for key, value in macs.items()},
        "original_over_transformers": seconds["transformers"] / seconds["original"],
        "original_over_transformers_eager": seconds["transformers_eager"] / seconds["original"],
        "expedited_over_transformers": seconds["transformers"] / seconds["expedited"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "speedup_of_flops_ratio": speedup / flops_ratio,
        "error": float(error),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each candidate in a process")
    parser.add_argument("--model", choices=CASES, action="append", help="one of the models instead of all")
    arguments = parser.parse_args()
    names = arguments.model or list(CASES)
    runs = {name: [alone(run_case, name, arguments.repeats) for _ in range(arguments.processes)] for name in names}
    results = {name: {key: [run[key] for run in found] for key in found[0]} for name, found in runs.items()}
    report(results, as_json=arguments.json, digits=".4g")


if __name__ == "__main__":
    main()
