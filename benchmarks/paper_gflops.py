"""The published GFLOPs of arXiv 2210.01035 and of its repositories, by the rules by which they were counted.

    python benchmarks/paper_gflops.py [--json] [--executed]

No weights are needed. The repositories count with four different programs, and none counts what this library
executes: products are left out, and elementwise work and biases are in. So the rules are here and not in
`analysis.flops`; `--executed` adds its count to the rows of Segmenter, DPT, SWAG and Swin. docs/paper.md names
the rows that are not reproduced.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import NamedTuple

from flax import nnx
from rich.console import Console
from rich.table import Column, Table
from tqdm import tqdm

from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.dpt import DPTDepth, DPTDepthConfig
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig
from hourglass_jax.models.swag import Swag, SwagConfig
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.hourglass import Hourglass


def tokens_by_block(plan: Hourglass | None, depth: int, tokens: int) -> list[int]:
    """How many tokens of the image enter block 0 .. depth - 1 and, last, the final norm."""
    if plan is None:
        return [tokens] * (depth + 1)
    return [tokens] * plan.alpha + [math.prod(plan.clusters)] * (depth + 1 - plan.alpha)


def segmenter_macs(config: SegmenterConfig, side: int, plan: Hourglass | None) -> int:
    """Hooks on modules (Expedit-Segmenter, tools/flops_counter.py).

    What is no module is not counted: the attention products of the decoder, its three projections without a bias
    and the resizing. A LayerNorm and a GELU count twice a value, the softmax twice a weight.
    """
    vit, classes = config.backbone, config.classes
    width = vit.width
    tokens = (side // vit.patch_size) ** 2
    *entering, last = tokens_by_block(plan, vit.depth, tokens)

    def attention(count: int) -> int:
        scale, softmax = count * width, 2 * vit.heads * count**2
        return 2 * count**2 * width + scale + softmax

    def block(count: int) -> int:
        norms, gelu = 2 * 2 * count * width, 2 * count * 4 * width
        return 12 * count * width**2 + norms + gelu

    embedding = tokens * width * (3 * vit.patch_size**2 + 1)
    encoder = sum(block(count + 1) + attention(count + 1) for count in entering) + 2 * (last + 1) * width
    decoder = last * width**2 + config.decoder_depth * block(last + classes)
    decoder_norms = 2 * (last + classes) * width + 2 * last * classes
    macs = embedding + encoder + decoder + decoder_norms
    return macs if plan is None else macs + local_layers_macs(plan, tokens, width)


def local_layers_macs(plan: Hourglass, tokens: int, width: int) -> int:
    """Clustering and reconstruction as Segmenter's hooks count them: only clusters inside the window, only k."""
    clusters = math.prod(plan.clusters)
    candidates = min(plan.window**2, clusters)
    distances, softmax = candidates * tokens * (2 * width + 1), 2 * candidates * tokens
    means = candidates * tokens * width + clusters * width
    clustering = tokens * width + 2 * (tokens + clusters) + plan.iterations * (distances + softmax + means)

    neighbors = min(plan.neighbors, clusters)
    distances = (tokens + clusters) * width + tokens * clusters * (width + 1)
    return clustering + distances + 3 * tokens * neighbors + tokens * neighbors * width


def swag_macs(vit: ViTConfig, side: int, plan: Hourglass | None) -> int:
    """Operations of a traced graph (Expedit-SWAG, tools/flop_count.py).

    Linear layers count with their bias, a LayerNorm 4 times a value, the softmax 5 times a weight; GELU, dropout,
    additions and multiplications count once. The distances are dense, and what only the unused hard assignment
    needs is not in the graph. Nothing is reconstructed: only the class token is classified.
    """
    width = vit.width
    tokens = (side // vit.patch_size) ** 2
    *entering, last = tokens_by_block(plan, vit.depth, tokens)

    def block(count: int) -> int:
        values = count * width
        linear = values * (3 * (width + 1) + (width + 1) + 4 * (width + 1)) + values * (4 * width + 1)
        attention = values + 2 * count * values + 5 * vit.heads * count**2
        norms, gelu, dropouts, residuals = 2 * 4 * values, 4 * values, (1 + 4 + 1) * values, 2 * values
        return linear + attention + norms + gelu + dropouts + residuals

    embedding = tokens * width * 3 * vit.patch_size**2 + (tokens + 1) * width
    head = 4 * (last + 1) * width + (width + 1) * 1000
    macs = embedding + sum(block(count + 1) for count in entering) + head
    if plan is None:
        return macs + (tokens + 1) * width
    dropouts = sum((count + 1) * width for count in entering)
    clusters = math.prod(plan.clusters)
    pairs, squares = tokens * clusters, (tokens + clusters) * width
    distances, softmax = pairs * width + squares + 5 * pairs, 5 * pairs
    means = pairs * width + clusters * width
    window = 3 * pairs + tokens + clusters
    return macs + dropouts + window + plan.iterations * (distances + softmax + means)


DPT_WIDTH, DPT_HEADS, DPT_DEPTH = 768, 12, 12
DPT_FUSION = 256
RESNET_STAGES = ((3, 256), (4, 512), (9, 1024))


def dpt_flops(size: Grid, plan: Hourglass | None) -> int:
    """Operations of a traced graph, twice (Expedit-DPT, torchprofile), with (rows, columns) pixels.

    Norms, the pooling and multiplications count once a value, bilinear resizing 4 times. Products that are written
    as einsum are not counted, so that the distances cost their squares only. The hard reconstruction costs the
    distances of one more iteration.
    """
    stem, grid = resnet_macs(size)
    tokens, width = math.prod(grid), DPT_WIDTH
    *entering, last = tokens_by_block(plan, DPT_DEPTH, tokens)

    def block(count: int) -> int:
        scale, norms = DPT_HEADS * count**2, 2 * count * width
        return 12 * count * width**2 + 2 * count**2 * width + scale + norms

    embedding = convolution(width, RESNET_STAGES[-1][1], 1, grid) + 4 * tokens * width
    encoder = sum(block(count + 1) for count in entering) + (last + 1) * width
    macs = stem + embedding + encoder + dpt_decoder_macs(grid)
    if plan is not None:
        clusters = math.prod(plan.clusters)
        pairs = tokens * clusters
        distances = (tokens + clusters) * width + pairs
        pooling, window = clusters * width, pairs
        macs += pooling + window + plan.iterations * (distances + pairs + pairs * width) + distances
    return 2 * macs


def resnet_macs(size: Grid) -> tuple[int, Grid]:
    """The hybrid's stem, a ResNet of bottlenecks with GroupNorm, and the grid that it leaves."""
    grid = halved(size)
    macs = convolution(64, 3, 7, grid) + 64 * math.prod(grid)
    grid, channels = halved(grid), 64
    for stage, (depth, width) in enumerate(RESNET_STAGES):
        for index in range(depth):
            narrow = width // 4
            before = grid
            grid = halved(grid) if stage > 0 and index == 0 else grid
            macs += convolution(narrow, channels, 1, before) + narrow * math.prod(before)
            macs += convolution(narrow, narrow, 3, grid) + narrow * math.prod(grid)
            macs += convolution(width, narrow, 1, grid) + width * math.prod(grid)
            if index == 0:
                macs += convolution(width, channels, 1, grid) + width * math.prod(grid)
            channels = width
    return macs, grid


def dpt_decoder_macs(grid: Grid) -> int:
    """Readout, reassembly, fusion and head, from the ViT's grid of tokens on."""
    width, fusion = DPT_WIDTH, DPT_FUSION
    coarse, fine, finest = halved(grid), scaled(grid, 2), scaled(grid, 4)
    readouts = 2 * (math.prod(grid) * 2 * width**2 + convolution(width, width, 1, grid))
    macs = readouts + convolution(width, width, 3, coarse)
    for channels, level in ((width, coarse), (width, grid), (512, fine), (256, finest)):
        macs += convolution(fusion, channels, 3, level)
    level = coarse
    for residual_units in (1, 2, 2, 2):
        macs += residual_units * 2 * convolution(fusion, fusion, 3, level)
        level = scaled(level, 2)
        macs += 4 * fusion * math.prod(level) + convolution(fusion, fusion, 1, level)
    macs += convolution(fusion // 2, fusion, 3, level)
    image = scaled(level, 2)
    resized, inverted = 4 * (fusion // 2) * math.prod(image), 2 * math.prod(image)
    return macs + resized + convolution(32, fusion // 2, 3, image) + convolution(1, 32, 1, image) + inverted


def convolution(outputs: int, inputs: int, kernel: int, grid: Grid) -> int:
    """Products of a convolution that leaves `grid`."""
    return outputs * inputs * kernel**2 * math.prod(grid)


def halved(grid: Grid) -> Grid:
    return -(-grid[0] // 2), -(-grid[1] // 2)


def scaled(grid: Grid, factor: int) -> Grid:
    return grid[0] * factor, grid[1] * factor


SWIN_WIDTH, SWIN_DEPTHS = 192, (2, 2, 18, 2)


def swin_macs(side: int, window: int, plan: Hourglass | None) -> int:
    """The backbone's traced operations (Expedit-Mask2Former, tools/get_fps_flops.py: fvcore).

    Products, a LayerNorm 5 times a value, the pooling once; attention runs on windows that are padded to full ones.
    Alpha counts blocks over all stages, and the grid is restored at the end of the stage. Clustering is two dense
    products per iteration in every window, and the reconstruction two more.
    """
    grid, width = side // 4, SWIN_WIDTH
    macs = grid**2 * width * (3 * 4**2 + 5)
    first = 0
    for stage, depth in enumerate(SWIN_DEPTHS):
        windows = -(-grid // window)
        block_grid, block_window = grid, window
        for index in range(first, first + depth):
            if plan is not None and index == plan.alpha:
                tokens, clusters = window**2, math.prod(plan.clusters)
                products = 2 * (plan.iterations + 1) * tokens * clusters * width
                macs += windows**2 * (tokens * width + products)
                block_window = plan.clusters[0]
                block_grid = windows * block_window
            count, padded = block_grid**2, (-(-block_grid // block_window) * block_window) ** 2
            attention = 4 * padded * width**2 + 2 * padded * block_window**2 * width
            macs += attention + 8 * count * width**2 + 2 * 5 * count * width
        macs += 5 * grid**2 * width
        first += depth
        if stage < len(SWIN_DEPTHS) - 1:
            grid = -(-grid // 2)
            macs += grid**2 * (5 * 4 * width + 4 * width * 2 * width)
            width *= 2
    return macs


class Row(NamedTuple):
    """A published figure.

    Attributes:
        source: where it is published.
        plan: None for the original model.
        gflops: None where only a ratio is published.
        remark: on the plan, where what is published does not say it.
    """

    source: str
    plan: Hourglass | None
    gflops: float | None
    remark: str = ""


@dataclass(frozen=True)
class System:
    """A model at one input size.

    Attributes:
        name: what the rows are called.
        rows: its published figures.
        count: plan -> FLOPs by the rules of its repository.
        executed: plan -> multiply-accumulates of this library, where it has the model.
    """

    name: str
    rows: tuple[Row, ...]
    count: Callable[[Hourglass | None], int]
    executed: Callable[[Hourglass | None], int] | None = None


def segmenter(name: str, rows: tuple[Row, ...], vit: ViTConfig, side: int, classes: int, blocks: int = 2) -> System:
    grid = (side // vit.patch_size,) * 2
    config = SegmenterConfig(replace(vit, position_grid=grid), classes=classes, decoder_depth=blocks)
    name = f"Segmenter {name}, {side} px"
    return System(name, rows, partial(segmenter_macs, config, side), partial(executed_macs, config, side))


def swag(name: str, rows: tuple[Row, ...], vit: ViTConfig, side: int, window: int) -> System:
    """`window` is that of the paper's plans; the published count of SWAG does not depend on it."""
    grid = (side // vit.patch_size,) * 2
    config = SwagConfig(replace(vit, position_grid=grid))
    executed = partial(executed_swag_macs, config, side, window)
    return System(f"SWAG {name}, {side} px", rows, partial(swag_macs, vit, side), executed)


def dpt(dataset: str, size: Grid, rows: tuple[Row, ...]) -> System:
    name = f"DPT-Hybrid, {dataset}, {size[0]} x {size[1]} px"
    return System(name, rows, partial(dpt_flops, size), partial(executed_dpt_flops, size))


def executed_dpt_flops(size: Grid, plan: Hourglass | None) -> int:
    """What this library executes, twice as the published figures are."""
    if plan is not None:
        plan = replace(plan, temperature=5.0)
    return 2 * count_macs(expedite(abstract_dpt(), plan), size)["total"]


@cache
def abstract_dpt() -> DPTDepth:
    vit = ViTConfig(position_grid=(24, 24), position_resize="bilinear", stem=ResNetConfig())
    config = DPTDepthConfig(vit, hooks=(8, 11), widths=(256, 512, 768, 768))
    return nnx.eval_shape(lambda: DPTDepth(config, rngs=nnx.Rngs(0)))


def executed_swag_macs(config: SwagConfig, side: int, window: int, plan: Hourglass | None) -> int:
    """What this library executes: nothing is reconstructed."""
    if plan is not None:
        plan = replace(plan, temperature=1.0, window=window)
    return count_macs(expedite(abstract_swag(config), plan), (side, side))["total"]


@cache
def abstract_swag(config: SwagConfig) -> Swag:
    return nnx.eval_shape(lambda: Swag(config, rngs=nnx.Rngs(0)))


def executed_macs(config: SegmenterConfig, side: int, plan: Hourglass | None) -> int:
    """What this library executes under the official order: the decoder runs on the clusters."""
    if plan is not None:
        plan = replace(plan, temperature=50.0, reconstruct="logits")
    return count_macs(expedite(abstract_segmenter(config), plan), (side, side))["total"]


@cache
def abstract_segmenter(config: SegmenterConfig) -> Segmenter:
    return nnx.eval_shape(lambda: Segmenter(config, rngs=nnx.Rngs(0)))


def swin(side: int, window: int, version: int = 1) -> tuple[Callable[[Hourglass | None], int], ...]:
    """The two counts of Swin-L: by the repository's rules, and what this library executes."""
    config = SwinConfig.sized("large", window=window, version=version)
    return partial(swin_macs, side, window), partial(executed_swin_macs, config, side)


def executed_swin_macs(config: SwinConfig, side: int, plan: Hourglass | None) -> int:
    """What this library executes of a Swin."""
    return count_macs(expedite(abstract_swin(config), plan), (side, side))["total"]


@cache
def abstract_swin(config: SwinConfig) -> Encoder:
    return nnx.eval_shape(lambda: Encoder(EncoderConfig(config), rngs=nnx.Rngs(0)))


def hourglass(alpha: int, clusters: int, **fields: int) -> Hourglass:
    return Hourglass(alpha, (clusters, clusters), **fields)


VIT_B = ViTConfig(width=768, depth=12, heads=12)
VIT_L = ViTConfig(width=1024, depth=24, heads=16)
VIT_H = ViTConfig(patch_size=14, width=1280, depth=32, heads=16)

SYSTEMS = (
    segmenter(
        "ViT-L/16, ADE20K",
        (
            Row("Expedit-Segmenter, README", None, 658.98),
            Row("paper", hourglass(10, 8), 274.0),
            Row("paper", hourglass(10, 12), 290.9),
            Row("paper", hourglass(10, 16), 315.1),
            Row("paper", hourglass(10, 20), 347.2),
            Row("paper", hourglass(10, 24), 388.2),
            Row("paper", hourglass(10, 28), 438.9),
            Row("paper, Table 2", hourglass(10, 28, window=3), 438.6),
            Row("paper, Table 2", hourglass(10, 28, window=7), 439.6),
            Row("paper, Table 2", hourglass(10, 28, iterations=10), 439.6),
            Row("paper, Table 2", hourglass(10, 28, iterations=15), 440.2),
            Row("paper, Table 2", hourglass(10, 28, iterations=20), 440.8),
            Row("paper, Table 2", hourglass(10, 28, neighbors=10), 438.9),
            Row("paper, Table 2", hourglass(10, 28, neighbors=50), 439.0),
            Row("Expedit-Segmenter, README", hourglass(16, 28), 529.81),
            Row("Expedit-Segmenter, README", hourglass(10, 28), 443.84),
            Row("Expedit-Segmenter, README", hourglass(8, 20), 309.4),
        ),
        VIT_L,
        side=640,
        classes=150,
    ),
    segmenter(
        "ViT-L/16, Cityscapes",
        (
            Row("Expedit-Segmenter, README", None, 995.6),
            Row("Expedit-Segmenter, README", hourglass(18, 32), 840.9),
            Row("Expedit-Segmenter, README", hourglass(12, 32), 691.0),
            Row("Expedit-Segmenter, README", hourglass(10, 24), 529.64),
        ),
        VIT_L,
        side=768,
        classes=19,
        blocks=1,
    ),
    segmenter(
        "ViT-L/16, PASCAL-Context",
        (
            Row("Expedit-Segmenter, README", None, 338.7),
            Row("Expedit-Segmenter, README", hourglass(14, 20), 251.2),
            Row("Expedit-Segmenter, README", hourglass(12, 15), 201.3),
            Row("Expedit-Segmenter, README", hourglass(8, 15), 161.0),
        ),
        VIT_L,
        side=480,
        classes=60,
    ),
    segmenter(
        "ViT-B/16, ADE20K",
        (
            Row("paper", None, 124.7),
            Row("paper", hourglass(7, 22), 91.9, "not stated"),
        ),
        VIT_B,
        side=512,
        classes=150,
    ),
    swag(
        "ViT-L/16",
        (
            Row("Expedit-SWAG, README", None, 364.8),
            Row("Expedit-SWAG, README", hourglass(12, 23), 275.8),
            Row("Expedit-SWAG, README", hourglass(6, 23), 228.5),
            Row("Expedit-SWAG, README", hourglass(8, 16), 179.0),
            Row("paper, Tables 8 and 9", hourglass(8, 22), None),
        ),
        VIT_L,
        side=512,
        window=9,
    ),
    swag(
        "ViT-H/14",
        (
            Row("Expedit-SWAG, README", None, 1023.2),
            Row("Expedit-SWAG, README", hourglass(10, 26), 652.4),
            Row("Expedit-SWAG, README", hourglass(4, 25), 514.1),
            Row("Expedit-SWAG, README", hourglass(8, 18), 422.7),
            Row("paper, Tables 8 and 9", hourglass(8, 25), None),
        ),
        VIT_H,
        side=518,
        window=7,
    ),
    dpt(
        "KITTI",
        (352, 1216),
        (
            Row("paper, Table 7", None, 810),
            Row("paper, Table 7", hourglass(2, 28), 627),
            Row("Expedit-DPT, README", None, 810.0),
            Row("Expedit-DPT, README", hourglass(7, 28), 723.4, "called 6"),
            Row("Expedit-DPT, README", hourglass(5, 20), 631.8, "called 4"),
            Row("Expedit-DPT, README", hourglass(5, 16), 613.6, "called 4"),
        ),
    ),
    dpt(
        "NYUv2",
        (480, 640),
        (
            Row("paper, Table 7", None, 560),
            Row("paper, Table 7", hourglass(3, 16), 404),
            Row("Expedit-DPT, README", None, 560.2),
            Row("Expedit-DPT, README", hourglass(7, 24), 504.2, "called 6"),
            Row("Expedit-DPT, README", hourglass(5, 16), 439.2, "called 4"),
            Row("Expedit-DPT, README", hourglass(3, 14), 395.0, "called 2"),
        ),
    ),
    System(
        "Mask2Former Swin-L, 1152 px",
        (
            Row("Expedit-Mask2Former, README", None, 937),
            Row("Expedit-Mask2Former, README", hourglass(7, 8), 620, "called 8"),
            Row("Expedit-Mask2Former, README", hourglass(9, 8), 663, "called 10"),
            Row("Expedit-Mask2Former, README", hourglass(11, 8), 705, "called 12"),
            Row("Expedit-Mask2Former, README", hourglass(14, 8, iterations=4), 769),
        ),
        *swin(1152, 12),
    ),
    System(
        "DINO, MaskDINO Swin-L, 1152 px",
        (
            Row("Expedit-DINO, README", None, 937),
            Row("Expedit-DINO, README", hourglass(16, 9, iterations=3), 838),
            Row("Expedit-DINO, README", hourglass(14, 8, iterations=3), 768),
            Row("Expedit-DINO, README", hourglass(12, 9, iterations=3), 771),
            Row("Expedit-DINO, README", hourglass(10, 9, iterations=3), 737),
            Row("Expedit-DINO, README", hourglass(10, 8, iterations=3), 683),
            Row("Expedit-DINO, README", hourglass(8, 8, iterations=3), 640),
        ),
        *swin(1152, 12),
    ),
    System(
        "OneFormer Swin-L, 1280 px",
        (
            Row("Expedit-OneFormer, README", None, 1206),
            Row("Expedit-OneFormer, README", hourglass(8, 10, iterations=4), 1029),
            Row("Expedit-OneFormer, README", hourglass(10, 8, iterations=4), 898),
            Row("Expedit-OneFormer, README", hourglass(8, 8, iterations=4), 846),
        ),
        *swin(1280, 12),
    ),
    System(
        "HTC++ SwinV2-L, 1024 px",
        (
            Row("paper, a ratio only", None, None),
            Row("paper, a ratio only", hourglass(12, 23), None),
        ),
        *swin(1024, 32, version=2),
    ),
)


def reproduce(executed: bool = False) -> list[dict[str, object]]:
    """Every row by the name of what it holds; GFLOPs are what the source calls so.

    Args:
        executed: whether to add what this library executes, where it has the model.
    """
    pairs = [(system, row) for system in SYSTEMS for row in system.rows]
    results = []
    for system, row in tqdm(pairs, desc="rows", disable=not (executed and sys.stderr.isatty())):
        result = {
            "model": system.name,
            "source": row.source,
            "plan": row.plan and describe(row.plan, row.remark),
            "clusters": row.plan and row.plan.clusters,
            "published": row.gflops,
            "ours": system.count(row.plan) / 1e9,
        }
        if executed:
            result["executed"] = system.executed and system.executed(row.plan) / 1e9
        results.append(result)
    return results


def describe(plan: Hourglass, remark: str = "") -> str:
    """A plan in words; window, kappa and k only where they are not the usual ones."""
    words = [f"alpha {plan.alpha}" + (f" ({remark})" if remark else "")]
    for field, word in (("window", "window"), ("iterations", "kappa"), ("neighbors", "k")):
        value = getattr(plan, field)
        if value != getattr(Hourglass, field):
            words.append(f"{word} {value}")
    return ", ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--executed", action="store_true", help="add what this library executes, where it can")
    arguments = parser.parse_args()
    results = reproduce(arguments.executed)
    if arguments.json:
        print(json.dumps(results, indent=2))
        return
    figures = ["published", "ours", "deviation", *(["executed"] if arguments.executed else [])]
    table = Table("model", "source", "plan", "clusters", *(Column(each, justify="right") for each in figures))
    for result in results:
        published, ours, executed = result["published"], result["ours"], result.get("executed")
        figures = [
            "" if published is None else str(published),
            f"{ours:.2f}",
            "" if published is None else f"{100 * (ours / published - 1):+.3f}%",
            *([] if executed is None else [f"{executed:.2f}"]),
        ]
        clusters = "" if result["clusters"] is None else " x ".join(map(str, result["clusters"]))
        table.add_row(result["model"], result["source"], result["plan"], clusters, *figures)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


if __name__ == "__main__":
    main()
