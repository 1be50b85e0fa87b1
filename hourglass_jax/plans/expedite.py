"""`expedite`: the same model under another plan."""

import os
from typing import TypeVar

from flax import nnx

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.files import load_plan

Model = TypeVar("Model", bound=nnx.Module)


def expedite(model: Model, plan: Plan | str | os.PathLike[str] | None) -> Model:
    """The same model under another plan: every parameter array is shared, none is copied or changed.

    What a plan derives from the parameters, the position bias of a Swin's clusters, is computed here and not in the
    calls.

    Args:
        model: a model with a `backbone`, or a backbone itself.
        plan: an `Hourglass` or another member of `plans.METHODS`, or the path of a plan file; None for the
            unexpedited model.

    Returns:
        A new model of the same class; `model` itself stays as it is.

    Raises:
        ValueError: the plan does not fit the backbone, or the model has no backbone that takes one.
    """
    fast = nnx.clone(model, variables=False)
    backbone = getattr(fast, "backbone", fast)
    if not hasattr(backbone, "plan"):
        raise ValueError(f"expected a model whose backbone takes a plan, got {type(model).__name__}")
    if isinstance(plan, str | os.PathLike):
        plan = load_plan(plan)
    if plan is not None:
        backbone.check_plan(plan)
    backbone.set_plan(plan)
    return fast
