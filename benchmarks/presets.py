"""How much faster a model is under its published plans: `hourglass bench` for all presets of a system.

    python benchmarks/presets.py SYSTEM [--json] [--repeats N]

Weights are random and the image is noise of the presets' size. All plans for one size are measured in turn with the
original model, and medians are compared. "of FLOP ratio" is the speed-up over the ratio of the multiply-accumulates
that are executed (`hourglass flops`). Run it on an idle machine.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import jax
import numpy as np
from flax import nnx
from paper_gflops import VIT_H, VIT_L, abstract_dpt, abstract_segmenter, abstract_swag, abstract_swin
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.segmenter import SegmenterConfig
from hourglass_jax.models.swag import SwagConfig
from hourglass_jax.plans.presets import PRESETS


def segmenter(side: int, classes: int, decoder_depth: int) -> nnx.Module:
    vit = replace(VIT_L, position_grid=(side // 16,) * 2)
    return abstract_segmenter(SegmenterConfig(vit, classes=classes, decoder_depth=decoder_depth))


def swag(vit: ViTConfig, side: int) -> nnx.Module:
    return abstract_swag(SwagConfig(replace(vit, position_grid=(side // vit.patch_size,) * 2)))


def swin(**fields: int) -> nnx.Module:
    return abstract_swin(SwinConfig.sized("large", **fields))


SYSTEMS: dict[str, Callable[[], nnx.Module]] = {
    "segmenter-vit-l16-ade20k": partial(segmenter, 640, classes=150, decoder_depth=2),
    "segmenter-vit-l16-cityscapes": partial(segmenter, 768, classes=19, decoder_depth=1),
    "segmenter-vit-l16-pascal-context": partial(segmenter, 480, classes=60, decoder_depth=2),
    "dpt-hybrid-kitti": abstract_dpt,
    "dpt-hybrid-nyu": abstract_dpt,
    "swag-vit-l16": partial(swag, VIT_L, 512),
    "swag-vit-h14": partial(swag, VIT_H, 518),
    "mask2former-swin-l": partial(swin, window=12),
    "dino-swin-l": partial(swin, window=12),
    "oneformer-swin-l": partial(swin, window=12),
    "swinv2-l": partial(swin, window=32, version=2),
}
"""What the names of presets contain, MaskDINO's that of DINO -> the model with shapes in place of parameters."""


def run(system: str, repeats: int) -> dict[str, dict[str, float]]:
    """The figures of the original and of every preset; presets of one plan share a measurement."""
    presets = {name: preset for name, preset in PRESETS.items() if system in name}
    (size,) = {preset.size for preset in presets.values()}
    original = SYSTEMS[system]()
    random = np.random.default_rng(0)
    nnx.update(
        original,
        jax.tree.map(lambda each: 0.02 * random.standard_normal(each.shape, "f"), nnx.state(original)),
    )
    plans = {None: "original"}
    for name, preset in presets.items():
        plans[preset.plan] = f"{plans[preset.plan]}, {name}" if preset.plan in plans else name
    models = {name: hj.expedite(original, plan) for plan, name in plans.items()}
    images = jax.numpy.asarray(random.standard_normal((1, *size, 3), "f"))
    call = jax.jit(lambda model, images: model(images))
    with tqdm(total=len(models) * (repeats + 1), desc=system, disable=not sys.stderr.isatty()) as bar:
        times = measure(
            [partial(call, each, images) for each in models.values()], repeats=repeats, on_call=bar.update
        )
    seconds = dict(zip(models, (each.median for each in times), strict=True))
    macs = {name: count_macs(each, size)["total"] for name, each in models.items()}
    speedups = {name: seconds["original"] / each for name, each in seconds.items()}
    return {
        name: {
            "latency_s": seconds[name],
            "gflops": macs[name] / 1e9,
            "speedup": speedups[name],
            "flops_ratio": macs["original"] / macs[name],
            "speedup_of_flops_ratio": speedups[name] * macs[name] / macs["original"],
        }
        for name in models
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=SYSTEMS)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    found = run(arguments.system, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    heads = ("seconds", "GFLOPs", "speed-up", "FLOP ratio", "of FLOP ratio")
    table = Table("", *(Column(head, justify="right") for head in heads), title=str(jax.devices()[0]))
    for name, figures in found.items():
        table.add_row(name, *(f"{value:.2f}" for value in figures.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
