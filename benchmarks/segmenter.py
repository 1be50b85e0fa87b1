"""Segmenter from a photograph to its label map, against the official code: speed, memory and cold start.

    python benchmarks/segmenter.py [--json] [--repeats N] [--model vit-s16|vit-l16] [--only speed|memory|cold]
                                   [--preset segmenter-vit-l16-ade20k]

The peer is an equivalent of the official PyTorch code (tests/parity/segmenters.py): eager, attention not fused, the
distances of all tokens to all clusters. Weights are random; the preset names the plan, the photograph's size and
the classes; ViT-S/16 takes half its alpha.

"speed": the runs of all candidates alternate, and medians are compared; "ours_over_official" is how many times as
fast ours is. "memory", on Linux only: the largest resident set, in GiB, of a process that loads the model from its
file, as the official code loads it, then of its first prediction, and their ratios. "cold": a process that starts,
loads the model and predicts twice under the plan, first with an empty compilation cache, then with what it left
there. Run it on an idle machine.
"""

import argparse
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from common import alone, ratios
from PIL import Image

if TYPE_CHECKING:
    from tests.parity.segmenters import TorchSegmenter

PATCH_SIZE = 16
CLASSES = {"ade20k": 150, "cityscapes": 19, "pascal-context": 60}
MODELS = {
    "vit-s16": {"width": 384, "depth": 12, "heads": 6},
    "vit-l16": {"width": 1024, "depth": 24, "heads": 16},
}
CANDIDATES = ("official", "official_hourglass", "ours", "ours_hourglass")
OURS, THEIRS = "segmenter.safetensors", "checkpoint.pth"

Plan = dict[str, object]
"""The fields of a `hourglass_jax.Hourglass`. What weighs or times a process imports JAX or PyTorch only there."""


class Case(NamedTuple):
    """What is measured: the shape of the ViT (of `MODELS`), the side of the photograph in pixels, and the plan."""

    shape: dict[str, int]
    side: int
    classes: int
    plan: Plan


def photograph(side: int) -> np.ndarray:
    from hourglass_jax.imaging.photographs import photographs

    return np.asarray(Image.open(photographs()["astronaut"]).convert("RGB").resize((side, side)))


def write_ours(case: Case, folder: Path) -> None:
    """Our model with random weights."""
    from flax import nnx

    import hourglass_jax as hj
    from hourglass_jax.backbones.vit import ViTConfig
    from hourglass_jax.imaging.windows import SlidingWindow
    from hourglass_jax.models.segmenter import Segmenter, SegmenterConfig

    backbone = ViTConfig(
        **case.shape,
        patch_size=PATCH_SIZE,
        position_grid=(case.side // PATCH_SIZE, case.side // PATCH_SIZE),
        position_resize="bilinear",
        norm_epsilon=1e-5,
    )
    config = SegmenterConfig(backbone, classes=case.classes, window=SlidingWindow(case.side, case.side))
    hj.save(Segmenter(config, rngs=nnx.Rngs(0)), folder / OURS)


def new_peer(case: Case) -> "TorchSegmenter":
    from tests.parity.segmenters import Net, TorchSegmenter

    net = Net(
        d_model=case.shape["width"],
        n_layers=case.shape["depth"],
        n_heads=case.shape["heads"],
        n_cls=case.classes,
        image_size=(case.side, case.side),
        patch_size=PATCH_SIZE,
    )
    return TorchSegmenter(net).eval()


def write_peer(case: Case, folder: Path) -> None:
    """The peer with random weights."""
    import torch

    torch.save({"model": new_peer(case).state_dict()}, folder / THEIRS)


def load_peer(case: Case, folder: Path) -> Callable[[np.ndarray, Plan | None], np.ndarray]:
    """The peer as the official code loads it: a photograph and a plan to the label map."""
    import torch

    from tests.parity.segmenters import inference, prepare

    model = new_peer(case)
    model.load_state_dict(torch.load(folder / THEIRS)["model"])

    def predict(photo: np.ndarray, plan: Plan | None) -> np.ndarray:
        hourglass = None if plan is None else SimpleNamespace(**plan)
        run = partial(model, plan=hourglass, norm=2)
        return inference(run, prepare(photo, "vit"), (case.side, case.side)).argmax(dim=0).numpy()

    return predict


def speed(case: Case, folder: Path, repeats: int) -> dict[str, float]:
    import jax
    import jax.numpy as jnp
    from tqdm import tqdm

    import hourglass_jax as hj
    from hourglass_jax.analysis.flops import count_function_macs
    from hourglass_jax.analysis.latency import measure
    from hourglass_jax.predictor import run

    photo = photograph(case.side)
    peer = load_peer(case, folder)
    original = hj.load(folder / OURS)
    fast = hj.expedite(original, hj.Hourglass(**case.plan))
    predictors = [hj.Predictor(model) for model in (original, fast)]
    functions = [
        lambda: peer(photo, None),
        lambda: peer(photo, case.plan),
        *(partial(predictor, photo) for predictor in predictors),
    ]
    with tqdm(total=len(functions) * (repeats + 1), desc="speed", disable=not sys.stderr.isatty()) as bar:
        times = measure(functions, repeats=repeats, on_call=bar.update)
    seconds = {key: each.median for key, each in zip(CANDIDATES, times, strict=True)}

    image = jax.ShapeDtypeStruct((1, case.side, case.side, 3), jnp.float32)
    macs = {
        name: sum(count_function_macs(run, model, image).values())
        for name, model in (("ours", original), ("ours_hourglass", fast))
    }
    return {
        **ratios(seconds, macs, "official"),
        "gmacs": macs["ours"] / 1e9,
        "gmacs_hourglass": macs["ours_hourglass"] / 1e9,
    }


def peaks(candidate: str, case: Case, folder: Path) -> tuple[float, float]:
    """GiB at most while this process imports and loads, and while it predicts."""
    photo = photograph(case.side)
    used = case.plan if candidate.endswith("hourglass") else None
    if candidate.startswith("official"):
        predict = partial(load_peer(case, folder), plan=used)
    else:
        import hourglass_jax as hj

        hourglass = None if used is None else hj.Hourglass(**used)
        predict = hj.Predictor(hj.expedite(hj.load(folder / OURS), hourglass))
    loading = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
    predict(photo)
    predicting = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return loading / 2**20, predicting / 2**20


def memory(case: Case, folder: Path) -> dict[str, float]:
    found = {candidate: alone(peaks, candidate, case, folder) for candidate in CANDIDATES}
    results = {}
    for index, phase in enumerate(("loading", "predicting")):
        gib = {candidate: peak[index] for candidate, peak in found.items()}
        results |= {f"{candidate}_{phase}_gib": value for candidate, value in gib.items()}
        results[f"ours_over_official_{phase}"] = gib["ours"] / gib["official"]
        results[f"ours_over_official_hourglass_{phase}"] = gib["ours_hourglass"] / gib["official_hourglass"]
    return results


def phases(case: Case, folder: Path, cache: str) -> dict[str, float]:
    """Seconds from the import to the second prediction."""
    photo = photograph(case.side)
    times = [time.perf_counter()]

    def lap() -> None:
        times.append(time.perf_counter())

    import jax

    import hourglass_jax as hj
    import hourglass_jax.models.segmenter

    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    load, predictor = hj.load, hj.Predictor
    lap()
    model = hj.expedite(load(folder / OURS), hj.Hourglass(**case.plan))
    lap()
    predict = predictor(model)
    for _ in range(2):
        predict(photo)
        lap()
    names = ("import_s", "load_s", "first_prediction_s", "second_prediction_s")
    return dict(zip(names, np.diff(times).tolist(), strict=True))


def cold(case: Case, folder: Path) -> dict[str, float]:
    results = {}
    with tempfile.TemporaryDirectory() as cache:
        for state in ("empty", "filled"):
            started = time.perf_counter()
            found = alone(phases, case, folder, cache)
            found["total_s"] = time.perf_counter() - started
            results |= {f"{state}_{key}": value for key, value in found.items()}
    first = "first_prediction_s"
    return {**results, "first_prediction_empty_over_filled": results[f"empty_{first}"] / results[f"filled_{first}"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--model", choices=MODELS, default="vit-l16")
    parser.add_argument("--preset", default="segmenter-vit-l16-ade20k", help="a published plan of Segmenter")
    parser.add_argument("--only", choices=("speed", "memory", "cold"), help="one section instead of all")
    arguments = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

    from rich.console import Console
    from rich.table import Table

    from hourglass_jax.plans.presets import preset

    chosen = preset(arguments.preset)
    shape = MODELS[arguments.model]
    plan = dict(vars(chosen.plan))
    plan["alpha"] = plan["alpha"] * shape["depth"] // MODELS["vit-l16"]["depth"]
    classes = next(count for dataset, count in CLASSES.items() if dataset in arguments.preset)
    case = Case(shape, chosen.size[0], classes, plan)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        alone(write_ours, case, folder)
        alone(write_peer, case, folder)
        sections = {
            "speed": lambda: alone(speed, case, folder, arguments.repeats),
            "memory": lambda: memory(case, folder),
            "cold": lambda: cold(case, folder),
        }
        results = {key: run() for key, run in sections.items() if arguments.only in (None, key)}
    if arguments.json:
        print(json.dumps({arguments.model: results}, indent=2))
        return
    for section, figures in results.items():
        table = Table("", section, title=f"{arguments.model}, {arguments.preset}")
        for figure, value in figures.items():
            table.add_row(figure, f"{value:.3f}")
        Console().print(table)


if __name__ == "__main__":
    main()
