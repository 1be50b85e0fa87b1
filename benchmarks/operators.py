"""The choices inside the operators, measured: the side of a clustering tile, the search for the k-th neighbour,
and the forms of attention.

    python benchmarks/operators.py [--repeats N]

Milliseconds, medians of alternating runs; the starred one is what the library does on this backend.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from hourglass_jax.analysis.latency import measure
from hourglass_jax.ops import attention, clustering, tiling
from hourglass_jax.ops.kth_smallest import kth_smallest

PLANS = {
    "ViT-S/14 at 518": ((37, 37), (26, 26), 384, 5),
    "Segmenter, ADE20K": ((40, 40), (28, 28), 1024, 5),
    "Segmenter, Cityscapes": ((48, 48), (32, 32), 1024, 5),
    "Segmenter, PASCAL-Context": ((30, 30), (15, 15), 1024, 5),
    "DPT, KITTI": ((22, 76), (28, 28), 768, 5),
    "DPT, NYUv2": ((30, 40), (16, 16), 768, 7),
    "SWAG, ViT-H": ((37, 37), (25, 25), 1280, 7),
    "SWAG, ViT-L": ((32, 32), (22, 22), 1024, 9),
}
"""Name -> token grid, cluster grid, channels, window."""


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))


def tiles(repeats: int) -> Table:
    library = tiling.tile_side
    sides = {"library's": library, **{f"tiles of {n}": lambda cells, _, n=n: min(n, cells) for n in (2, 4, 8)}}
    sides["one tile (dense)"] = lambda cells, _: cells
    table = Table("clustering", *sides)
    for name, (token_grid, cluster_grid, channels, window) in PLANS.items():
        tokens = normal(1, token_grid[0] * token_grid[1], channels)

        def compiled(side, token_grid=token_grid, cluster_grid=cluster_grid, window=window, tokens=tokens):
            tiling.tile_side = side
            run = jax.jit(
                lambda z: clustering.cluster_tokens(
                    z, token_grid=token_grid, cluster_grid=cluster_grid, window=window
                )
            )
            run(tokens)
            tiling.tile_side = library
            return lambda: run(tokens)

        add(table, name, [compiled(side) for side in sides.values()], repeats)
    return table


def kth_neighbour(repeats: int) -> Table:
    def by_halving(distances: jax.Array, k: int) -> jax.Array:
        nearest, farthest = (extreme(distances, axis=1, keepdims=True) for extreme in (jnp.min, jnp.max))
        return kth_smallest(distances, k, nearest, farthest)

    table = Table("k-th of M for N tokens", "halving", "top_k", "sort")
    for tokens, clusters, k in ((1369, 676, 20), (1600, 784, 20), (1200, 256, 50)):
        distances = jnp.abs(normal(1, clusters, tokens))
        by_row = distances.swapaxes(1, 2)
        searches = [
            (jax.jit(lambda d, k=k: by_halving(d, k)), distances),
            (jax.jit(lambda d, k=k: jax.lax.top_k(-d, k)[0][..., -1]), by_row),
            (jax.jit(lambda d, k=k: jnp.sort(d, axis=-1)[..., k - 1]), by_row),
        ]
        runs = [lambda search=search, d=d: search(d) for search, d in searches]
        add(table, f"{k} of {clusters}, {tokens} tokens", runs, repeats)
    return table


def attention_forms(repeats: int) -> Table:
    table = Table("attention", "by head", "XLA's", "einsum over all heads")
    for tokens, heads in ((677, 6), (1370, 6), (785, 16), (1601, 16)):
        q, k, v = (normal(1, tokens, heads, 64) for _ in range(3))

        def dense(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            weights = jax.nn.softmax(jnp.einsum("bnhd,bmhd->bhnm", q / 8, k), axis=-1)
            return jnp.einsum("bhnm,bmhd->bnhd", weights, v)

        first = [x.transpose(0, 2, 3, 1) for x in (q, k, v)]
        forms = [
            (jax.jit(attention.attention), first),
            (jax.jit(jax.nn.dot_product_attention), (q, k, v)),
            (jax.jit(dense), (q, k, v)),
        ]
        runs = [lambda form=form, inputs=inputs: form(*inputs) for form, inputs in forms]
        add(table, f"{tokens} tokens, {heads} heads", runs, repeats)
    return table


def window_attention_forms(repeats: int) -> Table:
    table = Table("attention in windows", "library's", "one by one", "together")
    library = attention.LARGE_WINDOW
    for windows, side, heads in ((64, 32, 6), (4, 32, 24), (4, 23, 24), (576, 12, 6), (36, 12, 24)):
        q, k, v = (normal(windows, side**2, heads, 32) for _ in range(3))
        bias = normal(heads, side**2, side**2)

        def compiled(large: int, q: jax.Array = q, k: jax.Array = k, v: jax.Array = v, bias: jax.Array = bias):
            attention.LARGE_WINDOW = large
            run = jax.jit(lambda q, k, v, bias: attention.window_attention(q, k, v, bias=bias))
            run(q, k, v, bias)
            attention.LARGE_WINDOW = library
            return lambda: run(q, k, v, bias)

        runs = [compiled(large) for large in (library, 1, side**2 + 1)]
        add(table, f"{windows} windows of {side} x {side}, {heads} heads", runs, repeats)
    return table


def add(table: Table, name: str, runs: list, repeats: int) -> None:
    times = [1e3 * each.median for each in measure(runs, repeats=repeats)]
    table.add_row(name, *(f"{time:.1f}{' *' if i == 0 else ''}" for i, time in enumerate(times)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    console = Console()
    for table in (tiles, kth_neighbour, attention_forms, window_attention_forms):
        console.print(table(repeats))


if __name__ == "__main__":
    main()
