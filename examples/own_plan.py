"""A plan of your own: every second token in the blocks from alpha on; in the end the others get its value."""

from dataclasses import dataclass

import hourglass_jax as hj


@hj.register_plan
@dataclass(frozen=True)
class EverySecond(hj.Plan):
    """Every second token in the blocks from alpha on.

    Attributes:
        alpha: number of blocks that run on all tokens.
    """

    alpha: int

    def before_block(self, index, tokens, block):
        if index != self.alpha:
            return tokens
        values, positions = tokens.values[:, ::2], tokens.positions[:, ::2]
        return tokens.with_values(
            values, positions=positions, restore=lambda few: few.repeat(2, axis=1)[:, : tokens.count]
        )

    def counts(self, depth, token_grid):
        full = token_grid[0] * token_grid[1]
        return [full] * self.alpha + [(full + 1) // 2] * (depth - self.alpha) + [full]
