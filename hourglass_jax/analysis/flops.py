"""Multiply-accumulates that a function executes, counted in its jaxpr."""

from collections import Counter
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

from hourglass_jax.analysis.fidelity import final_features
from hourglass_jax.models.base import Encoder, Model

PARTS = ("embedding", "blocks", "clustering", "reconstruction", "head")
"""The `jax.named_scope`s by which models say what a product is for."""
FURTHER_PARTS = ("neck", "prompts", "fpn", "semantic", "rpn", "boxes", "masks")
"""Those that few models have: what follows the blocks of an encoder, what is made of prompts, and the parts of a
detector's head, which "head" leaves out."""


def count_macs(model: Model, size: tuple[int, int], *, batch: int = 1) -> dict[str, int]:
    """Counts the multiply-accumulates of one call of a model, by part.

    Matrix products and convolutions are counted, with the trip counts of their loops; elementwise work is not, nor
    what no result depends on, which the compiler removes. Of a loop that data ends one pass counts.
    XLA's own count of the compiled function is within 3% of twice this (tests/analysis/test_flops.py).

    Args:
        model: any model of this library, under any plan.
        size: (rows, columns) of the image in pixels.
        batch: number of images.

    Returns:
        Part of `PARTS`, and of those of `FURTHER_PARTS` that the model has -> multiply-accumulates; "other" where a
        product is outside all of them; and "total".

    Raises:
        ValueError: the size or the plan does not fit the model.
    """
    images = jax.ShapeDtypeStruct((batch, *size, 3), jnp.float32)
    counted = count_function_macs(lambda model, images: model(images), model, images)
    parts = {part: counted.pop(part, 0) for part in PARTS}
    parts |= {part: counted.pop(part) for part in FURTHER_PARTS if part in counted}
    if counted:
        parts["other"] = sum(counted.values())
    return {**parts, "total": sum(parts.values())}


def count_encoder_macs(model: Encoder, size: tuple[int, int]) -> int:
    """Counts the multiply-accumulates of an encoder, from one image to the head's input features.

    Args:
        model: any model of this library, or a backbone itself, under any plan.
        size: (rows, columns) of the image in pixels, multiples of the patch size.

    Raises:
        ValueError: the size or the plan does not fit the model.
    """
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    return sum(count_function_macs(final_features, model, images).values())


def count_function_macs(function: Callable[..., object], *arguments: object) -> Counter[str]:
    """Multiply-accumulates of `function(*arguments)` by the scope of `FURTHER_PARTS` or `PARTS` around them."""
    counted: Counter[str] = Counter()
    traced = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    _count(needed, "", 1, counted)
    return counted


def _count(jaxpr: core.Jaxpr, scope: str, times: int, counted: Counter[str]) -> None:
    for equation in jaxpr.eqns:
        inner_scope = f"{scope}/{equation.source_info.name_stack}"
        scopes = inner_scope.split("/")
        part = next((name for known in (FURTHER_PARTS, PARTS) for name in scopes if name in known), "other")
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = _shaped(equation.invars[0]).shape
            depth = np.prod([left[axis] for axis in contracted], dtype=int)
            counted[part] += times * int(depth) * _shaped(equation.outvars[0]).size
        elif equation.primitive.name == "conv_general_dilated":
            kernel = _shaped(equation.invars[1])
            outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
            counted[part] += times * _shaped(equation.outvars[0]).size * (kernel.size // outputs)
        trips = times * equation.params.get("length", 1) if equation.primitive.name == "scan" else times
        for inner in _executed(equation):
            _count(inner, inner_scope, trips, counted)


def _executed(equation: core.JaxprEqn) -> Iterable[core.Jaxpr]:
    """The functions inside an equation; of those that do the same on different targets the first, the CPU's."""
    if equation.params.get("branches_platforms"):
        return [equation.params["branches"][0].jaxpr]
    return core.jaxprs_in_params(equation.params)


def _shaped(operand: core.Var | core.Literal) -> ShapedArray:
    assert isinstance(operand.aval, ShapedArray)
    return operand.aval
