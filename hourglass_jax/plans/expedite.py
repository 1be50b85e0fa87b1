"""`expedite`: the same model under another plan."""

import logging
import os
from typing import Protocol, TypeVar

from flax import nnx

from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.files import load_plan
from hourglass_jax.plans.presets import PRESETS, HasShape, Preset, preset
from hourglass_jax.plans.recommended import HasWindows, recommended


class TakesPlan(HasShape, HasWindows, Protocol):
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


def expedite(model: Model, plan: Plan | Preset | str | os.PathLike[str] | None) -> Model:
    """Puts a model under a plan: the new model shares every parameter array, none is copied or changed.

    Values that a plan derives from the parameters, such as the position bias of a Swin's clusters, are computed
    here and not in the calls.

    Args:
        model: a model whose `backbone` takes a plan, or such a backbone itself.
        plan: an `Hourglass` or another `Plan`, a preset or its name, the path of a plan file, or "recommended", the
            plan to begin with (`plans.recommended`); None for the unexpedited model.

    Returns:
        A new model of the same class; `model` itself does not change.

    Raises:
        ValueError: the plan does not fit the backbone, a preset is another model's, there is none of that name and
            no such file, or the model has no backbone that takes a plan.

    >>> import hourglass_jax as hj
    >>> from flax import nnx
    >>> from hourglass_jax.backbones.vit import ViT, ViTConfig
    >>> vit = ViT(ViTConfig(width=8, depth=2, heads=1, patch_size=16), rngs=nnx.Rngs(0))
    >>> fast = expedite(vit, hj.Hourglass(alpha=1, clusters=(8, 8)))
    >>> vit.token_counts(224, 224), fast.token_counts(224, 224)
    ((196, 196), (196, 64))
    >>> fast.blocks[0].attention.qkv.kernel.get_value() is vit.blocks[0].attention.qkv.kernel.get_value()
    True
    """
    fast = nnx.clone(model, variables=False)
    try:
        check, change = fast.backbone.check_plan, fast.backbone.set_plan
    except AttributeError:
        raise ValueError(f"expected a model whose backbone takes a plan, got {type(model).__name__}") from None
    if isinstance(plan, str | os.PathLike):
        plan = _named(str(plan), fast.backbone)
    if isinstance(plan, Preset):
        plan.check(fast.backbone)
        plan = plan.plan
    if plan is not None:
        check(plan)
    change(plan)
    return fast


def _named(name: str, backbone: TakesPlan) -> Plan | Preset:
    if name == "recommended":
        return recommended(backbone)
    is_file = name not in PRESETS and (os.path.exists(name) or name.endswith(".json"))
    return load_plan(name) if is_file else preset(name)


def fit_plan(model: Model, size: tuple[int, int], made_for: tuple[int, int]) -> Model:
    """Adapts a model's plan to images of another size, if it does not fit them.

    Args:
        model: a model under any plan.
        size: (rows, columns) of the images in pixels.
        made_for: (rows, columns) of the images that the plan was made for.

    Returns:
        `model` itself if its plan fits; otherwise the model under `Plan.fitted`, with a warning in the log.

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
