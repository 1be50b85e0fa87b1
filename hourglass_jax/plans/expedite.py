"""`expedite`: the same model under another plan."""

import logging
import os
from typing import Protocol, TypeVar

from flax import nnx

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.files import load_plan


class TakesPlan(Protocol):
    """What `expedite` uses of a backbone."""

    @property
    def plan(self) -> Plan | None: ...

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None: ...

    def set_plan(self, plan: Plan | None) -> None: ...

    def fit_plan(self, plan: Plan, size: tuple[int, int], made_for: tuple[int, int]) -> Plan: ...


class Expeditable(Protocol):
    """A model whose `backbone` takes a plan."""

    @property
    def backbone(self) -> TakesPlan: ...


Model = TypeVar("Model", bound=Expeditable)


def expedite(model: Model, plan: Plan | str | os.PathLike[str] | None) -> Model:
    """The same model under another plan: every parameter array is shared, none is copied or changed.

    What a plan derives from the parameters, the position bias of a Swin's clusters, is computed here and not in the
    calls.

    Args:
        model: a model whose `backbone` takes a plan, or such a backbone itself.
        plan: an `Hourglass` or another `Plan`, or the path of a plan file; None for the unexpedited
            model.

    Returns:
        A new model of the same class; `model` itself stays as it is.

    Raises:
        ValueError: the plan does not fit the backbone, or the model has no backbone that takes one.
    """
    fast = nnx.clone(model, variables=False)
    try:
        check, change = fast.backbone.check_plan, fast.backbone.set_plan
    except AttributeError:
        raise ValueError(f"expected a model whose backbone takes a plan, got {type(model).__name__}") from None
    if isinstance(plan, str | os.PathLike):
        plan = load_plan(plan)
    if plan is not None:
        check(plan)
    change(plan)
    return fast


def fit_plan(model: Model, size: tuple[int, int], made_for: tuple[int, int]) -> Model:
    """The same model, its plan fitted to images of another size than it was made for, if it does not fit them.

    Args:
        model: under any plan.
        size: (rows, columns) of the images in pixels.
        made_for: the size of the images that the plan was made for.

    Returns:
        `model` itself if its plan fits; otherwise under `Plan.fitted`, with a warning in the log.

    Raises:
        ValueError: the plan cannot be made to fit.
    """
    plan = model.backbone.plan
    if plan is None:
        return model
    fitted = model.backbone.fit_plan(plan, size, made_for)
    if fitted == plan:
        return model
    logging.getLogger(__name__).warning("for images of %d x %d pixels the plan is %s", *size, fitted)
    return expedite(model, fitted)
