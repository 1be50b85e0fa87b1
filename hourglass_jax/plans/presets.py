"""Plans by name: the published ones (arXiv 2210.01035, Tables 8 and 9) and those found with this library."""

from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.staged_merging import StagedMerging


class Shape(NamedTuple):
    """What tells backbones apart: blocks, channels of the last map, and its stride in pixels."""

    depth: int
    channels: int
    stride: int


VIT_S14, VIT_H14 = Shape(12, 384, 14), Shape(32, 1280, 14)
VIT_S16, VIT_B16, VIT_L16 = Shape(12, 384, 16), Shape(12, 768, 16), Shape(24, 1024, 16)
VIT_H16, VIT_G16 = Shape(32, 1280, 16), Shape(40, 1536, 16)
SWIN_L = Shape(24, 1536, 32)


class HasShape(Protocol):
    """What a preset asks of a backbone."""

    @property
    def depth(self) -> int: ...

    @property
    def channels(self) -> Mapping[str, int]: ...

    @property
    def strides(self) -> Mapping[str, int]: ...


@dataclass(frozen=True)
class Preset:
    """A plan that was chosen for one model.

    Attributes:
        plan: the plan.
        size: of the images that it was chosen for, (rows, columns) in pixels.
        source: where it comes from.
        shape: of the model's backbone.
    """

    plan: Plan
    size: tuple[int, int]
    source: str
    shape: Shape

    def check(self, backbone: HasShape) -> None:
        """Raises ValueError if a backbone is not the one that the plan was chosen for."""
        *_, channels = backbone.channels.values()
        *_, stride = backbone.strides.values()
        found = Shape(backbone.depth, channels, stride)
        if found != self.shape:
            raise ValueError(
                "the preset is for a backbone of {} blocks, {} channels and stride {}, ".format(*self.shape)
                + "got one of {} blocks, {} channels and stride {}".format(*found)
            )


def _published(
    shape: Shape,
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
    return Preset(plan, size, source, shape)


def _segmenter(alpha: int, clusters: int, side: int, source: str = "paper, Tables 8 and 9") -> Preset:
    return _published(VIT_L16, alpha, clusters, (side, side), temperature=50.0, reconstruct="logits", source=source)


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
    shapes = {"h14": VIT_H14, "l16": VIT_L16}
    rows = {("h14", 518, 7): [(10, 26), (4, 25), (8, 18)], ("l16", 512, 9): [(12, 23), (6, 23), (8, 16)]}
    return {
        f"swag-vit-{model}-in1k-a{alpha}-{clusters}": _published(
            *(shapes[model], alpha, clusters, (side, side)),
            window=window,
            temperature=1.0,
            source="Expedit-SWAG, README.md",
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
        return _published(
            SWIN_L, alpha, 8, size, source=f"Expedit-Mask2Former, configs; README.md: {row}", **fields
        )

    presets = {
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
        "swinv2-l-htc-coco": _published(SWIN_L, 12, 23, (1024, 1024), temperature=33.0, source=paper),
    }
    rows = {
        "dino-swin-l-coco": [(16, 9), (14, 8), (10, 8)],
        "maskdino-swin-l-coco-instance": [(16, 9), (10, 9), (8, 8)],
        "maskdino-swin-l-coco-panoptic": [(16, 9), (12, 9), (10, 8)],
    }
    for name, plans in rows.items():
        for alpha, clusters in plans:
            presets[f"{name}-a{alpha}-{clusters}"] = _published(
                *(SWIN_L, alpha, clusters, size),
                iterations=3,
                temperature=100.0,
                neighbors=25,
                source="Expedit-DINO, README.md",
            )
    for alpha, clusters in [(8, 10), (10, 8), (8, 8)]:
        presets[f"oneformer-swin-l-ade20k-a{alpha}-{clusters}"] = _published(
            *(SWIN_L, alpha, clusters, (1280, 1280)),
            window=7,
            iterations=4,
            temperature=100.0,
            neighbors=49,
            source="Expedit-OneFormer, README.md",
        )
    return presets


def _cascade_rows() -> dict[str, Preset]:
    """Swin-T, -S and -B in windows of 7 x 7, chosen by their cost alone; a plan ends with the third stage."""
    rows = {"t": (5, Shape(12, 768, 32)), "s": (10, Shape(24, 768, 32)), "b": (10, Shape(24, 1024, 32))}
    return {
        f"cascade-swin-{size}-coco": Preset(Hourglass(alpha, (5, 5)), (800, 1088), "docs/detection.md", shape)
        for size, (alpha, shape) in rows.items()
    }


def _dpt_rows() -> dict[str, Preset]:
    """The further rows of Expedit-DPT's README, whose alpha is the last block before the clustering, from 0.

    Window, tau and k are what its commands have by default: EVALUATION.md gives no others.
    """
    rows = {("kitti", (352, 1216)): [(6, 28), (4, 20), (4, 16)], ("nyu", (480, 640)): [(6, 24), (4, 16), (2, 14)]}
    return {
        f"dpt-hybrid-{dataset}-a{last + 1}-{clusters}": _published(
            *(VIT_B16, last + 1, clusters, size), temperature=1.0, source="Expedit-DPT, README.md"
        )
        for (dataset, size), plans in rows.items()
        for last, clusters in plans
    }


def _dinov3_rows() -> dict[str, Preset]:
    """DINOv3 at 0.6 of the encoder's cost; what is left of the fidelity is not known here."""
    kept = {
        "s": (0.864, VIT_S16),
        "s-plus": (0.859, VIT_S16),
        "b": (0.853, VIT_B16),
        "l": (0.851, VIT_L16),
        "h-plus": (0.847, VIT_H16),
    }
    return {
        f"dinov3-{name}-512": Preset(StagedMerging(keep), (512, 512), "docs/dinov3.md", shape)
        for name, (keep, shape) in kept.items()
    }


def _eomt_rows() -> dict[str, Preset]:
    """EoMT at the sizes of its published checkpoints, at 0.6 of the cost of the ViT with queries."""
    kept = {
        "s-640": 0.871,
        "b-640": 0.857,
        "l-640": 0.855,
        "g-640": 0.851,
        "l-1280": 0.884,
        "g-1280": 0.878,
        "l-512": 0.846,
        "l-1024": 0.875,
    }
    shapes = {"s": VIT_S16, "b": VIT_B16, "l": VIT_L16, "g": VIT_G16}
    return {
        f"eomt-{name}": Preset(StagedMerging(keep), (side, side), "docs/eomt.md", shapes[name[0]])
        for name, keep in kept.items()
        for side in [int(name.partition("-")[2])]
    }


def _sam_rows() -> dict[str, Preset]:
    """Expedit-SAM's README, ViT-H in windows of 14 x 14 tokens, with the settings of its scripts; and of its demo.

    A name ends in alpha and the clusters on a side of a window.
    """
    found = {
        f"sam-vit-h-a{alpha}-{clusters}": _published(
            *(VIT_H16, alpha, clusters, (1024, 1024)),
            temperature=200.0,
            source=f"Expedit-SAM, README.md: {speed} times",
        )
        for alpha, clusters, speed in ((18, 11, 1.10), (14, 10, 1.19), (8, 10, 1.30), (8, 9, 1.44), (6, 9, 1.49))
    }
    for alpha, speed in ((16, "1.2x"), (6, "1.5x")):
        found[f"sam-vit-h-demo-a{alpha}-9"] = _published(
            *(VIT_H16, alpha, 9, (1024, 1024)), temperature=100.0, source=f"Expedit-SAM, its demo: {speed}"
        )
    return found


PRESETS = MappingProxyType(
    {
        "dinov2-vits14-saliency": Preset(
            *(Hourglass(5, (24, 24), iterations=2, representative="medoid"), (518, 518)),
            *("benchmarks/fidelity.py", VIT_S14),
        ),
        "segmenter-vit-l16-ade20k": _segmenter(10, 28, 640),
        "segmenter-vit-l16-cityscapes": _segmenter(12, 32, 768),
        "segmenter-vit-l16-pascal-context": _segmenter(14, 15, 480),
        **_segmenter_rows(),
        "dpt-hybrid-kitti": _published(
            VIT_B16, 2, 28, (352, 1216), temperature=5.0, source="paper, Tables 8 and 9"
        ),
        "dpt-hybrid-nyu": _published(
            *(VIT_B16, 3, 16, (480, 640)), window=7, temperature=5.0, neighbors=50, source="paper, Tables 8 and 9"
        ),
        **_dpt_rows(),
        "swag-vit-h14-in1k": _published(
            *(VIT_H14, 8, 25, (518, 518)), window=7, temperature=1.0, source="paper, Tables 8 and 9"
        ),
        "swag-vit-l16-in1k": _published(
            *(VIT_L16, 8, 22, (512, 512)), window=9, temperature=1.0, source="paper, Tables 8 and 9"
        ),
        **_swag_rows(),
        **_swin_rows(),
        **_dinov3_rows(),
        **_eomt_rows(),
        **_sam_rows(),
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
