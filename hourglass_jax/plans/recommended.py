"""The plan to begin with, where nothing is known of a model but its backbone."""

from typing import Protocol

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.staged_merging import StagedMerging

KEEP = 0.871
"""Of every stage: 0.6 of the multiply-accumulates of a ViT-S at 518 pixels, features at a cosine of 0.997."""


class HasWindows(Protocol):
    """What a recommendation asks of a backbone."""

    @property
    def windows(self) -> tuple[range, int] | None:
        """The blocks of the longest stage and the side of its windows in tokens; None if attention is global."""
        ...


def recommended(backbone: HasWindows) -> Plan:
    """A plan that fits a backbone, from what was measured on others of its kind (docs/plans.md).

    Args:
        backbone: of any model.

    Returns:
        With global attention `StagedMerging`, which keeps most at equal cost. With windows an `Hourglass`: after a
        third of the longest stage, two thirds of the windows' side, as most of the published plans for Swin-L.
    """
    if backbone.windows is None:
        return StagedMerging(KEEP)
    blocks, side = backbone.windows
    clusters = round(2 * side / 3)
    return Hourglass(blocks[len(blocks) // 3], (clusters, clusters))
