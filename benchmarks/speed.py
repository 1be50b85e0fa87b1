"""Speed of the encoder with and without the hourglass, against timm's eager PyTorch, in one run.

    python benchmarks/speed.py [--json] [--processes N] [--repeats N] [--skip-large]

ViT-S/14 is the embedded model's trained encoder, ViT-L/16 has random weights; the image is a photograph. In each of
several fresh processes the runs of all candidates alternate, and their medians are compared; the table has the
median, the least and the greatest of the processes. "layers" is the clustering and the reconstruction alone, on the
tokens that they really meet, several times in one call: in the encoder, too, they come in the middle of a call.
"layers_alone" is once in a call of its own, after calls of the other candidates. Run it on an idle machine:
PyTorch's threads suffer most from company.
"""

import argparse
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import torch
from common import alone, import_timm, report
from flax import nnx
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_function_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.imaging.images import Preprocessing, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.plans.presets import preset

LAYER_CALLS = 5


def small() -> ViT:
    return hj.load("dinov2-vits14-saliency").backbone


def large() -> ViT:
    config = ViTConfig.sized("large", position_grid=(40, 40))
    return ViT(config, rngs=nnx.Rngs(0))


CASES = {
    "ViT-S/14, 518": (small, "vit_small_patch14_dinov2", preset("dinov2-vits14-saliency")),
    "ViT-L/16, 640": (large, "vit_large_patch16_224", preset("segmenter-vit-l16-ade20k")),
}


def run_case(name: str, repeats: int) -> dict[str, float]:
    build, timm_name, chosen = CASES[name]
    side, plan = chosen.size[0], chosen.plan
    original = build()
    fast = hj.expedite(original, plan)
    photo = read_image(photographs()["astronaut"])
    pixels = Preprocessing(size=side, multiple=original.config.patch_size, resize="square")(photo)[None]
    images = jnp.asarray(pixels)

    def features(model: ViT, images: jax.Array) -> jax.Array:
        tokens = model(images).tokens
        return tokens.restore(tokens.values)

    @jax.jit
    def before_clustering(model: ViT, images: jax.Array) -> jax.Array:
        return model(images, intermediates=[plan.alpha - 1]).intermediates[0].tokens

    @partial(jax.jit, static_argnames="calls")
    def layers(tokens: jax.Array, calls: int) -> jax.Array:
        grid = original.token_grid(side, side)

        def both(_: int, restored: jax.Array) -> jax.Array:
            same = tokens + 1e-30 * restored  # XLA does not know, and computes everything anew
            whole = hj.Tokens.whole(same, grid, depth=original.depth)
            clustered = plan.before_block(plan.alpha, whole, original.blocks[plan.alpha])
            return clustered.restore(clustered.values)

        return jax.lax.fori_loop(0, calls, both, tokens)

    run = jax.jit(features)
    tokens = before_clustering(original, images)

    peer = import_timm().create_model(timm_name, pretrained=False, img_size=side, num_classes=0).eval()
    peer_images = torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())

    def run_peer() -> np.ndarray:
        with torch.inference_mode():
            return peer.forward_features(peer_images).numpy()

    candidates = {
        "timm": run_peer,
        "original": lambda: run(original, images),
        "expedited": lambda: run(fast, images),
        "layers": lambda: layers(tokens, LAYER_CALLS),
        "layers_alone": lambda: layers(tokens, 1),
    }
    with tqdm(total=len(candidates) * (repeats + 1), desc=name, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=repeats, on_call=bar.update)
    seconds = {key: each.median for key, each in zip(candidates, times, strict=True)}
    macs = [sum(count_function_macs(features, model, images).values()) for model in (original, fast)]
    seconds["layers"] /= LAYER_CALLS
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
        "layers_alone_share": seconds["layers_alone"] / seconds["expedited"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each candidate in a process")
    parser.add_argument("--skip-large", action="store_true", help="leave out ViT-L")
    arguments = parser.parse_args()
    names = [name for name in CASES if not (arguments.skip_large and "ViT-L" in name)]
    runs = {name: [alone(run_case, name, arguments.repeats) for _ in range(arguments.processes)] for name in names}
    results = {name: {key: [run[key] for run in found] for key in found[0]} for name, found in runs.items()}
    report(results, as_json=arguments.json)


if __name__ == "__main__":
    main()
