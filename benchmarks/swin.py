"""Speed of Swin-L with and without the hourglass, against timm's eager PyTorch, in one run.

    python benchmarks/swin.py [--json] [--repeats N] [--size PIXELS] [--only backbone|stage]

Random weights, windows of 12 x 12 tokens; from block 10 to the end of the third stage 8 x 8 clusters in each
(mask2former-swin-l-coco-panoptic). The runs of all candidates alternate, and medians are compared.

"stage" is the third one with its 18 blocks, "blocks" the last twelve of them, on its tokens and on the clusters.
"layers" is the clustering and the reconstruction; "windows" what else cuts maps into windows and puts them together
again in the expedited stage: queries, keys, values and outputs of every block. "bias" is the relative position bias
of its 18 blocks, resized once for the clusters and spread over all pairs in every call. Run it on an idle machine.
"""

import argparse
import json
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import import_timm
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_function_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.swin import Swin, SwinConfig
from hourglass_jax.ops.windows import merge, partition, window_grid
from hourglass_jax.plans.base import Tokens

PLAN = hj.preset("mask2former-swin-l-coco-panoptic").plan
WINDOW, SIDE = 12, PLAN.clusters[0]
STAGE, FIRST, END = 2, 4, 22
"""The stage that the plan is about, its first block and the one after its last."""


def features(swin: Swin, images: jax.Array) -> tuple[jax.Array, ...]:
    return swin(images).stages


def stage(swin: Swin, x: jax.Array) -> jax.Array:
    chosen = swin.stages[STAGE]
    return swin._blocks(enumerate(chosen.blocks), x, WINDOW) if swin.plan is None else clustered(swin, x)


def clustered(swin: Swin, x: jax.Array) -> jax.Array:
    return swin._clustered(swin.stages[STAGE], FIRST, x)[0]


def blocks(swin: Swin, x: jax.Array, window: int) -> jax.Array:
    return swin._blocks([*enumerate(swin.stages[STAGE].blocks)][PLAN.alpha - FIRST :], x, window)


def layers(x: jax.Array) -> jax.Array:
    """What the plan does to the tokens, without the blocks between."""
    grid = x.shape[1:3]
    cluster_grid = tuple(SIDE * count for count in window_grid(grid, WINDOW))
    token_grid = (WINDOW, WINDOW)
    tokens = PLAN.before_block(PLAN.alpha, Tokens(partition(x, WINDOW)), depth=END, token_grid=token_grid)
    clusters = jax.lax.optimization_barrier(merge(tokens.values, cluster_grid, SIDE))
    tokens = tokens._replace(values=partition(clusters, SIDE))
    return merge(PLAN.before_block(END, tokens, depth=END, token_grid=token_grid).values, grid, WINDOW)


def windows(qkv: jax.Array, window: int, count: int) -> jax.Array:
    """The windows of queries, keys and values, and the map of as many outputs, for `count` blocks in turn."""
    out = qkv[..., : qkv.shape[-1] // 3]
    for shift in (0, window // 2) * (count // 2):
        qkv, out = jax.lax.optimization_barrier((qkv, out))
        cut = jax.lax.optimization_barrier(partition(qkv, window, shift))
        out = merge(cut[..., : out.shape[-1]], out.shape[1:3], window, shift)
    return out


def biases(swin: Swin) -> list[jax.Array]:
    return [block.attention.bias(WINDOW) for block in swin.stages[STAGE].blocks]


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def gmacs(function: Callable[..., object], *arguments: object) -> float:
    return sum(count_function_macs(function, *arguments).values()) / 1e9


def timed(candidates: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians in seconds."""
    with tqdm(total=len(candidates) * (repeats + 1), disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=repeats, on_call=bar.update)
    return {name: each.median for name, each in zip(candidates, times, strict=True)}


def figures(part: str, seconds: tuple[float, float], costs: tuple[float, float]) -> dict[str, float]:
    """What the plan saves of a part of the backbone."""
    speedup = seconds[0] / seconds[1]
    return {
        f"{part}: GFLOPs": costs[0],
        f"{part}: GFLOPs, expedited": costs[1],
        f"{part}: speed-up": speedup,
        f"{part}: speed-up, of the FLOP ratio": speedup * costs[1] / costs[0],
    }


def run_backbone(original: Swin, fast: Swin, size: int, repeats: int) -> dict[str, float]:
    images = normal(1, size, size, 3)
    timm = import_timm()
    name = "swin_large_patch4_window12_384"
    peer = timm.create_model(name, pretrained=False, img_size=size, num_classes=0).eval()
    peer_images = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())

    def run_peer() -> np.ndarray:
        with torch.inference_mode():
            return peer.forward_features(peer_images).numpy()

    run = jax.jit(features)
    seconds = timed(
        {"timm": run_peer, "original": lambda: run(original, images), "expedited": lambda: run(fast, images)},
        repeats,
    )
    costs = gmacs(features, original, images), gmacs(features, fast, images)
    return {
        **{f"{name}, ms": 1e3 * each for name, each in seconds.items()},
        "original, of timm's speed": seconds["timm"] / seconds["original"],
        **figures("backbone", (seconds["original"], seconds["expedited"]), costs),
    }


def run_stage(original: Swin, fast: Swin, size: int, repeats: int) -> dict[str, float]:
    grid, width = original.grids(size, size)[STAGE], original.config.width * 2**STAGE
    cluster_grid = tuple(SIDE * count for count in window_grid(grid, WINDOW))
    x, s = normal(1, *grid, width), normal(1, *cluster_grid, width)
    x_qkv, s_qkv = normal(1, *grid, 3 * width), normal(1, *cluster_grid, 3 * width)
    of_stage, of_blocks = jax.jit(stage), jax.jit(blocks, static_argnames="window")
    of_layers, of_windows = jax.jit(layers), jax.jit(windows, static_argnames=("window", "count"))
    plain, few = PLAN.alpha - FIRST, END - PLAN.alpha
    of_biases = jax.jit(biases)
    seconds = timed(
        {
            "stage": lambda: of_stage(original, x),
            "expedited stage": lambda: of_stage(fast, x),
            "blocks": lambda: of_blocks(original, x, window=WINDOW),
            "clustered blocks": lambda: of_blocks(original, s, window=SIDE),
            "layers": lambda: of_layers(x),
            "windows of blocks before": lambda: of_windows(x_qkv, window=WINDOW, count=plain),
            "windows of clustered blocks": lambda: of_windows(s_qkv, window=SIDE, count=few),
            "bias": lambda: of_biases(fast),
        },
        repeats,
    )
    stage_costs = gmacs(stage, original, x), gmacs(stage, fast, x)
    block_costs = (
        gmacs(lambda x: blocks(original, x, WINDOW), x),
        gmacs(lambda s: blocks(original, s, SIDE), s),
    )
    shuffling = seconds["windows of blocks before"] + seconds["windows of clustered blocks"]
    shares = {
        "layers and windows": seconds["layers"] + shuffling,
        "layers": seconds["layers"],
        "bias": seconds["bias"],
    }
    return {
        **{f"{name}, ms": 1e3 * each for name, each in seconds.items()},
        **figures("stage", (seconds["stage"], seconds["expedited stage"]), stage_costs),
        **figures("blocks", (seconds["blocks"], seconds["clustered blocks"]), block_costs),
        **{
            f"{name}, share of the expedited stage": each / seconds["expedited stage"]
            for name, each in shares.items()
        },
    }


PARTS = {"backbone": run_backbone, "stage": run_stage}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--size", type=int, default=640, help="side of the image in pixels")
    parser.add_argument("--only", choices=PARTS, help="the whole backbone, or its third stage")
    arguments = parser.parse_args()
    original = Swin(SwinConfig.sized("large", window=WINDOW), rngs=nnx.Rngs(0))
    fast = hj.expedite(original, PLAN)
    found = {}
    for part in [arguments.only] if arguments.only else PARTS:
        found |= PARTS[part](original, fast, arguments.size, arguments.repeats)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    table = Table("", "", title=f"Swin-L, {jax.devices()[0]}, {torch.get_num_threads()} PyTorch threads")
    for name, value in found.items():
        table.add_row(name, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
