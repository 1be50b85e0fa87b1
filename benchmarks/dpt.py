"""DPT-Hybrid and Depth Anything V2 from prepared images to depth, against eager PyTorch, in one run.

    python benchmarks/dpt.py [--json] [--repeats N] [--model dpt-hybrid|depth-anything-v2-s] [--only speed|parts]

Weights are random, the image is a photograph at the model's size, 384 x 384 and 518 x 518 pixels. The peer has the
official layers around timm's transformer (tests/parity/dpts.py); with the hourglass, its blocks run on clusters as
the official code computes them, dense, and the hooked features are reconstructed by eq. 4.

"speed": the runs of all candidates alternate, and medians are compared; "ours_over_torch" is how many times as fast
ours is. "parts": ours cut off after the stem, after the blocks, and whole; a part is what it adds. Run it on an
idle machine.
"""

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import ratios, torchvision_operators
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig

MODELS = {
    "dpt-hybrid": DPTDepthConfig(
        ViTConfig(position_grid=(24, 24), position_resize="bilinear", stem=ResNetConfig()),
        hooks=(8, 11),
        widths=(256, 512, 768, 768),
    ),
    "depth-anything-v2-s": DPTDepthConfig(
        ViTConfig(patch_size=14, width=384, heads=6, position_grid=(37, 37), layer_scale=True),
        hooks=(2, 5, 8, 11),
        widths=(48, 96, 192, 384),
        fusion_width=64,
        readout="ignore",
        norm_features=True,
    ),
}
SIDES = {"dpt-hybrid": 384, "depth-anything-v2-s": 518}
PLANS = {
    "dpt-hybrid": hj.Hourglass(3, (16, 16), window=7, temperature=5.0, neighbors=50),
    "depth-anything-v2-s": hj.preset("dinov2-vits14-saliency").plan,
}
"""The paper's for NYUv2, whose clusters are fewer at 384 pixels too, and the embedded DINOv2 ViT-S/14's."""

Run = Callable[[], object]


def photograph(side: int) -> np.ndarray:
    """[1, side, side, 3], normalised."""
    square = center_crop_square(read_image(photographs()["astronaut"])).astype(np.float32)
    image = jax.image.resize(jnp.asarray(square), (side, side, 3), "cubic")
    return np.asarray(image / 127.5 - 1)[None]


def torch_runs(name: str, image: np.ndarray, plan: hj.Hourglass) -> dict[str, Run]:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    torchvision_operators()
    from tests.parity.dpts import TorchDepthAnything, TorchDPT, timm_vit
    from tests.parity.hourglasses import torch_clusters, torch_tokens

    config = MODELS[name]
    vit = config.backbone
    options = {"embed_dim": vit.width, "depth": vit.depth, "num_heads": vit.heads}
    if vit.layer_scale:
        options["init_values"] = 1.0
    backbone = timm_vit(SIDES[name], vit.patch_size, hybrid=vit.stem is not None, **options)
    kind = TorchDPT if config.readout == "project" else TorchDepthAnything
    model = kind(backbone, config.hooks, config.widths, config.fusion_width).eval()
    # "auto" is measured by ours; the dense products of the peer cost the same at any temperature.
    multiplier = 1.0 if plan.temperature == "auto" else 1 / plan.temperature

    def reduce(z: torch.Tensor, grid: tuple[int, int]):
        options = {"window": plan.window, "iterations": plan.iterations, "multiplier": multiplier}
        s = torch_clusters(z, grid, plan.clusters, **options)
        return s, lambda refined: torch_tokens(
            refined, z, s, neighbors=plan.neighbors, multiplier=multiplier, norm=1
        )

    pixels = torch.tensor(image).permute(0, 3, 1, 2)

    @torch.inference_mode()
    def run(**hourglass: object) -> np.ndarray:
        return model(pixels, **hourglass).numpy()

    return {"torch": run, "torch_hourglass": partial(run, alpha=plan.alpha, reduce=reduce)}


def new_model(name: str) -> DPTDepth:
    """Random parameters, small enough for numbers of order one."""
    model = nnx.eval_shape(lambda: DPTDepth(MODELS[name], rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda each: random.normal(0, 0.02, each.shape).astype("f"), nnx.state(model)))
    return model


def medians(runs: dict[str, Run], repeats: int, title: str) -> dict[str, float]:
    with tqdm(total=len(runs) * (repeats + 1), desc=title, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(runs.values()), repeats=repeats, on_call=bar.update)
    return {name: each.median for name, each in zip(runs, times, strict=True)}


def speed(name: str, repeats: int) -> dict[str, float]:
    image, plan, model = photograph(SIDES[name]), PLANS[name], new_model(name)
    models = {"ours": model, "ours_hourglass": hj.expedite(model, plan)}
    run = jax.jit(lambda model, images: model(images))
    ours = {key: partial(run, each, jnp.asarray(image)) for key, each in models.items()}
    seconds = medians({**torch_runs(name, image, plan), **ours}, repeats, name)
    macs = {key: count_macs(each, image.shape[1:3])["total"] for key, each in models.items()}
    return ratios(seconds, macs, "torch")


def parts(name: str, repeats: int) -> dict[str, float]:
    """Seconds and multiply-accumulates of each part of the unexpedited model and of the expedited one."""
    images, model = jnp.asarray(photograph(SIDES[name])), new_model(name)
    stages = {
        "embedding": lambda model, images: (
            model.backbone.patch_embedding(images) if model.backbone.stem is None else model.backbone.stem(images)
        ),
        "blocks": lambda model, images: model.features(images).intermediates,
        "head": lambda model, images: model(images),
    }
    results = {}
    for kind, each in (("ours", model), ("ours_hourglass", hj.expedite(model, PLANS[name]))):
        runs = {stage: partial(jax.jit(function), each, images) for stage, function in stages.items()}
        seconds, before = medians(runs, repeats, f"{name}, parts"), 0.0
        for stage, until in seconds.items():
            results[f"{kind}_{stage}_s"] = until - before
            before = until
        macs = count_macs(each, images.shape[1:3])
        results |= {f"{kind}_{part}_gmacs": value / 1e9 for part, value in macs.items()}
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, help="one model instead of both")
    parser.add_argument("--only", choices=("speed", "parts"), help="one section instead of both")
    arguments = parser.parse_args()
    sections = {"speed": speed, "parts": parts}
    results = {
        name: {key: run(name, arguments.repeats) for key, run in sections.items() if arguments.only in (None, key)}
        for name in MODELS
        if arguments.model in (None, name)
    }
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, found in results.items():
        for section, figures in found.items():
            table = Table("", section, title=name)
            for figure, value in figures.items():
                table.add_row(figure, f"{value:.3f}")
            Console().print(table)


if __name__ == "__main__":
    main()
