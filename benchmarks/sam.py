"""SAM's encoder and a click, against transformers' eager PyTorch, in one run; and the peak memory of both.

    python benchmarks/sam.py [--json] [--repeats N] [--model base|large|huge] [--alpha N] [--clusters K]

Weights are random, the image is a photograph at 1024 x 1024 pixels. The runs of all candidates alternate, and
medians are compared; "ours_over_transformers" is how many times as fast ours is. "speedup_of_flops_ratio" is the
plan's speed-up over the ratio of the encoder's multiply-accumulates. Peak memory is that of a process in which one
candidate encodes one image, three times. Run it on an idle machine.
"""

import argparse
import json
import resource
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from common import alone, torchvision_operators
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.imaging.images import read_image
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.models.sam import GLOBAL_BLOCKS, Sam, SamConfig, sam_backbone
from hourglass_jax.prompt_predictor import answer, encode

SIZE = (1024, 1024)
Run = Callable[[], object]


def our_model(name: str) -> Sam:
    return Sam(SamConfig.sized(name), rngs=nnx.Rngs(0))


def transformers_model(name: str) -> Any:
    """SAM of transformers, eager, with random weights."""
    torchvision_operators()
    import transformers

    backbone = sam_backbone(name)
    vision = transformers.SamVisionConfig(
        hidden_size=backbone.width,
        num_hidden_layers=backbone.depth,
        num_attention_heads=backbone.heads,
        global_attn_indexes=list(GLOBAL_BLOCKS[name]),
    )
    decoder = transformers.SamMaskDecoderConfig(layer_norm_eps=1e-5)
    config = transformers.SamConfig(vision_config=vision.to_dict(), mask_decoder_config=decoder.to_dict())
    return transformers.SamModel._from_config(config, attn_implementation="eager").eval()


def transformers_encoder(model: Any, image: np.ndarray) -> Run:
    import torch

    pixels = torch.from_numpy(image).permute(2, 0, 1)[None].contiguous()

    @torch.inference_mode()
    def encoder() -> object:
        return model.get_image_embeddings(pixels)

    return encoder


def transformers_runs(name: str, image: np.ndarray) -> dict[str, Run]:
    """The encoder, and the answer to a point about the encoded image."""
    import torch

    model = transformers_model(name)
    encoder = transformers_encoder(model, image)
    embedding = encoder()
    point, label = torch.tensor([[[[512.0, 512.0]]]]), torch.ones((1, 1, 1), dtype=torch.int64)

    @torch.inference_mode()
    def click() -> object:
        return model(image_embeddings=embedding, input_points=point, input_labels=label)

    return {"transformers": encoder, "transformers_click": click}


def peak_memory(candidate: str, name: str, plan: hj.Hourglass | None, image: np.ndarray) -> float:
    """Gigabytes that a process with one model takes at most."""
    if candidate == "transformers":
        run = transformers_encoder(transformers_model(name), image)
    else:
        run = partial(_encoded, hj.expedite(our_model(name), plan), image)
    for _ in range(3):
        run()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _encoded(model: Sam, image: np.ndarray) -> jax.Array:
    return jax.block_until_ready(encode(model, image[None]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=GLOBAL_BLOCKS, default="base")
    parser.add_argument("--alpha", type=int, help="by default a quarter of the blocks")
    parser.add_argument("--clusters", type=int, default=9, help="along a side of a window of 14")
    arguments = parser.parse_args()
    name, side = arguments.model, arguments.clusters
    alpha = sam_backbone(name).depth // 4 if arguments.alpha is None else arguments.alpha
    plan = hj.Hourglass(alpha, (side, side), temperature=100.0)
    image = PaddedSquare(SIZE[0])(read_image(photographs()["astronaut"]))

    memory = {each: alone(peak_memory, each, name, None, image) for each in ("ours", "transformers")}
    memory["ours_hourglass"] = alone(peak_memory, "ours", name, plan, image)
    model = our_model(name)
    models = {"ours": model, "ours_hourglass": hj.expedite(model, plan)}
    images, prompts = jnp.asarray(image)[None], model.drawn_prompts(1, SIZE, 1)
    features = encode(model, images)
    runs: dict[str, Run] = transformers_runs(name, image)
    runs |= {each: partial(encode, fast, images) for each, fast in models.items()}
    runs["ours_click"] = partial(answer, model, features, prompts)
    with tqdm(total=len(runs) * (arguments.repeats + 1), desc=name, disable=not sys.stderr.isatty()) as bar:
        times = measure(list(runs.values()), repeats=arguments.repeats, on_call=bar.update)
    seconds = {each: time.median for each, time in zip(runs, times, strict=True)}
    macs = {each: count_encoder_macs(fast, SIZE) for each, fast in models.items()}
    speedup = seconds["ours"] / seconds["ours_hourglass"]
    flops_ratio = macs["ours"] / macs["ours_hourglass"]
    results = {
        **{f"{each}_s": value for each, value in seconds.items()},
        **{f"{each}_peak_gb": value for each, value in memory.items()},
        "ours_over_transformers": seconds["transformers"] / seconds["ours"],
        "ours_over_transformers_click": seconds["transformers_click"] / seconds["ours_click"],
        "speedup": speedup,
        "flops_ratio": flops_ratio,
        "speedup_of_flops_ratio": speedup / flops_ratio,
    }
    title = f"sam-vit-{name[0]}"
    if arguments.json:
        print(json.dumps({title: results}, indent=2))
        return
    table = Table("", title)
    for figure, value in results.items():
        table.add_row(figure, f"{value:.3f}")
    Console().print(table)


if __name__ == "__main__":
    main()
