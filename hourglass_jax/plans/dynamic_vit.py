"""DynamicViT (arXiv 2106.02034): small trained networks choose the tokens to drop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import jax

from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Backbone, Block, Plan, Tokens
from hourglass_jax.plans.checks import (
    check_among_blocks,
    check_blocks,
    check_reconstruction,
    check_share,
    scaled_blocks,
)
from hourglass_jax.plans.selection import NEIGHBORS, select

STAGES = (3, 6, 9)
"""Default stages of 12 blocks."""


@dataclass(frozen=True)
class DynamicViT(Plan):
    """Before three blocks, the tokens with the lowest scores of the block's prediction module are dropped.

    The modules and their weights belong to the backbone (`ViTConfig.predictors`): converted checkpoints of
    DynamicViT have them.

    Attributes:
        keep: rho, share of the image tokens that the first stage keeps; the j-th stage leaves rho^j of all.
        stages: indices of the blocks; None for 3, 6, 9 of 12, scaled to the depth.
        neighbors: k of the reconstruction that restores dropped tokens in the end, the last ones first.
        temperature: tau of the reconstruction, or "auto".

    Raises:
        ValueError: a field is out of range.

    Source: raoyongming/DynamicViT, vit.py and infer.py; arXiv 2210.01035, appendix E, for the reconstruction.
    """

    keep: float
    stages: tuple[int, ...] | None = None
    neighbors: int = 20
    temperature: float | Literal["auto"] = "auto"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        if self.stages is not None:
            object.__setattr__(self, "stages", check_blocks("stages", self.stages))
        check_reconstruction(self.neighbors, self.temperature)

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        check_among_blocks("stages", self.stages or (), depth)

    def check_backbone(self, backbone: Backbone) -> None:
        """See `Plan.check_backbone`."""
        missing = [index for index in self._stages(backbone.depth) if backbone.blocks[index].predictor is None]
        if missing:
            raise ValueError(
                f"DynamicViT needs prediction modules before blocks {self._stages(backbone.depth)}; "
                f"this backbone has none before {missing}: convert a checkpoint of DynamicViT"
            )

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        count = self.counts(tokens.depth, tokens.grid)[index]
        if count == tokens.count:
            return tokens
        assert block.predictor is not None, "see `check_backbone`"
        with jax.named_scope("clustering"):
            scores = block.predictor(tokens.values)
        kept, _ = select(tokens, scores, count, neighbors=self.neighbors, temperature=self.temperature)
        return kept

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        full, stages = token_grid[0] * token_grid[1], self._stages(depth)
        passed = [sum(stage <= index for stage in stages) for index in range(depth)]
        return [*(max(1, int(full * self.keep**count)) for count in passed), full]

    def _stages(self, depth: int) -> tuple[int, ...]:
        return scaled_blocks(STAGES, 12, depth) if self.stages is None else self.stages

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """See `Plan.scaled`."""
        return cls(share)

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"neighbors": NEIGHBORS}
