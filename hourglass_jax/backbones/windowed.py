"""What a ViT has that attends inside windows: their side, and the relative positions of every block."""

from dataclasses import dataclass

import jax
from flax import nnx

from hourglass_jax.checks import check_config
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.relative_position import grid_attention
from hourglass_jax.plans.base import Tokens
from hourglass_jax.plans.windowed import cells_of


@dataclass(frozen=True)
class Windows:
    """Attention inside windows, with decomposed relative positions, as SAM's encoder has it.

    A ViT of this kind has no special tokens, and no norm after its blocks.

    Attributes:
        side: of a window, in tokens; maps are filled up to whole windows below and on the right.
        global_blocks: the blocks, from 0 on, that attend over the whole map.
    """

    side: int = 14
    global_blocks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_config(self, zero=("global_blocks",))

    def check(self, depth: int, special_tokens: int) -> None:
        """Raises ValueError if a ViT of this depth cannot have such windows."""
        if special_tokens:
            raise ValueError(f"special_tokens must be 0 in a ViT with windows, got {special_tokens}")
        if any(block >= depth for block in self.global_blocks):
            raise ValueError(f"global_blocks must be less than the {depth} blocks, got {self.global_blocks}")


def no_norm(x: jax.Array) -> jax.Array:
    """What stands in place of the norm after the blocks."""
    return x


class RelativePositions(nnx.Module):
    """The relative positions of one block, and the attention by them.

    Attributes:
        rows, columns: [2 h - 1, D] and [2 w - 1, D], a vector for every offset in a window or map of h x w tokens.
    """

    def __init__(self, windows: Windows, grid: Grid, index: int, width: int, *, rngs: nnx.Rngs) -> None:
        """Tables of block `index` for maps of `grid` tokens, and heads of `width` channels."""
        self.side, self.is_global = windows.side, index in windows.global_blocks
        height, across = grid if self.is_global else (windows.side, windows.side)
        normal = nnx.initializers.truncated_normal(0.02)
        self.rows = nnx.Param(normal(rngs.params(), (2 * height - 1, width)))
        self.columns = nnx.Param(normal(rngs.params(), (2 * across - 1, width)))

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, tokens: Tokens, bias: jax.Array
    ) -> jax.Array:
        """What attention mixes.

        Args:
            query, key, value: [B, heads, D, M].
            tokens: whose they are, of a map or of its clusters, which are one too.
            bias: of the projection that made query, key and value, [3 * heads * D]: all that it makes of padding.

        Returns:
            [B, M, heads, D].
        """
        cells, side = cells_of(tokens, self.side)
        return grid_attention(
            query,
            key,
            value,
            grid=cells,
            rows=self.rows[...],
            columns=self.columns[...],
            window=None if self.is_global else side,
            padding=None if self.is_global else bias.reshape(3, *query.shape[1:3]),
        )
