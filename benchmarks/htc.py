"""Speed of Cascade Mask R-CNN with Swin-T by part, beside its composition in PyTorch, in one run.

    python benchmarks/htc.py [--json] [--repeats N] [--size ROWSxCOLUMNS] [--no-peer]

Random weights and noise, one image of 800 x 1088 pixels, 1,000 regions, 80 classes, up to 100 masks. The peer is
the composition of the parity tests (lists and loops over them) with timm's backbone, eager. The runs of all
candidates alternate, and medians are compared. Run it on an idle machine.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

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
from checkpoints_convert.convert import convert
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.models.htc import HTC, STRIDES
from hourglass_jax.ops.nms import suppress
from hourglass_jax.ops.roi_align import roi_align, roi_levels
from tests.convert.test_htc import heads
from tests.parity import htcs
from tests.parity.swins import classification_names

BINS = 7
NAME = "swin_tiny_patch4_window7_224"
WIDTH = 96


def checkpoint(size: tuple[int, int], folder: Path) -> tuple[torch.nn.Module, htcs.Tensors, Path]:
    """timm's backbone, the tensors of a detector with its weights, and a file of them with mmdetection's names."""
    timm = import_timm()
    backbone = timm.create_model(NAME, pretrained=False, img_size=size, num_classes=0).eval()
    tensors = htcs.sized(heads(80, width=256, hidden=1024, narrow=WIDTH))
    for name, tensor in classification_names(backbone).items():
        if not name.startswith(("norm.", "head.")):
            tensors[f"backbone.{name}"] = tensor.detach().as_subclass(torch.Tensor)
    for number in range(4):
        tensors[f"backbone.norm{number}.weight"] = torch.ones(WIDTH * 2**number)
        tensors[f"backbone.norm{number}.bias"] = torch.zeros(WIDTH * 2**number)
    torch.save({"state_dict": tensors}, folder / "cascade.pth")
    return backbone, tensors, folder / "cascade.pth"


def our_parts(model: HTC, images: jax.Array) -> dict[str, Callable[[], object]]:
    size = jnp.array(images.shape[1:3], jnp.float32)
    features = jax.jit(lambda model, images: model.features(images))
    maps = features(model, images)
    pyramid = jax.jit(lambda model, maps: model.pyramid(maps))
    levels = pyramid(model, maps.maps)
    propose = jax.jit(lambda model, levels, sizes: model.propose(levels, sizes))
    boxes = propose(model, levels, maps.sizes).boxes[0]
    single = tuple(each[0] for each in levels[:-1])
    read = jax.jit(
        lambda maps, boxes: roi_align(maps, boxes, roi_levels(boxes, len(maps)), STRIDES[: len(maps)], BINS)
    )
    five = jnp.stack([boxes + shift for shift in range(5)])
    nms = jax.jit(lambda boxes: jax.vmap(suppress, (0, 0, None))(boxes, jnp.ones(boxes.shape[:2], bool), 0.7))
    refine = jax.jit(lambda model, maps, boxes, size: model.refine(maps, None, boxes, size))
    every = jnp.ones(100, bool)
    masks = jax.jit(lambda model, maps, boxes: model.masks(maps, None, boxes, jnp.zeros(100, int), every))
    whole = jax.jit(lambda model, images: model(images))
    return {
        "backbone": lambda: features(model, images),
        "pyramid": lambda: pyramid(model, maps.maps),
        "proposals": lambda: propose(model, levels, maps.sizes),
        "three box heads": lambda: refine(model, single, boxes, size),
        "of these: RoIAlign of 1,000 regions, once": lambda: read(single, boxes),
        "NMS of 5 x 1,000 boxes": lambda: nms(five),
        "100 masks": lambda: masks(model, single, boxes[:100]),
        "whole": lambda: whole(model, images),
    }


def peer_parts(
    backbone: torch.nn.Module, tensors: htcs.Tensors, model: HTC, images: jax.Array
) -> dict[str, Callable[[], object]]:
    size = (images.shape[1], images.shape[2])
    detector = htcs.Detector(tensors)
    peer_images = torch.from_numpy(np.array(images).transpose(0, 3, 1, 2).copy())
    found = jax.jit(lambda model, images: model.features(images))(model, images)
    maps = [torch.from_numpy(np.array(each).transpose(0, 3, 1, 2).copy()) for each in found.maps]

    def run_backbone() -> object:
        return backbone.forward_intermediates(peer_images, intermediates_only=True)

    with torch.inference_mode():
        levels = detector.pyramid(maps)
        boxes = detector.propose(levels, size)
    labels = torch.zeros(100, dtype=torch.long)

    def whole() -> object:
        run_backbone()
        return detector(maps, size)

    parts = {
        "backbone": run_backbone,
        "pyramid": lambda: detector.pyramid(maps),
        "proposals": lambda: detector.propose(levels, size),
        "three box heads": lambda: [
            detector.box_head(stage, htcs.roi_features(levels, boxes, BINS)) for stage in range(3)
        ],
        "of these: RoIAlign of 1,000 regions, once": lambda: htcs.roi_features(levels, boxes, BINS),
        "NMS of 5 x 1,000 boxes": lambda: [
            htcs.nms(boxes, torch.arange(len(boxes)).flip(0).float(), 0.7) for _ in range(5)
        ],
        "100 masks": lambda: detector.masks(levels, None, boxes[:100], labels),
        "whole": whole,
    }

    def without_gradients(run: Callable[[], object]) -> Callable[[], object]:
        def call() -> object:
            with torch.inference_mode():
                run()
            return np.zeros(())

        return call

    return {name: without_gradients(run) for name, run in parts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--size", default="800x1088")
    parser.add_argument("--no-peer", action="store_true", help="leave PyTorch out")
    arguments = parser.parse_args()
    rows, columns = map(int, arguments.size.split("x"))
    images = jnp.asarray(np.random.default_rng(0).standard_normal((1, rows, columns, 3), dtype=np.float32))
    with tempfile.TemporaryDirectory() as folder:
        backbone, tensors, path = checkpoint((rows, columns), Path(folder))
        model = hj.load(convert(path).target)
    assert isinstance(model, HTC)
    fast = hj.expedite(model, hj.preset("cascade-swin-t-coco").plan)
    run = nnx.jit(lambda model, images: model(images))
    candidates = {("ours", name): each for name, each in our_parts(model, images).items()}
    candidates["ours", "backbone, expedited"] = our_parts(fast, images)["backbone"]
    candidates["ours", "whole, expedited"] = lambda: run(fast, images)
    if not arguments.no_peer:
        candidates |= {
            ("PyTorch", name): each for name, each in peer_parts(backbone, tensors, model, images).items()
        }
    with tqdm(total=len(candidates) * (arguments.repeats + 1), disable=not sys.stderr.isatty()) as bar:
        times = measure(list(candidates.values()), repeats=arguments.repeats, on_call=bar.update)
    seconds = {key: each.median for key, each in zip(candidates, times, strict=True)}
    gflops = {name: macs / 1e9 for name, macs in count_macs(model, (rows, columns)).items()}
    if arguments.json:
        named = {f"{whose}: {part}": each for (whose, part), each in seconds.items()}
        print(json.dumps({"seconds": named, "gflops": gflops}, indent=2))
        return
    table = Table("part", "ours, ms", "PyTorch, ms", title=f"{arguments.size}, {jax.devices()[0]}")
    for whose, part in seconds:
        if whose == "ours":
            peer = seconds.get(("PyTorch", part))
            table.add_row(part, f"{1e3 * seconds[whose, part]:.0f}", "" if peer is None else f"{1e3 * peer:.0f}")
    Console().print(table)
    Console().print("GFLOPs: " + ", ".join(f"{name} {each:.1f}" for name, each in gflops.items()))


if __name__ == "__main__":
    main()
