"""EoMT-S at 640 x 640: its speed against transformers' eager PyTorch, and where a plan should end.

    python benchmarks/eomt.py [--json] [--only speed|ends] [--processes N] [--repeats N]

"speed": from a prepared photograph to the logits of classes and masks, random weights, the plan of the preset
eomt-s-640. In each of several fresh processes the runs of all candidates alternate, and their medians are compared;
the table has the median, the least and the greatest of the processes. transformers runs as it comes, with PyTorch's
fused attention. Run it on an idle machine.

"ends": plans that go on to the last block, the queries being special tokens, and plans that restore the grid
before the queries join, at the same cost of the whole model. The ViT is the embedded model's trained DINOv2
ViT-S/14 (every patch of 16 pixels is resized to its 14), queries and heads are random, as no trained EoMT comes
with a package. "features" is the cosine of the tokens that the head reads with those without a plan, "masks" that
of the mask logits of each query without their mean; the mean of all photographs, and the worst.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from common import alone, report, torchvision_operators
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.images import Preprocessing, center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.models.eomt import EoMT, EoMTConfig
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.presets import preset
from hourglass_jax.plans.registry import find_method
from hourglass_jax.plans.wrapped import WrappedPlan

PRESET = "eomt-s-640"
SIDE, PATCH = 640, 16
SMALL = ViTConfig.sized(
    "small",
    special_tokens=5,
    position_grid=(SIDE // PATCH, SIDE // PATCH),
    position_resize="bicubic-antialias",
    layer_scale=True,
)
CONFIG = EoMTConfig(SMALL, query_blocks=3)


def prepared() -> dict[str, np.ndarray]:
    """The squares in the middle of the photographs, [SIDE, SIDE, 3], normalised."""
    prepare = Preprocessing(SIDE, PATCH, "square")
    return {name: prepare(center_crop_square(read_image(path))) for name, path in photographs().items()}


def run_speed(repeats: int) -> dict[str, float]:
    torchvision_operators()
    import torch
    import transformers

    plan, image = preset(PRESET).plan, prepared()["astronaut"]
    original = EoMT(CONFIG, rngs=nnx.Rngs(0))
    fast, images = hj.expedite(original, plan), jnp.asarray(image)[None]
    peer = transformers.EomtForUniversalSegmentation(
        transformers.EomtConfig(
            hidden_size=SMALL.width,
            num_hidden_layers=SMALL.depth,
            num_attention_heads=SMALL.heads,
            image_size=SIDE,
            patch_size=PATCH,
            num_blocks=CONFIG.query_blocks,
            num_queries=CONFIG.queries,
            num_labels=CONFIG.classes,
        )
    ).eval()
    peer.attn_mask_probs.zero_()
    pixels = torch.from_numpy(image.transpose(2, 0, 1)[None].copy())

    def run_peer() -> np.ndarray:
        with torch.inference_mode():
            return peer(pixels).masks_queries_logits.numpy()

    run = jax.jit(lambda model, images: model(images))
    candidates = {
        "transformers": run_peer,
        "original": partial(run, original, images),
        "expedited": partial(run, fast, images),
    }
    with tqdm(total=len(candidates) * (repeats + 1), disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=repeats, on_call=bar.update)
    seconds = {name: each.median for name, each in zip(candidates, times, strict=True)}
    macs = [count_macs(model, (SIDE, SIDE))["total"] for model in (original, fast)]
    speedup, flops_ratio = seconds["original"] / seconds["expedited"], macs[0] / macs[1]
    return {
        **{f"{name}_ms": 1e3 * value for name, value in seconds.items()},
        "gflops": macs[0] / 1e9,
        "gflops_expedited": macs[1] / 1e9,
        "original_over_transformers": seconds["transformers"] / seconds["original"],
        "expedited_over_transformers": seconds["transformers"] / seconds["expedited"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "speedup_of_flops_ratio": speedup / flops_ratio,
    }


@dataclass(frozen=True)
class EndsBefore(WrappedPlan):
    """A plan of the first blocks alone: the grid of tokens is restored before block `end`."""

    end: int

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        self.plan.check(self.end, token_grid)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        if index < self.end:
            return self.plan.before_block(index, replace(tokens, depth=self.end), block)
        return tokens.restored()

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        return self.plan.after_attention(index, tokens, query, key) if index < self.end else tokens


def trained() -> EoMT:
    """An EoMT-S with the embedded model's ViT; queries are of the size of its tokens before they join."""
    source = hj.load("dinov2-vits14-saliency").backbone
    config = replace(CONFIG, backbone=replace(source.config, patch_size=PATCH))
    model = EoMT(config, rngs=nnx.Rngs(0))
    kernel = source.patch_embedding.projection.kernel[...].reshape(14, 14, 3, -1)
    to_14 = resize_matrix(PATCH, 14, "bilinear")
    larger = jnp.einsum("ab,cd,acxk->bdxk", to_14, to_14, kernel).reshape(PATCH * PATCH * 3, -1)
    for name in ("special_tokens", "position_embedding", "blocks", "norm"):
        setattr(model.backbone, name, getattr(source, name))
    model.backbone.patch_embedding.projection.kernel[...] = larger
    model.backbone.patch_embedding.projection.bias[...] = source.patch_embedding.projection.bias[...]
    image = jnp.asarray(prepared()["coffee"])[None]
    tokens = source_tokens(model, image)
    noise = jax.random.normal(jax.random.key(0), (config.queries, config.backbone.width))
    model.queries[...] = tokens.mean(axis=1)[0] + noise * tokens.std(axis=1)[0]
    return model


@jax.jit
def source_tokens(model: EoMT, images: jax.Array) -> jax.Array:
    """The image's tokens where the queries join, [B, H*W, C]."""
    return model.backbone(images, intermediates=[model.config.first_block - 1]).intermediates[0].tokens


@jax.jit
def outputs(model: EoMT, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The tokens that the head reads, without queries, and the mask logits without their mean, [B, Q, H*W]."""
    features = model.features(images)
    masks = model.decode(features, None).mask_logits
    masks = masks.reshape(*masks.shape[:2], -1)
    return model.head_input(features)[:, model.config.queries :], masks - masks.mean(axis=2, keepdims=True)


METHODS = {
    "StagedMerging": {},
    "TokenMerging": {},
    "Hourglass": {"iterations": 2, "representative": "medoid"},
}


def at_cost(model: EoMT, method: str, share: float, end: int | None) -> Plan:
    """A method's plan whose whole model costs nearly `share` of the original's, and not more."""
    depth = model.backbone.depth if end is None else end
    grid = model.backbone.token_grid(SIDE, SIDE)
    whole = count_macs(model, (SIDE, SIDE))["total"]

    def plan_at(step: int) -> Plan:
        plan = replace(find_method(method).scaled(step / 4096, depth, grid), **METHODS[method])
        return plan if end is None else EndsBefore(plan, end)

    low, high = 1, 4096
    while high - low > 1:
        middle = (low + high) // 2
        cost = count_macs(hj.expedite(model, plan_at(middle)), (SIDE, SIDE))["total"]
        low, high = (middle, high) if cost <= share * whole else (low, middle)
    return plan_at(low)


def run_ends(budget: float) -> dict[str, dict[str, object]]:
    model, images = trained(), {name: jnp.asarray(each)[None] for name, each in prepared().items()}
    originals = {name: outputs(model, image) for name, image in images.items()}
    whole = count_macs(model, (SIDE, SIDE))["total"]
    found = {}
    for method in METHODS:
        for name, end in (("to the end", None), ("before the queries", model.config.first_block)):
            plan = at_cost(model, method, budget, end)
            fast = hj.expedite(model, plan)
            pairs = [(outputs(fast, image), originals[each]) for each, image in images.items()]
            features, masks = (
                [float(cosine_similarity(mine[part], theirs[part])[0]) for mine, theirs in pairs] for part in (0, 1)
            )
            found[f"{method}, {name}"] = {
                "plan": str(plan),
                "cost": count_macs(fast, (SIDE, SIDE))["total"] / whole,
                "features": statistics.mean(features),
                "features, worst": min(features),
                "masks": statistics.mean(masks),
                "masks, worst": min(masks),
            }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--only", choices=("speed", "ends"), help="one part instead of both")
    parser.add_argument("--processes", type=int, default=3, help="of the speed")
    parser.add_argument("--repeats", type=int, default=7, help="timed calls of each candidate in a process")
    parser.add_argument("--budget", type=float, default=0.6, help="share of the model's cost, of the ends")
    arguments = parser.parse_args()
    results = {}
    if arguments.only != "ends":
        runs = [alone(run_speed, arguments.repeats) for _ in range(arguments.processes)]
        results["speed"] = {key: [run[key] for run in runs] for key in runs[0]}
    if arguments.only != "speed":
        results["ends"] = run_ends(arguments.budget)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    if "speed" in results:
        report({"EoMT-S at 640": results["speed"]}, as_json=False)
    if "ends" in results:
        rows = results["ends"]
        table = Table("", *list(next(iter(rows.values())))[1:])
        for name, row in rows.items():
            table.add_row(name, *(f"{value:.4f}" for value in row.values() if isinstance(value, float)))
        Console().print(table)
        for name, row in rows.items():
            print(f"{name}: {row['plan']}")


if __name__ == "__main__":
    main()
