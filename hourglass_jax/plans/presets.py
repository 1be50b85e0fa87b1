"""Plans by name: the published ones (arXiv 2210.01035, Tables 8 and 9) and those found with this library."""

from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal

from hourglass_jax.plans.hourglass import Hourglass


@dataclass(frozen=True)
class Preset:
    """A plan, the image it was chosen for as (rows, columns) in pixels, and where it comes from."""

    plan: Hourglass
    size: tuple[int, int]
    source: str


def _published(
    alpha: int,
    clusters: int,
    size: tuple[int, int],
    *,
    window: int = 5,
    iterations: int = 5,
    temperature: float,
    neighbors: int = 20,
    reconstruct: Literal["tokens", "logits"] = "tokens",
    source: str,
) -> Preset:
    plan = Hourglass(
        alpha,
        (clusters, clusters),
        window=window,
        iterations=iterations,
        temperature=temperature,
        neighbors=neighbors,
        reconstruct=reconstruct,
    )
    return Preset(plan, size, source)


def _segmenter(alpha: int, clusters: int, side: int, source: str = "paper, Tables 8 and 9") -> Preset:
    return _published(alpha, clusters, (side, side), temperature=50.0, reconstruct="logits", source=source)


def _segmenter_rows() -> dict[str, Preset]:
    """The further rows of Expedit-Segmenter's README; a name ends in alpha and the clusters on a side."""
    rows = {
        ("ade20k", 640): [(16, 28), (8, 20)],
        ("cityscapes", 768): [(18, 32), (10, 24)],
        ("pascal-context", 480): [(14, 20), (12, 15), (8, 15)],
    }
    return {
        f"segmenter-vit-l16-{dataset}-a{alpha}-{clusters}": _segmenter(
            alpha, clusters, side, "Expedit-Segmenter, README.md"
        )
        for (dataset, side), plans in rows.items()
        for alpha, clusters in plans
    }


def _swag_rows() -> dict[str, Preset]:
    """The further rows of Expedit-SWAG's README, named likewise; windows and tau are those of the paper's plans."""
    rows = {("h14", 518, 7): [(10, 26), (4, 25), (8, 18)], ("l16", 512, 9): [(12, 23), (6, 23), (8, 16)]}
    return {
        f"swag-vit-{model}-in1k-a{alpha}-{clusters}": _published(
            alpha, clusters, (side, side), window=window, temperature=1.0, source="Expedit-SWAG, README.md"
        )
        for (model, side, window), plans in rows.items()
        for alpha, clusters in plans
    }


def _swin_rows() -> dict[str, Preset]:
    """Swin-L in windows of 12 x 12, and SwinV2-L of 32 x 32; a plan ends with the third stage, block 22.

    Mask2Former's are its released configurations, whose alpha of ADE20K semantic is not the README's. The README's
    GFLOPs of all but ADE20K panoptic are those of clustering one block before its alpha.
    """
    paper, size = "paper, Tables 8 and 9", (1152, 1152)

    def mask2former(alpha: int, row: str, **fields: Any) -> Preset:
        return _published(alpha, 8, size, source=f"Expedit-Mask2Former, configs; README.md: {row}", **fields)

    found = {
        "mask2former-swin-l-coco-panoptic": mask2former(
            10, "alpha 10, PQ 56.8", window=7, temperature=20.0, neighbors=10
        ),
        "mask2former-swin-l-ade20k-semantic": mask2former(7, "alpha 8, mIoU 55.5", temperature=100.0, neighbors=10),
        "mask2former-swin-l-coco-instance": mask2former(
            12, "alpha 12, AP 49.1", window=11, temperature=100.0, neighbors=60
        ),
        "mask2former-swin-l-ade20k-panoptic": mask2former(
            14, "alpha 14, PQ 47.6", window=7, iterations=4, temperature=100.0, neighbors=49
        ),
        "swinv2-l-htc-coco": _published(12, 23, (1024, 1024), temperature=33.0, source=paper),
    }
    rows = {
        "dino-swin-l-coco": [(16, 9), (14, 8), (10, 8)],
        "maskdino-swin-l-coco-instance": [(16, 9), (10, 9), (8, 8)],
        "maskdino-swin-l-coco-panoptic": [(16, 9), (12, 9), (10, 8)],
    }
    for name, plans in rows.items():
        for alpha, clusters in plans:
            found[f"{name}-a{alpha}-{clusters}"] = _published(
                *(alpha, clusters, size),
                iterations=3,
                temperature=100.0,
                neighbors=25,
                source="Expedit-DINO, README.md",
            )
    for alpha, clusters in [(8, 10), (10, 8), (8, 8)]:
        found[f"oneformer-swin-l-ade20k-a{alpha}-{clusters}"] = _published(
            *(alpha, clusters, (1280, 1280)),
            window=7,
            iterations=4,
            temperature=100.0,
            neighbors=49,
            source="Expedit-OneFormer, README.md",
        )
    return found


def _cascade_rows() -> dict[str, Preset]:
    """Swin-T, -S and -B in windows of 7 x 7, chosen by their cost alone; a plan ends with the third stage."""
    alphas = {"t": 5, "s": 10, "b": 10}
    return {
        f"cascade-swin-{size}-coco": Preset(Hourglass(alpha, (5, 5)), (800, 1088), "docs/detection.md")
        for size, alpha in alphas.items()
    }


def _dpt_rows() -> dict[str, Preset]:
    """The further rows of Expedit-DPT's README, whose alpha is the last block before the clustering, from 0.

    Window, tau and k are what its commands have by default: EVALUATION.md gives no others.
    """
    rows = {("kitti", (352, 1216)): [(6, 28), (4, 20), (4, 16)], ("nyu", (480, 640)): [(6, 24), (4, 16), (2, 14)]}
    return {
        f"dpt-hybrid-{dataset}-a{last + 1}-{clusters}": _published(
            last + 1, clusters, size, temperature=1.0, source="Expedit-DPT, README.md"
        )
        for (dataset, size), plans in rows.items()
        for last, clusters in plans
    }


PRESETS = MappingProxyType(
    {
        "dinov2-vits14-saliency": Preset(
            Hourglass(5, (24, 24), iterations=2, representative="medoid"), (518, 518), "benchmarks/fidelity.py"
        ),
        "segmenter-vit-l16-ade20k": _segmenter(10, 28, 640),
        "segmenter-vit-l16-cityscapes": _segmenter(12, 32, 768),
        "segmenter-vit-l16-pascal-context": _segmenter(14, 15, 480),
        **_segmenter_rows(),
        "dpt-hybrid-kitti": _published(2, 28, (352, 1216), temperature=5.0, source="paper, Tables 8 and 9"),
        "dpt-hybrid-nyu": _published(
            3, 16, (480, 640), window=7, temperature=5.0, neighbors=50, source="paper, Tables 8 and 9"
        ),
        **_dpt_rows(),
        "swag-vit-h14-in1k": _published(
            8, 25, (518, 518), window=7, temperature=1.0, source="paper, Tables 8 and 9"
        ),
        "swag-vit-l16-in1k": _published(
            8, 22, (512, 512), window=9, temperature=1.0, source="paper, Tables 8 and 9"
        ),
        **_swag_rows(),
        **_swin_rows(),
        **_cascade_rows(),
    }
)


def preset(name: str) -> Preset:
    """The preset called `name`.

    Raises:
        ValueError: there is none of that name.
    """
    if name not in PRESETS:
        alike = get_close_matches(name, PRESETS, n=3, cutoff=0.5)
        hint = f"nearest: {', '.join(alike)}" if alike else "`hourglass models` prints them all"
        raise ValueError(f"unknown preset {name!r}; {hint}")
    return PRESETS[name]
