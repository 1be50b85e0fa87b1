"""Plans of equal cost: the settings of a method for a share of the encoder's multiply-accumulates."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from hourglass_jax.analysis.flops import count_encoder_macs, count_macs
from hourglass_jax.models.base import Encoder, Model
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.registry import find_method

STEPS = 4096
"""Number of steps in which `Plan.scaled` is searched."""
TOLERANCE = 5e-4
"""The search ends at a cost that is at most this much below the share."""


class Costs:
    """The cost of plans: executed multiply-accumulates of the encoder, as a share of those without a plan.

    Nothing is run, and every plan is counted once.

    Args:
        model: a model of this library, or a backbone itself.
        size: (rows, columns) of the image in pixels, multiples of the patch size.

    Attributes:
        token_grid: (H, W) of such an image's tokens, of a window's in a backbone that works in windows.
        depth: blocks of the backbone.
        original: multiply-accumulates without a plan.

    Raises:
        ValueError: the size does not fit the model, or no plan fits its backbone.
    """

    def __init__(self, model: Encoder, size: tuple[int, int]) -> None:
        backbone = model.backbone
        self.token_grid, self.depth = backbone.plan_grid(*size), backbone.depth
        self.original = count_encoder_macs(expedite(model, None), size)
        self._share = functools.cache(lambda plan: count_encoder_macs(expedite(model, plan), size) / self.original)

    def __call__(self, plan: Plan) -> float:
        """The cost of a plan as a share, including clustering, merging and reconstruction."""
        return self._share(plan)

    def solve(self, method: str, share: float, fields: Mapping[str, object] | None = None) -> Plan:
        """The method's most expensive plan that does not exceed a share.

        Args:
            method: a name that `find_method` knows.
            share: of the encoder's multiply-accumulates, in (0, 1].
            fields: fields of the plan that replace the method's defaults.

        Returns:
            The plan.

        Raises:
            ValueError: the method is unknown, the share is out of range or below the method's cheapest plan, or
                `fields` do not fit the method.
        """
        cls = find_method(method)
        if not 0 < share <= 1:
            raise ValueError(f"a budget must be a share in (0, 1], got {share}")

        @functools.cache
        def plan_at(step: int) -> Plan:
            scaled = cls.scaled(step / STEPS, self.depth, self.token_grid)
            return replace(scaled, **(fields or {}))

        step = _last_step(STEPS, lambda step: self(plan_at(step)) - share, round(share * STEPS) or 1)
        if step is None:
            cheapest = self(plan_at(1))
            raise ValueError(
                f"{cls.__name__} cannot do with {share:g} of the encoder's cost: at least {cheapest:.3f}"
            )
        return plan_at(step)


def share_for(model: Model, faster: float, size: tuple[int, int]) -> float:
    """The share of the encoder's multiply-accumulates at which the whole model has so many times fewer.

    Args:
        model: whose head stays as it is.
        faster: by how much its multiply-accumulates are to fall; at least 1.
        size: (rows, columns) of the image in pixels.

    Raises:
        ValueError: `faster` is below 1, or more than the model without its encoder would give.
    """
    if not faster >= 1:
        raise ValueError(f"a model is made at least 1 times as fast, got {faster}")
    model = expedite(model, None)
    whole, encoder = count_macs(model, size)["total"], count_encoder_macs(model, size)
    share = 1 - (whole - whole / faster) / encoder
    if share <= 0:
        raise ValueError(
            f"a plan makes the encoder faster, {encoder / whole:.0%} of this model: not {faster:g} times in all"
        )
    return share


def at_budget(model: Encoder, method: str, share: float, size: tuple[int, int]) -> Plan:
    """`Costs.solve` for a single plan.

    Args:
        model: a model of this library, or a backbone itself.
        method: a name that `find_method` knows.
        share: of the encoder's multiply-accumulates, in (0, 1].
        size: (rows, columns) of the image in pixels, multiples of the patch size.

    Returns:
        The method's most expensive plan that does not exceed `share`.

    Raises:
        ValueError: see `Costs.solve`.
    """
    return Costs(model, size).solve(method, share)


def _last_step(count: int, excess: Callable[[int], float], guess: int) -> int | None:
    """The last step of 1 .. count at which an increasing function is not above 0; None if there is none.

    Regula falsi with the Illinois rule: the function is expensive, and nearly linear from -1 to 1. The search ends
    early at a value within `TOLERANCE` below 0.
    """
    low, high = 0, count + 1
    below, above, moved = -1.0, 1.0, None
    while high - low > 1 and below < -TOLERANCE:
        value = excess(guess)
        if value <= 0:
            low, below, above = guess, value, above / (2 if moved == "low" else 1)
            moved = "low"
        else:
            high, above, below = guess, value, below / (2 if moved == "high" else 1)
            moved = "high"
        guess = round(low + (high - low) * below / (below - above))
        guess = min(high - 1, max(low + 1, guess))
    return low or None
