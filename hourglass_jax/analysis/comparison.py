"""One model with and without plans, on photographs: cost, speed, fidelity."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.groups import find_groups
from hourglass_jax.analysis.latency import measure
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Model, find_task
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.tasks.base import Task


@dataclass(frozen=True)
class Figures:
    """What a comparison measures.

    Attributes:
        tokens, clusters: of the image, and what is left of them where they are fewest.
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
        size: (rows, columns) of the model's input.
        first_seconds: of the first calls, with compilation, if this size was new.
        result, result_expedited: of the two models, at the model's input size.
        difference: of the results, [rows, columns] in 0..1; without axes if they are no maps.
        groups: which tokens are one where they are fewest, [H, W]; see `find_groups`.
    """

    figures: Figures
    size: tuple[int, int]
    first_seconds: tuple[float, float]
    result: Any
    result_expedited: Any
    difference: np.ndarray
    groups: np.ndarray


def compare(
    model: Model,
    plans: Sequence[Plan],
    images: Iterable[np.ndarray],
    *,
    repeats: int = 5,
    on_call: Callable[[], object] = lambda: None,
) -> Iterator[list[Comparison]]:
    """Runs `model` without a plan and with each of `plans` on one image after the other.

    Args:
        model: unexpedited.
        plans: for `expedite`.
        images: each [rows, columns, 3], prepared for the model.
        repeats: timed runs of each, in turn, after one that compiles; the median counts.
        on_call: called after every run, (1 + plans) * (repeats + 1) times for an image.

    Yields:
        For each image, a `Comparison` for each plan.

    Raises:
        ValueError: a plan does not fit the model or an image's size.
    """
    models = [model, *(expedite(model, plan) for plan in plans)]
    macs: dict[tuple[int, int], list[int]] = {}
    for image in images:
        size = image.shape[:2]
        for plan in plans:
            model.backbone.check_plan(plan, size)
        if size not in macs:
            macs[size] = [count_macs(each, size)["total"] for each in models]
        batch = jnp.asarray(image)[None]
        for each in models:
            check_memory(run_model, each, batch)
        times = measure(
            [functools.partial(run_model, each, batch) for each in models], repeats=repeats, on_call=on_call
        )
        task = find_task(model, None)
        features, outputs = run_model(model, batch)
        result = result_at_input(task, outputs, size)
        found = []
        for plan, fast, time, cost in zip(plans, models[1:], times[1:], macs[size][1:], strict=True):
            tokens, clusters = fast.backbone.token_counts(*size)
            fast_features, fast_outputs = run_model(fast, batch)
            fast_result = result_at_input(task, fast_outputs, size)
            difference = task.difference(result, fast_result)
            figures = Figures(
                tokens=tokens,
                clusters=clusters,
                gflops=macs[size][0] / 1e9,
                gflops_expedited=cost / 1e9,
                latency_ms=1e3 * times[0].median,
                latency_ms_expedited=1e3 * time.median,
                speedup=times[0].median / time.median,
                cosine=float(cosine_similarity(fast_features, features)[0]),
                mae=float(difference.mean()),
                agreement=task.agreement(result, fast_result),
            )
            groups = find_groups(model.backbone, plan, batch)
            seconds = times[0].first, time.first
            found.append(Comparison(figures, size, seconds, result, fast_result, difference, groups))
        yield found


@jax.jit
def run_model(model: Model, images: jax.Array) -> tuple[jax.Array, Any]:
    """The features that the head reads, [B, N, C], and the outputs that tasks read."""
    features = model.features(images)
    return model.head_input(features), model.decode(features, None)


def result_at_input(task: Task, outputs: Any, size: tuple[int, int]) -> Any:
    """A task's result at the model's input `size` = (rows, columns), from the outputs of one whole image."""
    return task.postprocess(jax.tree.map(np.asarray, outputs), whole_layout(size), size)
