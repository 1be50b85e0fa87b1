"""SWAG from prepared images to logits, against torchvision's eager PyTorch, in one run.

    python benchmarks/swag.py [--json] [--repeats N] [--model vit-l16|vit-h14]

Weights are random, the image is a photograph at the model's size, the plan the paper's. The peer is torchvision's
VisionTransformer; with the hourglass, its blocks with the clustering as the official code computes it, dense. The
runs of all candidates alternate, and medians are compared; "ours_over_torchvision" is how many times as fast ours
is. Run it on an idle machine.
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
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.plans.presets import preset

MODELS = {
    "vit-l16": ViTConfig(width=1024, depth=24, heads=16, position_grid=(32, 32)),
    "vit-h14": ViTConfig(patch_size=14, width=1280, depth=32, heads=16, position_grid=(37, 37)),
}

Run = Callable[[], object]


def torchvision_runs(config: ViTConfig, image: np.ndarray, plan: hj.Hourglass) -> dict[str, Run]:
    torchvision_operators()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from tests.parity.hourglasses import torch_clusters
    from tests.parity.swags import VisionTransformer, torch_logits

    model = VisionTransformer(
        image.shape[0], config.patch_size, config.depth, config.heads, config.width, 4 * config.width
    ).eval()
    images = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()

    def cluster(tokens: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        settings = {"window": plan.window, "iterations": plan.iterations, "multiplier": 1 / plan.temperature}
        return torch_clusters(tokens, grid, plan.clusters, **settings)

    @torch.inference_mode()
    def original() -> object:
        return model(images)

    @torch.inference_mode()
    def expedited() -> object:
        return torch_logits(model, images, plan, cluster=cluster)

    return {"torchvision": original, "torchvision_hourglass": expedited}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, default="vit-l16")
    arguments = parser.parse_args()

    config, name = MODELS[arguments.model], f"swag-{arguments.model}-in1k"
    side = config.position_grid[0] * config.patch_size
    prepare = Preprocessing(size=side, multiple=config.patch_size, resize="crop", interpolation="bicubic")
    image = prepare(read_image(photographs()["astronaut"]))
    backbone = ViTConfig(**{**vars(config), "position_resize": "bicubic-align-corners"})
    model = Swag(SwagConfig(backbone), rngs=nnx.Rngs(0))
    plan = preset(name).plan
    models = {"ours": model, "ours_hourglass": hj.expedite(model, plan)}
    run, images = jax.jit(lambda model, images: model(images)), jnp.asarray(image)[None]
    runs = torchvision_runs(config, image, plan)
    runs |= {each: partial(run, fast, images) for each, fast in models.items()}
    with tqdm(total=len(runs) * (arguments.repeats + 1), desc=name, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(runs.values()), repeats=arguments.repeats, on_call=bar.update)
    seconds = {each: time.median for each, time in zip(runs, times, strict=True)}
    macs = {each: count_macs(fast, (side, side))["total"] for each, fast in models.items()}
    results = ratios(seconds, macs, "torchvision")
    if arguments.json:
        print(json.dumps({name: results}, indent=2))
        return
    table = Table("", name)
    for figure, value in results.items():
        table.add_row(figure, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
