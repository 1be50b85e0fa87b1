"""Token Merging (ToMe, arXiv 2210.09461): in every block, between attention and MLP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import jax
import jax.numpy as jnp

from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.merging import alternate
from hourglass_jax.plans.base import Plan, Tokens
from hourglass_jax.plans.checks import check_share, is_integer
from hourglass_jax.plans.merging import merge


@dataclass(frozen=True)
class TokenMerging(Plan):
    """Every block merges its most similar tokens, compared by the mean of their keys over the heads.

    Class and register tokens take part in the alternating split, as in the official code, but never merge. No block
    merges more than half of its tokens. In the end every token of the grid gets the value of its group.

    Attributes:
        keep: share of its tokens that every block keeps; None if `merged` is given instead.
        merged: r, number of tokens that every block merges, or one number per block (further blocks merge none).
        schedule: "constant", or "decreasing": from twice `merged` in the first block to none in the last.
        proportional: whether attention weights a merged token by the number of its members.

    Raises:
        ValueError: a field is out of range, or both or neither of `keep` and `merged` are given.

    Source: facebookresearch/ToMe, tome/patch/timm.py and tome/utils.py (`parse_r`).
    """

    keep: float | None = None
    merged: int | tuple[int, ...] | None = None
    schedule: Literal["constant", "decreasing"] = "constant"
    proportional: bool = True

    def __post_init__(self) -> None:
        if (self.keep is None) == (self.merged is None):
            raise ValueError(f"expected either keep or merged, got keep={self.keep!r} and merged={self.merged!r}")
        if self.keep is not None:
            check_share("keep", self.keep)
        if isinstance(self.merged, list):
            object.__setattr__(self, "merged", tuple(self.merged))
        numbers = self.merged if isinstance(self.merged, tuple) else (self.merged or 0,)
        if not all(map(is_integer, numbers)):
            raise ValueError(f"merged must be integers of at least 0, got {self.merged!r}")
        if self.schedule not in ("constant", "decreasing"):
            raise ValueError(f"schedule must be 'constant' or 'decreasing', got {self.schedule!r}")
        if self.schedule == "decreasing" and not is_integer(self.merged):
            raise ValueError("schedule='decreasing' needs merged as one number")

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        if isinstance(self.merged, tuple) and len(self.merged) > depth:
            raise ValueError(
                f"merged must name at most the backbone's {depth} blocks, got {len(self.merged)} numbers"
            )

    def attention(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None
    ) -> jax.Array:
        """See `Plan.attention`."""
        return super().attention(query, key, value, key_bias if self.proportional else None)

    def after_attention(self, index: int, tokens: Tokens, query: jax.Array, key: jax.Array) -> Tokens:
        """See `Plan.after_attention`."""
        before, after = self._block_counts(tokens.depth, tokens.grid)[index : index + 2]
        if after == before:
            return tokens
        special = tokens.special
        return merge(
            tokens,
            _mean_over_heads(key)[:, special:],
            before - after,
            second=alternate(before, offset=special),
            in_order=special > 0,
        )

    def counts(self, depth: int, token_grid: Grid) -> list[int]:
        """See `Plan.counts`."""
        left = self._block_counts(depth, token_grid)
        return [*left[:-1], left[0]]

    def _block_counts(self, depth: int, token_grid: Grid) -> list[int]:
        """Number of tokens before every block, and after the last one."""
        left = [token_grid[0] * token_grid[1]]
        for index in range(depth):
            before = left[-1]
            wanted = round(before * (1 - self.keep)) if self.keep is not None else self._merges(index, depth)
            left.append(before - min(wanted, before // 2))
        return left

    def _merges(self, index: int, depth: int) -> int:
        merged = self.merged or 0
        if isinstance(merged, tuple):
            return merged[index] if index < len(merged) else 0
        if self.schedule == "decreasing":
            return int(2 * merged - 2 * merged / max(depth - 1, 1) * index)
        return merged

    @classmethod
    def scaled(cls, share: float, depth: int, token_grid: Grid) -> Self:
        """Every block keeps between half and all of its tokens; see `Plan.scaled`."""
        return cls(keep=(1 + share) / 2)


def _mean_over_heads(key: jax.Array) -> jax.Array:
    """[B, heads, D, N] -> [B, N, D], float32, as a product: XLA's reduction takes 40 times as long on CPU."""
    heads = key.shape[1]
    weights = jnp.full(heads, 1 / heads, key.dtype)
    return jnp.einsum("bhdn,h->bnd", key, weights, precision="highest", preferred_element_type=jnp.float32)
