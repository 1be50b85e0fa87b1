"""What EViT, DynamicViT and ACT execute on Segmenter ViT-L/16 at 640 x 640, beside their published GFLOPs.

    python benchmarks/rivals.py

No weights are needed. The settings are those of Expedit-Segmenter's configurations: EViT in the blocks 8, 14 and 20
with the dropped tokens fused, DynamicViT after as many blocks; both restore a token from the nearest one that was
kept (k 1, tau 200). ACT has a fixed number of rows of attention here; in the official code it depends on the image.
"""

import sys
from dataclasses import replace

from paper_gflops import VIT_L, abstract_segmenter
from rich.console import Console
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.models.segmenter import SegmenterConfig

SIDE, STAGES = 640, (8, 14, 20)
EVIT = {0.9: 572.01, 0.8: 500.19, 0.7: None, 0.6: None, 0.5: 351.83}
DYNAMIC_VIT = {0.9: 583.0, 0.8: 513.3, 0.7: 455.6}
ROWS = (1601, 800, 400, 200, 1)


def main() -> None:
    def count(plan: hj.Plan | None) -> float:
        config = SegmenterConfig(replace(VIT_L, position_grid=(40, 40), predictors=STAGES), classes=150)
        return count_macs(hj.expedite(abstract_segmenter(config), plan), (SIDE, SIDE))["total"] / 1e9

    entries: list[tuple[str, hj.Plan | None, float | None]] = [("none", None, 658.98)]
    for keep, published in EVIT.items():
        entries.append((f"EViT, keep {keep}", hj.EViT(keep, fuse=True, neighbors=1, temperature=200.0), published))
    for keep, published in DYNAMIC_VIT.items():
        plan = hj.DynamicViT(keep, stages=STAGES, neighbors=1, temperature=200.0)
        entries.append((f"DynamicViT, rho {keep}", plan, published))
    entries += [(f"ACT, {rows} rows", hj.ACT(rows), None) for rows in ROWS]

    table = Table("plan", "published", "executed")
    for name, plan, published in tqdm(entries, disable=not sys.stderr.isatty()):
        table.add_row(name, "" if published is None else str(published), f"{count(plan):.2f}")
    Console(width=None if sys.stdout.isatty() else 80).print(table)


if __name__ == "__main__":
    main()
