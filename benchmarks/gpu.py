"""ViT-L/16 at 640 in bfloat16 on a GPU: every plan, against PyTorch eager and compiled, and the operators of plans.

    python benchmarks/gpu.py [--size 640] [--batch 8] [--repeats N] [--without-torch] [--tiny]

Random weights: times do not depend on them. Calls of all candidates alternate, with the images on the device;
medians are compared. "of FLOP ratio" is the speed-up over the ratio of the encoder's multiply-accumulates. The
operators are those whose cost no FLOP count has: the sorts of merging, and the k-th neighbour of the reconstruction
against `jax.lax.top_k`. --tiny runs it on a CPU, for a test.
"""

import argparse
import dataclasses
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.ops.kth_smallest import kth_smallest
from hourglass_jax.ops.targets import attention_form

PLANS = {
    "StagedMerging": hj.StagedMerging(0.87),
    "StagedMerging, medoid": hj.StagedMerging(0.87, value="medoid"),
    "TokenMerging": hj.TokenMerging(keep=0.96),
    "Hourglass": hj.Hourglass(10, (28, 28), iterations=2),
    "Hourglass, medoid": hj.Hourglass(10, (28, 28), iterations=2, representative="medoid"),
    "EViT": hj.EViT(0.8),
}
TINY = ViTConfig(patch_size=8, width=32, heads=2, depth=3, position_grid=(8, 8))
TIMM = "vit_large_patch16_224"


@jax.jit
def features(model: Encoder, images: jax.Array) -> jax.Array:
    """The map of features."""
    return model(images)


def main() -> None:
    """Prints two tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--without-torch", action="store_true")
    parser.add_argument("--tiny", action="store_true", help="a model of three blocks")
    given = parser.parse_args()
    if jax.default_backend() == "cpu" and not given.tiny:
        sys.exit("this is for a GPU, and JAX finds none here: --tiny runs it on the CPU")
    config = TINY if given.tiny else ViTConfig.sized("large", position_grid=(40, 40))
    vit = Encoder(EncoderConfig(config), dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    random = np.random.default_rng(0)
    images = jnp.asarray(random.standard_normal((given.batch, given.size, given.size, 3)), jnp.bfloat16)
    title = f"{jax.devices()[0].device_kind}, ViT of {config.depth} x {config.width}, {given.batch} x {given.size}"
    models = {"original": vit, **expedited(vit, given.size)}
    candidates: dict[str, Callable[[], object]] = {
        name: lambda model=model: features(model, images) for name, model in models.items()
    }
    candidates["original, XLA's attention"] = with_form("xla", vit, images)
    if not given.without_torch:
        candidates |= peers(given.size, given.batch)
    show_encoders(f"{title}, bfloat16", models, candidates, given.size, given.batch, given.repeats)
    show_operators(config, given.size // config.patch_size, given.batch, given.repeats)


def expedited(vit: Encoder, size: int) -> dict[str, Encoder]:
    """The encoder under all plans, those that are made for another depth or grid scaled to it."""
    side = size // vit.config.backbone.patch_size
    found = {}
    for name, plan in PLANS.items():
        if isinstance(plan, hj.Hourglass) and (plan.alpha >= vit.backbone.depth or min(plan.clusters) > side):
            plan = dataclasses.replace(plan, alpha=1, clusters=(max(side // 2, 1),) * 2)
        found[name] = hj.expedite(vit, plan)
    return found


def with_form(form: str, vit: Encoder, images: jax.Array) -> Callable[[], object]:
    """The encoder with another form of attention."""

    def call() -> object:
        with attention_form(form):
            return features(vit, images)

    return call  # fmt: skip


def peers(size: int, batch: int) -> dict[str, Callable[[], object]]:
    """timm's encoder on the same device, eager and compiled, with PyTorch's fused attention."""
    import torch
    from common import import_timm

    model = import_timm().create_model(TIMM, img_size=size, num_classes=0).cuda().to(torch.bfloat16).eval()
    images = torch.randn(batch, 3, size, size, device="cuda", dtype=torch.bfloat16)
    compiled = torch.compile(model.forward_features)

    def call(forward: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with torch.inference_mode():
            forward(images)
        torch.cuda.synchronize()

    return {"PyTorch, eager": lambda: call(model.forward_features), "PyTorch, compiled": lambda: call(compiled)}


def show_encoders(
    title: str,
    models: dict[str, Encoder],
    candidates: dict[str, Callable[[], object]],
    size: int,
    batch: int,
    repeats: int,
) -> None:
    """Times the candidates and prints what they take."""
    times = dict(zip(candidates, measure(list(candidates.values()), repeats=repeats), strict=True))
    macs = {name: count_encoder_macs(model, (size, size)) for name, model in models.items()}
    table = Table("", "ms", "images/s", "speed-up", "FLOP ratio", "of FLOP ratio", title=title)
    for name, each in times.items():
        speedup = times["original"].median / each.median
        ratio = macs["original"] / macs[name] if name in macs else None
        of_ratio = [] if ratio is None else [f"{ratio:.2f}", f"{speedup / ratio:.2f}"]
        table.add_row(name, f"{1e3 * each.median:.2f}", f"{batch / each.median:.1f}", f"{speedup:.2f}", *of_ratio)
    Console(width=120).print(table)


def show_operators(config: ViTConfig, side: int, batch: int, repeats: int) -> None:
    """Times the operators of plans on the tokens of the model."""
    random, count, clusters = np.random.default_rng(0), side * side, max(side * side // 2, 1)
    k = min(20, clusters)
    distances = jnp.asarray(random.random((batch, clusters, count)), jnp.float32)
    cosines = jnp.asarray(random.random((batch, count // 2)), jnp.float32)
    bounds = jnp.zeros((batch, 1, count)), jnp.full((batch, 1, count), 2.0)
    by_halving = jax.jit(lambda distances, low, high: kth_smallest(distances, k, low, high))
    by_sorting = jax.jit(lambda distances: -jax.lax.top_k(-distances.swapaxes(1, 2), k)[0][..., -1])
    ranks = jax.jit(lambda cosines: jnp.argsort(jnp.argsort(-cosines)))
    functions = {
        f"{k}-th neighbour, by halving": lambda: by_halving(distances, *bounds),
        f"{k}-th neighbour, top_k": lambda: by_sorting(distances),
        "two sorts of a matching": lambda: ranks(cosines),
        "top_k of half of its pairs": lambda: jax.lax.top_k(cosines, cosines.shape[1] // 2),
    }
    times = dict(zip(functions, measure(list(functions.values()), repeats=repeats), strict=True))
    table = Table("operator", "ms", title=f"{batch} x {count} tokens, {clusters} clusters")
    for name, each in times.items():
        table.add_row(name, f"{1e3 * each.median:.3f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
