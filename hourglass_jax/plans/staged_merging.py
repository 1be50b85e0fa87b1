"""Token merging before a few blocks only, with few and large steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import jax

from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.merging import alternate, checkerboard
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.checks import check_among_blocks, check_blocks, check_share, scaled_blocks
from hourglass_jax.plans.merging import merge

STAGES = (0, 2, 4, 6)
"""Default stages of 12 blocks."""
TRIED = ((0, 1, 2, 3), (0, 1, 2, 3, 4, 5, 6, 7), (0, 3, 6, 9), (1, 3, 5, 7), (0, 4))
"""Other stages that the tuner tries, for 12 blocks."""


@dataclass(frozen=True)
class StagedMerging(Plan):
    """Merges similar tokens before a few blocks: stage j = 1, 2, ... leaves round(N keep^j) of N tokens.

    Tokens are compared by the keys that the block would compute for them. Attention weights a merged token by the
    number of its members, and in the end every token of the grid gets the value of its group.

    Tokens of one half are merged into tokens of the other. The first halves are the two colours of a checkerboard;
    later ones alternate, as merged tokens do not lie on a grid.

    Attributes:
        keep: q, share of its tokens that every stage keeps; at least one half.
        stages: indices of the blocks before which tokens merge; None for 0, 2, 4, 6 of 12, scaled to the depth.
        value: value of a group. "mean": the mean of its tokens, weighted by their sizes; tokens are compared by the
            mean of their keys over the heads. "medoid": the token nearest to that mean; tokens are compared by the
            keys of all heads.

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

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        surplus = tokens.count - self.counts(tokens.depth, tokens.grid)[index]
        if not surplus:
            return tokens
        with jax.named_scope("clustering"):
            keys = block.keys(tokens.values, mean=self.value == "mean")
        second = checkerboard(tokens.grid) if tokens.is_whole else alternate(tokens.count)
        return merge(tokens, keys, surplus, second=second, value=self.value)

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

    @classmethod
    def search_space(cls, depth: int) -> dict[str, Sequence[object]]:
        """See `Plan.search_space`."""
        return {"stages": [scaled_blocks(stages, 12, depth) for stages in TRIED]}
