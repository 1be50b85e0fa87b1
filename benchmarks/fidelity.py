"""Cosine similarity of the embedded model's final patch features to the unexpedited ones, over photographs.

    python benchmarks/fidelity.py [--json]

Centre-cropped squares of all photographs at 518 x 518. Prints the mean and the worst photograph for each plan.
"""

import argparse
import json
import sys

import jax
import numpy as np
from flax import nnx
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.imaging.images import center_crop_square, read_image
from hourglass_jax.imaging.photographs import photographs

FIXED = (0.003, 0.01, 0.02, 0.03, 0.05, 0.1)

PLANS = {
    "preset": hj.preset("dinov2-vits14-saliency").plan,
    "paper's, tau 0.03": hj.Hourglass(4, (26, 26), temperature=0.03),
    "20 x 20 medoid, tau 0.03": hj.Hourglass(4, (20, 20), temperature=0.03, representative="medoid"),
    "20 x 20 mean, tau 0.03": hj.Hourglass(4, (20, 20), temperature=0.03),
    **{
        f"alpha {alpha}, tau {tau}": hj.Hourglass(alpha, (26, 26), temperature=tau)
        for alpha in (4, 6, 8)
        for tau in ("auto", *FIXED)
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print machine-readable results")
    arguments = parser.parse_args()

    model = hj.load("dinov2-vits14-saliency")
    prepare = model.config.preprocessing
    images = np.stack([prepare(center_crop_square(read_image(path))) for path in photographs().values()])

    def features(model: nnx.Module, image: jax.Array) -> jax.Array:
        return model.backbone(image).tokens.values

    run = jax.jit(features)
    original = [run(model, image[None]) for image in images]
    rows = []
    for name, plan in tqdm(PLANS.items(), desc="plans", disable=not sys.stderr.isatty()):
        fast = hj.expedite(model, plan)
        cosines = [
            float(cosine_similarity(run(fast, image[None]), reference)[0])
            for image, reference in zip(images, original, strict=True)
        ]
        rows.append({"plan": name, "mean": float(np.mean(cosines)), "worst": min(cosines), "cosines": cosines})

    if arguments.json:
        print(json.dumps(rows, indent=2))
        return
    table = Table("plan", "mean cosine", "worst photograph")
    for row in rows:
        table.add_row(row["plan"], f"{row['mean']:.4f}", f"{row['worst']:.4f}")
    Console().print(table)


if __name__ == "__main__":
    main()
