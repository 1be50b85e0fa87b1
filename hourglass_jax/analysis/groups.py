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
    """A plan that records the clusters entering a block, while the function that runs it is traced."""

    clusters: list[Tokens] = field(default_factory=list)

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        tokens = super().before_block(index, tokens, block)
        if not tokens.is_whole:
            self.clusters.append(tokens)
        return tokens


def find_groups(backbone: Backbone, plan: Plan, images: jax.Array) -> np.ndarray:
    """Assigns the tokens of an image to groups, at the smallest token count of a plan.

    The group of a token is the reduced token with the largest weight in its restoration.

    Args:
        backbone: a ViT or a Swin, under any plan.
        plan: the plan to inspect.
        images: [1, rows, columns, 3], normalised.

    Returns:
        int [H, W], the group of every token; for a Swin, in the stage that the plan changes.

    Raises:
        ValueError: the backbone is neither a ViT nor a Swin, or the plan does not fit it.
    """
    if isinstance(backbone, Swin):
        return np.asarray(_find_window_groups(backbone, images, plan=plan))
    if not isinstance(backbone, ViT):
        raise ValueError(f"groups are found in a ViT or a Swin, got a {type(backbone).__name__}")
    if isinstance(plan, EViT) and plan.restore == "reuse":
        plan = replace(plan, restore="reconstruction")  # "reuse" can restore features only
    groups = _find_groups(expedite(backbone, TruncatedPlan(plan)), images)
    return np.asarray(groups).reshape(backbone.token_grid(*images.shape[1:3]))


@jax.jit
def _find_groups(backbone: ViT, images: jax.Array) -> jax.Array:
    return nearest_tokens(backbone(images).tokens)[0]


@functools.partial(jax.jit, static_argnames="plan")
def _find_window_groups(backbone: Swin, images: jax.Array, *, plan: Plan) -> jax.Array:
    """Groups of a Swin: clusters never cross windows, so they are numbered window by window."""
    recorder = _Recorder(plan)
    expedite(backbone, recorder)(images)
    tokens = recorder.clusters[0]
    window = tokens.grid[0]
    grid = backbone.grids(*images.shape[1:3])[[*accumulate(backbone.config.depths)].index(tokens.depth)]
    first = tokens.count * np.arange(np.prod(window_grid(grid, window)))
    return merge((nearest_tokens(tokens) + first[:, None])[..., None], grid, window)[0, ..., 0]


def nearest_tokens(tokens: Tokens) -> jax.Array:
    """For every position of the grid, the token with the largest weight in its restoration, int [B, H*W]."""
    identity = jnp.eye(tokens.count)
    weights = tokens.restore(jnp.broadcast_to(identity, (len(tokens.sequence), *identity.shape)))
    return jnp.argmax(weights, axis=-1)
