"""All methods on the embedded model at one budget: cost, fidelity, speed.

    python benchmarks/plans.py [--budget 0.6] [--json] [--repeats N]

Centre-cropped squares of all photographs at 518 x 518; the budget is a share of the encoder's multiply-accumulates,
and every method's own plan is solved for it. Cosines are of the final patch features to the unexpedited ones;
latency is of the encoder on one photograph, medians of runs in turn. "of flop ratio" is the speed-up over the ratio
of the multiply-accumulates. Run it on an idle machine.
"""

import argparse
import json
import sys

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.latency import measure
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.imaging.images import center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs
from hourglass_jax.search.budget import Costs

SIZE = (518, 518)


METHODS = {
    "TokenMerging": ("TokenMerging", {}),
    "StagedMerging, mean": ("StagedMerging", {}),
    "StagedMerging, medoid": ("StagedMerging", {"value": "medoid"}),
    "Hourglass": ("Hourglass", {}),
    "Hourglass, tuned": ("Hourglass", {"iterations": 2, "representative": "medoid"}),
    "EViT": ("EViT", {}),
    "ACT": ("ACT", {}),
    "Pooling": ("Pooling", {}),
    "Downsampling": ("Downsampling", {}),
}
"""Name -> method, and what its plan has in place of its own choice. DynamicViT is not among them: it needs a
backbone that was trained with its prediction modules."""


@jax.jit
def features(backbone: ViT, images: jax.Array) -> jax.Array:
    tokens = backbone(images).tokens
    return tokens.restore(tokens.values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--budget", type=float, default=0.6)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()

    model = hj.load("dinov2-vits14-saliency")
    prepare, original = model.config.preprocessing, model.backbone
    images = [prepare(center_crop_square(read_image(path)))[None] for path in photographs().values()]
    wanted = [features(original, image) for image in images]
    costs = Costs(original, SIZE)
    full = costs.original

    rows, runs = [], [lambda: features(original, images[0])]
    for name, (method, fields) in tqdm(METHODS.items(), desc="methods", disable=not sys.stderr.isatty()):
        try:
            plan = costs.solve(method, arguments.budget, fields)
        except ValueError as problem:
            rows.append({"method": name, "problem": str(problem)})
            continue
        fast = hj.expedite(original, plan)
        cosines = [
            float(cosine_similarity(features(fast, image), expected)[0])
            for image, expected in zip(images, wanted, strict=True)
        ]
        cost = costs(plan)
        rows.append(
            {
                "method": name,
                "plan": repr(plan),
                "gflops": cost * full / 1e9,
                "cost": cost,
                "cosine": float(np.mean(cosines)),
                "worst": min(cosines),
            }
        )
        runs.append(lambda fast=fast: features(fast, images[0]))

    first, *others = [each.median for each in measure(runs, repeats=arguments.repeats)]
    for row, seconds in zip([row for row in rows if "plan" in row], others, strict=True):
        row |= {
            "latency_ms": 1e3 * seconds,
            "speedup": first / seconds,
            "of_flop_ratio": first / seconds * row["cost"],
        }
    if arguments.json:
        print(json.dumps({"gflops": full / 1e9, "latency_ms": 1e3 * first, "methods": rows}, indent=2))
        return
    columns = {
        "gflops": ".1f", "cost": ".3f", "cosine": ".4f", "worst": ".4f",
        "latency_ms": ".0f", "speedup": ".2f", "of_flop_ratio": ".2f",
    }  # fmt: skip
    table = Table(
        "method", *(name.replace("_", " ") for name in columns),
        title=f"{jax.devices()[0]}: unexpedited {full / 1e9:.1f} GFLOPs, {1e3 * first:.0f} ms",
    )  # fmt: skip
    for row in rows:
        table.add_row(
            row["method"], *(format(row[key], form) if "plan" in row else "-" for key, form in columns.items())
        )
    console = Console(width=None if sys.stdout.isatty() else 120)
    console.print(table)
    for row in rows:
        console.print(f"{row['method']}: {row.get('plan') or row['problem']}", markup=False, highlight=False)


if __name__ == "__main__":
    main()
