"""Mask2Former whole and in parts, against transformers' eager PyTorch: speed, the hourglass, memory, counts.

    python benchmarks/mask2former.py [--json] [--processes N] [--repeats N] [--tiny]
                                     [--only speed|backbone|memory|counts]

Weights are random. "speed": Swin-T at 512 x 512, 100 queries, from a normalised image to class and mask logits; and
its parts, each from the features before it: the backbone, the pixel decoder (the deformable encoder), the mask
decoder. "backbone": that of Swin-L at 640 x 640, without a plan and under mask2former-swin-l-coco-panoptic, and the
speed-up over the ratio of the multiply-accumulates that are executed. In every one of the processes the runs of all
candidates alternate, and medians are compared; what is shown is the median of the processes, and the least and the
greatest of them.

"memory", on Linux only: the largest resident set, in GiB, of a fresh process that loads Swin-L with 200 queries
from its file and predicts a photograph of 800 x 1333 pixels: panoptic, from the photograph to its map.

"counts": 10^9 multiply-accumulates of Swin-L at 1152 x 1152 that are executed, by part, without a plan and under
every preset.

--tiny does it all with a model and images of no size, to see that it runs. Run it on an idle machine.
"""

import argparse
import json
import resource
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from common import alone, torchvision_operators

if TYPE_CHECKING:
    import torch

    from hourglass_jax.models.mask2former import Mask2Former

PRESET = "mask2former-swin-l-coco-panoptic"
OURS, THEIRS = "mask2former.safetensors", "transformers"
Case = dict[str, Any]
"""`SWINS`'s fields of a model. What weighs or times a process imports JAX or PyTorch only there."""
SWINS: dict[str, Case] = {
    "swin-t": {"width": 96, "depths": (2, 2, 6, 2), "window": 7, "queries": 100},
    "swin-l": {"width": 192, "depths": (2, 2, 18, 2), "window": 12, "queries": 200},
    "tiny": {"width": 32, "depths": (2, 2, 18, 2), "window": 12, "queries": 10},
}
CLASSES = 133


class Sizes(NamedTuple):
    """Models and (rows, columns) of images in pixels, of every section."""

    speed: tuple[str, tuple[int, int]] = ("swin-t", (512, 512))
    backbone: tuple[str, tuple[int, int]] = ("swin-l", (640, 640))
    memory: tuple[str, tuple[int, int]] = ("swin-l", (800, 1333))
    counts: tuple[str, tuple[int, int]] = ("swin-l", (1152, 1152))


TINY = Sizes(("tiny", (64, 64)), ("tiny", (192, 192)), ("tiny", (128, 200)), ("tiny", (192, 192)))


def build(name: str, size: int) -> "Mask2Former":
    """Ours, with shapes in place of parameters."""
    from flax import nnx

    from hourglass_jax.backbones.swin import SwinConfig
    from hourglass_jax.imaging.shortest_edge import ShortestEdge
    from hourglass_jax.models.mask2former import Mask2Former, Mask2FormerConfig

    fields = dict(SWINS[name])
    queries = fields.pop("queries")
    preprocessing = ShortestEdge(size=size, longest=2 * size)
    config = Mask2FormerConfig(
        SwinConfig(**fields), CLASSES, queries, dataset="coco_panoptic", preprocessing=preprocessing
    )
    # With random weights no query is sure of a class: all of them take part in the maps.
    config = replace(config, object_threshold=0.0, overlap_threshold=0.0)
    return nnx.eval_shape(lambda: Mask2Former(config, rngs=nnx.Rngs(0)))


def with_weights(model: "Mask2Former") -> "Mask2Former":
    """The same with random weights."""
    import jax
    from flax import nnx

    random = np.random.default_rng(0)
    nnx.update(model, jax.tree.map(lambda each: 0.02 * random.standard_normal(each.shape, "f"), nnx.state(model)))
    return model


def build_peer(name: str) -> "torch.nn.Module":
    """transformers' model with random weights."""
    torchvision_operators()
    import transformers

    fields = SWINS[name]
    backbone = transformers.SwinConfig(
        embed_dim=fields["width"],
        depths=fields["depths"],
        num_heads=[fields["width"] * 2**stage // 32 for stage in range(4)],
        window_size=fields["window"],
        image_size=384,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.Mask2FormerConfig(
        backbone_config=backbone, num_queries=fields["queries"], num_labels=CLASSES
    )
    return transformers.Mask2FormerForUniversalSegmentation(config).eval()


def summed_up(runs: list[dict[str, float]]) -> dict[str, list[float]]:
    """Median, least and greatest of every figure of several processes."""
    found = {name: [run[name] for run in runs] for name in runs[0]}
    return {name: [statistics.median(values), min(values), max(values)] for name, values in found.items()}


def speed(name: str, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Milliseconds of one process, and how many times as fast as the peer ours is."""
    import jax
    import torch

    from hourglass_jax.analysis.latency import measure

    ours, peer = with_weights(build(name, min(size))), build_peer(name)
    image = np.random.default_rng(1).standard_normal((1, *size, 3), dtype=np.float32)
    peer_image = torch.from_numpy(image.transpose(0, 3, 1, 2).copy())

    def maps(model: "Mask2Former", images: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(model.features(images).maps().values())

    def pixels(model: "Mask2Former", maps: tuple[jax.Array, ...]) -> tuple[jax.Array, list[jax.Array]]:
        return model.pixel_decoder(maps)

    def queries(model: "Mask2Former", features: jax.Array, levels: list[jax.Array]) -> tuple[jax.Array, jax.Array]:
        state = model.decoder.states(features, levels)[-1]
        return model.decoder.classifier(state), model.decoder.masks(state, features)

    def whole(model: "Mask2Former", images: jax.Array) -> Any:
        return model.decode(model.features(images), None)

    run_whole, run_maps, run_pixels, run_queries = map(jax.jit, (whole, maps, pixels, queries))
    found = run_maps(ours, image)
    features, levels = run_pixels(ours, found)
    module, level = peer.model.transformer_module, peer.model.pixel_level_module
    with torch.inference_mode():
        peer_maps = level.encoder(peer_image).feature_maps
        pixel = level.decoder(peer_maps)

    def queries_of_peer() -> object:
        answered = module(pixel.multi_scale_features, pixel.mask_features, output_hidden_states=True)
        return peer.class_predictor(answered.intermediate_hidden_states[-1].transpose(0, 1))

    def of_peer(function: Callable[[], object]) -> Callable[[], object]:
        def run() -> None:
            with torch.inference_mode():
                function()

        return run

    candidates = {
        "whole": (lambda: run_whole(ours, image), of_peer(lambda: peer(peer_image))),
        "backbone": (lambda: run_maps(ours, image), of_peer(lambda: level.encoder(peer_image))),
        "pixel decoder": (lambda: run_pixels(ours, found), of_peer(lambda: level.decoder(peer_maps))),
        "mask decoder": (lambda: run_queries(ours, features, levels), of_peer(queries_of_peer)),
    }
    results = {}
    for part, functions in candidates.items():
        mine, theirs = (1e3 * each.median for each in measure(functions, repeats=repeats))
        results |= {f"{part}: ours, ms": mine, f"{part}: transformers, ms": theirs, f"{part}: ratio": theirs / mine}
    return results


def backbone(name: str, size: tuple[int, int], repeats: int) -> dict[str, float]:
    """Milliseconds of one process, and what the plan saves."""
    import jax

    import hourglass_jax as hj
    from hourglass_jax.analysis.flops import count_encoder_macs
    from hourglass_jax.analysis.latency import measure

    original = with_weights(build(name, min(size))).backbone
    fast = hj.expedite(original, hj.preset(PRESET).plan)
    image = np.random.default_rng(1).standard_normal((1, *size, 3), dtype=np.float32)
    run = jax.jit(lambda swin, images: swin(images).stages)
    slow, quick = (
        1e3 * each.median
        for each in measure([partial(run, original, image), partial(run, fast, image)], repeats=repeats)
    )
    ratio = count_encoder_macs(original, size) / count_encoder_macs(fast, size)
    return {
        "original, ms": slow,
        "expedited, ms": quick,
        "speed-up": slow / quick,
        "FLOP ratio": ratio,
        "speed-up over FLOP ratio": slow / quick / ratio,
    }


def write_ours(name: str, size: tuple[int, int], folder: Path) -> None:
    import hourglass_jax as hj

    hj.save(with_weights(build(name, min(size))), folder / OURS)


def write_peer(name: str, folder: Path) -> None:
    build_peer(name).save_pretrained(folder / THEIRS)


def photograph(size: tuple[int, int]) -> np.ndarray:
    from PIL import Image

    from hourglass_jax.imaging.photographs import photographs

    return np.asarray(Image.open(photographs()["coffee"]).convert("RGB").resize(size[::-1]))


def peak_of_ours(folder: Path, size: tuple[int, int], plan: str | None) -> float:
    """GiB at most of this process."""
    import hourglass_jax as hj

    model = hj.load(folder / OURS)
    predictor = hj.Predictor(hj.expedite(model, plan and hj.preset(plan).plan), task="panoptic")
    assert predictor(photograph(size)).segments.shape == size
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def peak_of_peer(folder: Path, size: tuple[int, int]) -> float:
    """GiB at most of this process: transformers' model and its own postprocessing."""
    torchvision_operators()
    import torch
    import transformers

    model = transformers.Mask2FormerForUniversalSegmentation.from_pretrained(folder / THEIRS).eval()
    processor = transformers.Mask2FormerImageProcessor(
        size={"shortest_edge": min(size), "longest_edge": 2 * min(size)}, size_divisor=32
    )
    with torch.inference_mode():
        outputs = model(**processor(images=photograph(size), return_tensors="pt"))
        [result] = processor.post_process_panoptic_segmentation(outputs, threshold=0.0, target_sizes=[size])
    assert result["segmentation"].shape == size
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def memory(name: str, size: tuple[int, int]) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone(write_ours, name, size, folder)
        alone(write_peer, name, folder)
        found = {
            "ours, GiB": alone(peak_of_ours, folder, size, None),
            "ours expedited, GiB": alone(peak_of_ours, folder, size, PRESET),
            "transformers, GiB": alone(peak_of_peer, folder, size),
        }
    found["ours over transformers"] = found["ours, GiB"] / found["transformers, GiB"]
    return {figure: [value] for figure, value in found.items()}


def counts(name: str, size: tuple[int, int]) -> dict[str, list[float]]:
    """GFLOPs of the backbone, the pixel decoder and the mask decoder with the heads."""
    import jax

    import hourglass_jax as hj
    from hourglass_jax.analysis.flops import count_function_macs, count_macs

    model = build(name, min(size))
    presets = {None: None} | {each: hj.preset(each).plan for each in hj.PRESETS if each.startswith("mask2former")}
    rows, columns = (side + -side % model.multiple for side in size)
    maps = tuple(
        jax.ShapeDtypeStruct((1, rows // stride, columns // stride, model.backbone.channels[each]), np.float32)
        for each, stride in model.backbone.strides.items()
    )
    pixels = count_function_macs(lambda model, maps: model.pixel_decoder(maps), model, maps).total() / 1e9
    found = {}
    for preset, plan in presets.items():
        parts = count_macs(hj.expedite(model, plan), size)
        head, total = parts["head"] / 1e9, parts["total"] / 1e9
        found[preset or "no plan"] = [total - head, pixels, head - pixels, total]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--processes", type=int, default=5, help="fresh ones, for speed and backbone")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs in each")
    parser.add_argument("--tiny", action="store_true", help="a model and images of no size")
    parser.add_argument("--only", choices=Sizes._fields, help="one section instead of all")
    arguments = parser.parse_args()

    from rich.console import Console
    from rich.table import Table

    sizes = TINY if arguments.tiny else Sizes()

    def repeated(section: Callable[..., dict[str, float]], case: tuple[str, tuple[int, int]]) -> dict:
        return summed_up([alone(section, *case, arguments.repeats) for _ in range(arguments.processes)])

    sections = {
        "speed": (lambda: repeated(speed, sizes.speed), ("median", "least", "greatest")),
        "backbone": (lambda: repeated(backbone, sizes.backbone), ("median", "least", "greatest")),
        "memory": (lambda: memory(*sizes.memory), ("",)),
        "counts": (lambda: alone(counts, *sizes.counts), ("backbone", "pixel decoder", "mask decoder", "all")),
    }
    results = {}
    for name, (run, columns) in sections.items():
        if arguments.only not in (None, name):
            continue
        model, size = getattr(sizes, name)
        results[name] = {
            "model": model,
            "size": size,
            "figures": {figure: dict(zip(columns, values, strict=True)) for figure, values in run().items()},
        }
        if not arguments.json:
            table = Table(name, *columns, title=f"{model} at {size[0]} x {size[1]}")
            for figure, values in results[name]["figures"].items():
                table.add_row(figure, *(f"{value:.3f}" for value in values.values()))
            Console(width=None if sys.stdout.isatty() else 120).print(table)
    if arguments.json:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
