"""The plan of each method that costs a given share of the encoder's work."""

import jax
import jax.numpy as jnp

from hourglass_jax.analysis.flops import count_function_macs
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.hourglass import expedite
from hourglass_jax.ops.grids import Grid
from hourglass_jax.tokens import TokenReduction

STEPS = 12
"""Halvings of the share: more than any method's plans can tell apart."""


def encoder_macs(backbone: ViT, size: Grid) -> int:
    """Multiply-accumulates of a backbone under its plan, up to the restored tokens of one image.

    Args:
        backbone: of a model, expedited or not.
        size: (rows, columns) of the image in pixels.
    """

    def features(backbone: ViT, images: jax.Array) -> jax.Array:
        tokens = backbone(images).tokens
        return tokens.restore(tokens.values)

    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return sum(count_function_macs(features, backbone, images).values())


def plan_within(budget: float, method: type[TokenReduction], backbone: ViT, size: Grid) -> TokenReduction:
    """The dearest plan of a method that stays within a budget, found by bisection over `method.scaled`.

    Args:
        budget: share of the unexpedited encoder's multiply-accumulates.
        method: a member of `reductions.REDUCTIONS`.
        backbone: that the plan is for.
        size: (rows, columns) of the image in pixels.

    Returns:
        The plan.

    Raises:
        ValueError: the cheapest plan that `scaled` gives costs more.
    """
    grid, full = backbone.token_grid(*size), encoder_macs(expedite(backbone, None), size)

    def plan(share: float) -> TokenReduction:
        return method.scaled(share, backbone.depth, grid)

    def cost(share: float) -> float:
        return encoder_macs(expedite(backbone, plan(share)), size) / full

    if cost(1.0) <= budget:
        return plan(1.0)
    low, high = 2.0**-STEPS, 1.0
    if (least := cost(low)) > budget:
        raise ValueError(f"{method.__name__} costs at least {least:.3f} of the encoder, more than {budget}")
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if cost(middle) <= budget else (low, middle)
    return plan(low)
