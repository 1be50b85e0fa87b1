"""Plans at equal cost: every method's own settings for a share of the encoder's multiply-accumulates."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import replace

from hourglass_jax.analysis.flops import count_encoder_macs
from hourglass_jax.models.base import Encoder
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.registry import find_method

FINENESS = 4096
"""Steps that a method's knob is turned in."""
NEAR = 5e-4
"""A cost so little below its share is near enough."""


class Costs:
    """What plans cost a model's encoder: executed multiply-accumulates, as a share of those without a plan.

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
        """The share that a plan costs; clustering, merging and reconstruction included."""
        return self._share(plan)

    def solve(self, method: str, share: float, fields: Mapping[str, object] | None = None) -> Plan:
        """A method's plan whose cost is nearest to a share, and not above it.

        Args:
            method: a name that `find_method` knows.
            share: of the encoder's multiply-accumulates, in (0, 1].
            fields: what the plan has in place of what the method would choose.

        Returns:
            A plan of that kind.

        Raises:
            ValueError: an unknown method, a share out of range or below the method's cheapest plan, or `fields` do
                not fit the method.
        """
        cls = find_method(method)
        if not 0 < share <= 1:
            raise ValueError(f"a budget must be a share in (0, 1], got {share}")

        @functools.cache
        def plan_at(step: int) -> Plan:
            scaled = cls.scaled(step / FINENESS, self.depth, self.token_grid)
            return replace(scaled, **(fields or {}))

        step = _last(FINENESS, lambda step: self(plan_at(step)) - share, round(share * FINENESS) or 1)
        if step is None:
            cheapest = self(plan_at(1))
            raise ValueError(
                f"{cls.__name__} cannot do with {share:g} of the encoder's cost: at least {cheapest:.3f}"
            )
        return plan_at(step)


def at_budget(model: Encoder, method: str, share: float, size: tuple[int, int]) -> Plan:
    """`Costs.solve` for a single plan.

    Args:
        model: a model of this library, or a backbone itself.
        method: a name that `find_method` knows.
        share: of the encoder's multiply-accumulates, in (0, 1].
        size: (rows, columns) of the image in pixels, multiples of the patch size.

    Returns:
        The method's plan whose cost is nearest to `share`, and not above it.

    Raises:
        ValueError: see `Costs.solve`.
    """
    return Costs(model, size).solve(method, share)


def _last(count: int, excess: Callable[[int], float], guess: int) -> int | None:
    """The last of 1 .. count at which a rising function is not above 0; None if there is none.

    Regula falsi with the Illinois rule, from a guess: the function is nearly a straight line from -1 to 1, and
    expensive. A place where it is within `NEAR` of 0 will do.
    """
    low, high = 0, count + 1
    below, above, moved = -1.0, 1.0, None
    while high - low > 1 and below < -NEAR:
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
