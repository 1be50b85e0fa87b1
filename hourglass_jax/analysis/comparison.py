"""One model with and without a plan, on photographs: cost, speed, fidelity."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.analysis.fidelity import cosine_similarity, final_features
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.latency import measure
from hourglass_jax.hourglass import Hourglass, expedite


@dataclass(frozen=True)
class Figures:
    """What a comparison measures.

    Attributes:
        tokens, clusters: of the image.
        gflops, gflops_expedited: 10^9 multiply-accumulates, the paper's unit.
        latency_ms, latency_ms_expedited: medians, without compilation.
        speedup: of the latencies.
        cosine: mean cosine similarity between the final features of the two, as far as their heads read them.
        mae: mean absolute error of the results, as the model measures their difference (0..1 at every pixel, or of
            the whole image).
        agreement: share of the pixels (or images) for which the model decides the same; None if it decides nothing.
    """

    tokens: float
    clusters: float
    gflops: float
    gflops_expedited: float
    latency_ms: float
    latency_ms_expedited: float
    speedup: float
    cosine: float
    mae: float
    agreement: float | None


@dataclass(frozen=True)
class Comparison:
    """What a comparison yields.

    Attributes:
        figures: what was measured.
        first_seconds: of the first calls, with compilation, if this size was new.
        result, result_expedited: of the two models, at the model's input size.
        difference: of the results, [rows, columns] in 0..1; without axes if they are no maps.
        assignment: the cluster of every token, [H, W].
    """

    figures: Figures
    first_seconds: tuple[float, float]
    result: np.ndarray
    result_expedited: np.ndarray
    difference: np.ndarray
    assignment: np.ndarray


def compare(
    model: nnx.Module,
    plan: Hourglass,
    images: Iterable[np.ndarray],
    *,
    repeats: int = 5,
    on_call: Callable[[], None] = lambda: None,
) -> Iterator[Comparison]:
    """Runs `model` with and without `plan` on one image after the other.

    Args:
        model: unexpedited.
        plan: for `expedite`.
        images: each [rows, columns, 3], prepared for the model.
        repeats: timed runs of each, in turn, after one that compiles; the median counts.
        on_call: called after every run, 2 * (repeats + 1) times for an image.

    Yields:
        A `Comparison` for each image.

    Raises:
        ValueError: the plan does not fit the model or an image's size.
    """
    fast = expedite(model, plan)
    macs: dict[tuple[int, int], tuple[int, int]] = {}
    for image in images:
        size = image.shape[:2]
        grid = model.backbone.token_grid(*size)
        plan.check(model.backbone.depth, grid)
        if size not in macs:
            macs[size] = (count_macs(model, size)["total"], count_macs(fast, size)["total"])
        batch = jnp.asarray(image)[None]
        slow_time, fast_time = measure(
            [lambda: _run(model, batch), lambda: _run(fast, batch)],  # noqa: B023
            repeats=repeats,
            on_call=on_call,
        )
        features, result = _run(model, batch)
        fast_features, fast_result = _run(fast, batch)
        result, fast_result = np.asarray(result[0]), np.asarray(fast_result[0])
        difference = model.difference(result, fast_result)
        figures = Figures(
            tokens=grid[0] * grid[1],
            clusters=plan.clusters[0] * plan.clusters[1],
            gflops=macs[size][0] / 1e9,
            gflops_expedited=macs[size][1] / 1e9,
            latency_ms=1e3 * slow_time.median,
            latency_ms_expedited=1e3 * fast_time.median,
            speedup=slow_time.median / fast_time.median,
            cosine=float(cosine_similarity(fast_features, features)[0]),
            mae=float(difference.mean()),
            agreement=_agreement(model, result, fast_result),
        )
        assignment = _assignment(expedite(model.backbone, replace(plan, beta=None, reconstruct="logits")), batch)
        yield Comparison(
            figures,
            (slow_time.first, fast_time.first),
            result,
            fast_result,
            difference,
            np.asarray(assignment).reshape(grid),
        )


@jax.jit
def _run(model: nnx.Module, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The final features that the head reads, [B, N, C], and the model's result."""
    features = model.features(images) if hasattr(model, "features") else model.backbone(images)
    output = model.decode(features, images.shape[1:3])
    return final_features(model)(features), model.result(output)


def _agreement(model: nnx.Module, a: np.ndarray, b: np.ndarray) -> float | None:
    return float(np.mean(model.decide(a) == model.decide(b))) if hasattr(model, "decide") else None


@jax.jit
def _assignment(backbone: nnx.Module, images: jax.Array) -> jax.Array:
    """The nearest cluster of every token, [H*W], of a backbone that leaves the reconstruction to its head."""
    tokens = backbone(images).tokens
    identity = jnp.eye(tokens.values.shape[1])[None]
    return jnp.argmax(tokens.restore(identity)[0], axis=-1)
