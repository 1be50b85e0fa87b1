"""Which tokens a plan makes one, for pictures of it."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.backbones.layers import Block
from hourglass_jax.backbones.swin import Swin
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan, Tokens
from hourglass_jax.plans.expedite import expedite


@dataclass(frozen=True)
class Unrestored(Plan):
    """A plan to where its tokens are fewest; from there on they stay as few."""

    plan: Plan

    def check(self, depth: int, token_grid: Grid | None = None) -> None:
        """See `Plan.check`."""
        self.plan.check(depth, token_grid)

    def embed(self, images: jax.Array, backbone: ViT) -> Tokens:
        """See `Plan.embed`."""
        return self.plan.embed(images, backbone)

    def before_block(self, index: int, tokens: Tokens, *, depth: int, token_grid: Grid) -> Tokens:
        """See `Plan.before_block`."""
        counts = self.plan.counts(depth, token_grid)[:depth]
        last = max(block for block in range(depth) if counts[block] == min(counts))
        return tokens if index > last else self.plan.before_block(index, tokens, depth=depth, token_grid=token_grid)

    def run_block(
        self, index: int, block: Block, special: jax.Array, tokens: Tokens, *, depth: int, token_grid: Grid
    ) -> tuple[jax.Array, Tokens]:
        """See `Plan.run_block`."""
        return self.plan.run_block(index, block, special, tokens, depth=depth, token_grid=token_grid)


def find_groups(backbone: ViT | Swin, plan: Plan, images: jax.Array) -> np.ndarray:
    """For every token of an image, which of the plan's fewest tokens it is restored from most.

    Args:
        backbone: under any plan.
        plan: the one that is asked about.
        images: [1, rows, columns, 3], normalised.

    Returns:
        int [H, W]; equal numbers are one token. Of a Swin, for the stage that the plan is about.
    """
    if isinstance(backbone, Swin):
        return np.asarray(_window_groups(expedite(backbone, plan), images)[0])
    if getattr(plan, "restore", None) == "reuse":
        plan = replace(plan, restore="reconstruction")  # what reuses features can restore nothing else
    groups = _groups(expedite(backbone, Unrestored(plan)), images)
    return np.asarray(groups).reshape(backbone.token_grid(*images.shape[1:3]))


@jax.jit
def _groups(backbone: ViT, images: jax.Array) -> jax.Array:
    tokens = backbone(images).tokens
    identity = jnp.eye(tokens.values.shape[1])[None]
    return jnp.argmax(tokens.restore(identity)[0], axis=-1)


@jax.jit
def _window_groups(backbone: Swin, images: jax.Array) -> jax.Array:
    return backbone.assignment(images)
