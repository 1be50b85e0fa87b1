"""Speed of the encoder with and without the hourglass, against timm's eager PyTorch, in one run.

    python benchmarks/speed.py [--json] [--repeats N] [--skip-large]

Weights are random: speed does not depend on them. The runs of all candidates alternate, and medians are compared.
"""

import argparse
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_function_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.presets import preset


def import_timm():
    """timm needs only the Python part of torchvision, which fails to load beside a torch built without it."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import timm

    return timm, library


CASES = {
    "ViT-S/14, 518": (
        ViTConfig(patch_size=14, width=384, heads=6, position_grid=(37, 37), layer_scale=True),
        "vit_small_patch14_dinov2",
        preset("dinov2-vits14-saliency"),
    ),
    "ViT-L/16, 640": (
        ViTConfig(patch_size=16, width=1024, depth=24, heads=16, position_grid=(40, 40)),
        "vit_large_patch16_224",
        preset("segmenter-vit-l16-ade20k"),
    ),
}


def run_case(name: str, repeats: int) -> dict[str, float]:
    config, timm_name, chosen = CASES[name]
    side = chosen.size[0]
    original = ViT(config, rngs=nnx.Rngs(0))
    fast = hj.expedite(original, chosen.plan)
    pixels = np.random.default_rng(0).standard_normal((1, side, side, 3), dtype=np.float32)
    images = jnp.asarray(pixels)

    def features(model: ViT, images: jax.Array) -> jax.Array:
        tokens = model(images).tokens
        return tokens.restore(tokens.values)

    run = jax.jit(features)

    grid = original.token_grid(side, side)
    tokens = jnp.asarray(
        np.random.default_rng(1).standard_normal((1, grid[0] * grid[1], config.width)), jnp.float32
    )

    @jax.jit
    def layers(tokens: jax.Array) -> jax.Array:
        clustered = chosen.plan.before_block(
            chosen.plan.alpha, hj.Tokens(tokens), depth=config.depth, token_grid=grid
        )
        return clustered.restore(clustered.values)

    timm, _library = import_timm()
    peer = timm.create_model(timm_name, pretrained=False, img_size=side, num_classes=0).eval()
    peer_images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def run_peer() -> np.ndarray:
        with torch.inference_mode():
            return peer.forward_features(peer_images).numpy()

    candidates = {
        "timm": run_peer,
        "original": lambda: run(original, images),
        "expedited": lambda: run(fast, images),
        "layers": lambda: layers(tokens),
    }
    with tqdm(total=len(candidates) * (repeats + 1), desc=name, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=repeats, on_call=bar.update)
    seconds = {key: each.median for key, each in zip(candidates, times, strict=True)}
    macs = [sum(count_function_macs(features, model, images).values()) for model in (original, fast)]
    speedup, flops_ratio = seconds["original"] / seconds["expedited"], macs[0] / macs[1]
    return {
        **{f"{key}_ms": 1e3 * value for key, value in seconds.items()},
        "gflops": macs[0] / 1e9,
        "gflops_expedited": macs[1] / 1e9,
        "original_over_timm": seconds["timm"] / seconds["original"],
        "expedited_over_timm": seconds["timm"] / seconds["expedited"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "speedup_of_flops_ratio": speedup / flops_ratio,
        "layers_share": seconds["layers"] / seconds["expedited"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--skip-large", action="store_true", help="leave out ViT-L")
    arguments = parser.parse_args()
    names = [name for name in CASES if not (arguments.skip_large and "ViT-L" in name)]
    results = {name: run_case(name, arguments.repeats) for name in names}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("", *results, title=f"{jax.devices()[0]}, {torch.get_num_threads()} PyTorch threads")
    for figure in next(iter(results.values())):
        table.add_row(figure, *(f"{result[figure]:.3f}" for result in results.values()))
    Console().print(table)


if __name__ == "__main__":
    main()
