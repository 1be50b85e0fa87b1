"""Token merging at a few places only, with few and large steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Self

import jax

from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan, Tokens
from hourglass_jax.plans.checks import check_among_blocks, check_blocks, check_share, scaled_blocks
from hourglass_jax.plans.merging import merged

if TYPE_CHECKING:
    from hourglass_jax.backbones.layers import Block

STAGES = (0, 2, 4, 6)
"""Of 12 blocks."""


@dataclass(frozen=True)
class StagedMerging(Plan):
    """Before a few blocks, similar tokens merge: of N tokens round(N keep^j) are left at stage j = 1, 2, ...

    Tokens are compared by the keys that the block would compute for them. Attention counts a merged token as often
    as it has tokens in it, and in the end every token of the grid gets the value of its group.

    Attributes:
        keep: q, share of its tokens that every stage keeps; at least one half.
        stages: the blocks before which tokens merge; None for 0, 2, 4, 6 of 12, scaled to the depth.
        value: what a group becomes. "mean": of its tokens, weighted with their sizes; tokens are compared by the
            mean of their keys over the heads. "medoid": the real token nearest to that mean; tokens are compared by
            the keys of all heads.

    Raises:
        ValueError: a field is out of range.
    """

    keep: float
    stages: tuple[int, ...] | None = None
    value: Literal["mean", "medoid"] = "mean"

    def __post_init__(self) -> None:
        check_share("keep", self.keep)
        if self.keep < 0.5:
            raise ValueError(f"keep must be at least 0.5: no more than half of the tokens merge; got {self.keep}")
        if self.stages is not None:
            object.__setattr__(self, "stages", check_blocks("stages", self.stages))
        if self.value not in ("mean", "medoid"):
            raise ValueError(f"value must be 'mean' or 'medoid', got {self.value!r}")

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        check_among_blocks("stages", self.stages or (), depth)

    def run_block(
        self, index: int, block: Block, special: jax.Array, tokens: Tokens, *, depth: int, token_grid: Grid
    ) -> tuple[jax.Array, Tokens]:
        """See `Plan.run_block`."""
        surplus = tokens.values.shape[1] - self.counts(depth, token_grid)[index]
        if surplus > 0:
            with jax.named_scope("clustering"):
                keys = block.attention.keys(block.norm1(tokens.values), mean=self.value == "mean")
            tokens = merged(tokens, keys, surplus, value=self.value)
        return super().run_block(index, block, special, tokens, depth=depth, token_grid=token_grid)

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        stages = scaled_blocks(STAGES, 12, depth) if self.stages is None else self.stages
        full = left = token_grid[0] * token_grid[1]
        counts = []
        for index in range(depth):
            if index in stages:
                left = max(round(full * self.keep ** (stages.index(index) + 1)), left - left // 2)
            counts.append(left)
        return [*counts, full]

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """Every stage keeps between half and all of its tokens; see `Plan.scaled`."""
        return cls(keep=(1 + share) / 2)
