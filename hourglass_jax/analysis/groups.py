"""Token-to-cluster assignments, for pictures of a plan."""

import functools
from dataclasses import dataclass, field, replace
from itertools import accumulate

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.backbones.base import Backbone
from hourglass_jax.backbones.swin import Swin
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.ops.windows import merge, window_grid
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.evit import EViT
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.wrapped import WrappedPlan


@dataclass(frozen=True)
class TruncatedPlan(WrappedPlan):
    """A plan up to its smallest token count, never restored."""

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        counts = self.counts(tokens.depth, tokens.grid)[:-1]
        last = max(block for block, count in enumerate(counts) if count == min(counts))
        return tokens if index > last else super().before_block(index, tokens, block)

    def after_blocks(self, tokens: Tokens) -> Tokens:
        """See `Plan.after_blocks`."""
        return tokens


@dataclass(frozen=True)
class _Recorder(WrappedPlan):
    """A plan that keeps the clusters that enter a block, while the function that runs it is traced."""

    clusters: list[Tokens] = field(default_factory=list)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        tokens = super().before_block(index, tokens, block)
        if not tokens.is_whole:
            self.clusters.append(tokens)
        return tokens


def find_groups(backbone: Backbone, plan: Plan, images: jax.Array) -> np.ndarray:
    """For every token of an image, which of the plan's fewest tokens it is restored from most.

    Args:
        backbone: a ViT or a Swin, under any plan.
        plan: the one that is asked about.
        images: [1, rows, columns, 3], normalised.

    Returns:
        int [H, W]; equal numbers are one token. Of a Swin, for the stage that the plan is about.

    Raises:
        ValueError: the backbone is of another kind, or the plan does not fit it.
    """
    if isinstance(backbone, Swin):
        return np.asarray(_find_window_groups(backbone, images, plan=plan))
    if not isinstance(backbone, ViT):
        raise ValueError(f"groups are found in a ViT or a Swin, got a {type(backbone).__name__}")
    if isinstance(plan, EViT) and plan.restore == "reuse":
        plan = replace(plan, restore="reconstruction")  # what reuses features can restore nothing else
    groups = _find_groups(expedite(backbone, TruncatedPlan(plan)), images)
    return np.asarray(groups).reshape(backbone.token_grid(*images.shape[1:3]))


@jax.jit
def _find_groups(backbone: ViT, images: jax.Array) -> jax.Array:
    return nearest_tokens(backbone(images).tokens)[0]


@functools.partial(jax.jit, static_argnames="plan")
def _find_window_groups(backbone: Swin, images: jax.Array, *, plan: Plan) -> jax.Array:
    """The clusters of a window are its own: they are numbered window by window."""
    recorder = _Recorder(plan)
    expedite(backbone, recorder)(images)
    tokens = recorder.clusters[0]
    window = tokens.grid[0]
    grid = backbone.grids(*images.shape[1:3])[[*accumulate(backbone.config.depths)].index(tokens.depth)]
    first = tokens.count * np.arange(np.prod(window_grid(grid, window)))
    return merge((nearest_tokens(tokens) + first[:, None])[..., None], grid, window)[0, ..., 0]


def nearest_tokens(tokens: Tokens) -> jax.Array:
    """For every place of the grid, which of the image's tokens it is restored from most, int [B, H*W]."""
    identity = jnp.eye(tokens.count)
    weights = tokens.restore(jnp.broadcast_to(identity, (len(tokens.sequence), *identity.shape)))
    return jnp.argmax(weights, axis=-1)
