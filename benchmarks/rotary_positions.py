"""Where a token that stands for several is, under rotary positions: how much of the features each answer keeps.

    python benchmarks/rotary_positions.py [--json] [--tokens N]

"mean" is the mean of its members' places, "member" the place of the one member that is most like it, and "own" what
the plan itself says. For merged tokens "own" is the mean; for clusters, the mean of the places that the average
pooling gives to a cell, which no image changes. Figures are cosines of the final features with those of the same
model without a plan, the mean of the photographs of the demo and the worst.

No trained model with rotary positions comes with a package. So two others are asked: a DINOv3-S with random
weights, and the embedded DINOv2 ViT-S/14, whose queries and keys are turned as DINOv3's are, beside its position
embedding. It was not trained for that, but its tokens resemble each other as a trained model's do.
"""

import argparse
import json
from dataclasses import dataclass, replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity, final_features
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.imaging.images import center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.ops.grids import grid_positions
from hourglass_jax.ops.merging import take
from hourglass_jax.plans.base import Block, Tokens
from hourglass_jax.plans.wrapped import WrappedPlan
from hourglass_jax.search.budget import Costs

Where = Literal["own", "mean", "member"]


@dataclass(frozen=True)
class Placed(WrappedPlan):
    """Another plan, whose tokens are where `where` says."""

    where: Where = "own"

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        after = super().before_block(index, tokens, block)
        if self.where == "own" or after.is_whole or after.positions is tokens.positions:
            return after
        members = shares(after)
        if self.where == "mean":
            places = jnp.asarray(grid_positions(tokens.grid, tokens.grid))
            total = jnp.einsum("bnm,nc->bmc", members, places, precision="highest")
            return replace(after, positions=total / members.sum(axis=1)[..., None])
        belongs = jnp.einsum("bnm,bnk->bmk", members, shares(tokens)) > 0
        gaps = jnp.sum(after.values**2, axis=-1)[..., None] + jnp.sum(tokens.values**2, axis=-1)[:, None]
        gaps -= 2 * jnp.einsum("bmc,bkc->bmk", after.values, tokens.values, precision="highest")
        nearest = jnp.argmin(jnp.where(belongs, gaps, jnp.inf), axis=-1)
        places = jnp.broadcast_to(tokens.positions, (len(nearest), tokens.count, 2))
        return replace(after, positions=take(places, nearest))


def shares(tokens: Tokens) -> jax.Array:
    """What every token of the grid is restored from, [B, H*W, M]."""
    one = jnp.eye(tokens.count)[None]
    return tokens.restore(jnp.broadcast_to(one, (len(tokens.sequence), *one.shape[1:])))


def random_dinov3() -> ViT:
    """A DINOv3-S whose branches count as much as the tokens themselves."""
    vit = nnx.eval_shape(lambda: ViT(ViTConfig.dinov3("small"), rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(vit)):
        noise = random.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= (1.5 if "qkv" in path else 1) * parameter.shape[0] ** -0.5
        elif parameter.ndim == 1:
            noise = 0.1 * noise + (path[-1] != "bias")
        parameter.set_value(jnp.asarray(noise, jnp.float32))
    return vit


def turned_dinov2() -> ViT:
    """The embedded DINOv2, its queries and keys turned by DINOv3's angles."""
    trained = hj.load("dinov2-vits14-saliency").backbone
    vit = nnx.eval_shape(lambda: ViT(replace(trained.config, rotary_base=100.0), rngs=nnx.Rngs(0)))
    nnx.update(vit, nnx.state(trained))
    return vit


MODELS = {"random DINOv3-S": random_dinov3, "embedded DINOv2-S, turned": turned_dinov2}
PLANS: dict[str, tuple[str, dict[str, object]]] = {
    "StagedMerging, mean": ("StagedMerging", {}),
    "StagedMerging, medoid": ("StagedMerging", {"value": "medoid"}),
    "Hourglass, mean": ("Hourglass", {"alpha": 5, "iterations": 2}),
    "Hourglass, medoid": ("Hourglass", {"alpha": 5, "iterations": 2, "representative": "medoid"}),
}
"""Name -> method and fields; the rest follows from 0.6 of the encoder's multiply-accumulates."""
run = jax.jit(final_features)


def cosines(name: str, tokens: int) -> dict[str, dict[str, tuple[float, float]]]:
    """Mean and worst cosine by plan and places, on images of `tokens` x `tokens` tokens."""
    vit = MODELS[name]()
    side = tokens * vit.config.patch_size
    images = [
        jax.image.resize(jnp.asarray(center_crop_square(read_image(path)), jnp.float32), (side, side, 3), "cubic")
        for path in photographs().values()
    ]
    images = [(each[None] / 255 - 0.45) / 0.225 for each in images]
    originals = [run(vit, each) for each in images]
    costs = Costs(vit, (side, side))
    found = {}
    for plan_name, (method, fields) in PLANS.items():
        plan, found[plan_name] = costs.solve(method, 0.6, fields), {}
        for where in ("own", "mean", "member"):
            fast = hj.expedite(vit, Placed(plan, where))
            each = [float(cosine_similarity(run(fast, x), y)[0]) for x, y in zip(images, originals, strict=True)]
            found[plan_name][where] = float(np.mean(each)), min(each)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--tokens", type=int, default=32, help="on a side of an image")
    arguments = parser.parse_args()
    results = {name: cosines(name, arguments.tokens) for name in MODELS}
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    for name, plans in results.items():
        table = Table("plan", "own", "mean", "member", title=f"{name}: mean cosine (worst)")
        for plan, places in plans.items():
            table.add_row(plan, *(f"{mean:.4f} ({worst:.4f})" for mean, worst in places.values()))
        Console().print(table)


if __name__ == "__main__":
    main()
