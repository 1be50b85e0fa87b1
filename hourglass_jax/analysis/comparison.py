"""Comparison of a model with and without plans, on photographs: cost, speed, fidelity."""

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.flops import count_macs
from hourglass_jax.analysis.groups import find_groups
from hourglass_jax.analysis.latency import measure
from hourglass_jax.imaging.windows import whole_layout
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Model, PromptedVisionModel, find_task
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.tasks.base import Task

POINTS = 8
"""Along a side of the grid of points at which the masks of a model that answers prompts are compared."""


@dataclass(frozen=True)
class Figures:
    """The measurements of a comparison.

    Attributes:
        tokens, clusters: number of image tokens, and the smallest number over all blocks.
        gflops, gflops_expedited: 10^9 multiply-accumulates, the paper's unit.
        latency_ms, latency_ms_expedited: median latencies, without compilation.
        speedup: ratio of the two latencies.
        cosine: mean cosine similarity of the two models' final features, as their heads read them.
        mae: mean of `Task.difference`, 0..1.
        agreement: share of the pixels (or images) with equal decisions, `Task.agreement`; None if the task makes no
            decisions.
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
class PromptedFigures(Figures):
    """What a comparison measures of a model that answers prompts.

    Latencies are those of the encoder, and `agreement` is the mean overlap of the masks at a grid of points.

    Attributes:
        decode_ms: median latency of the answer to one point.
    """

    decode_ms: float


@dataclass(frozen=True)
class Comparison:
    """The outcome of a comparison on one image.

    Attributes:
        figures: the measurements.
        size: (rows, columns) of the model's input.
        first_seconds: durations of the two first calls, including compilation if the size is new.
        result, result_expedited: results of the two models, at the model's input size.
        difference: difference of the results, [rows, columns] in 0..1; a scalar array if they are not maps.
        groups: the group of every token, [H, W]; see `find_groups`.
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
    task: str | None = None,
    repeats: int = 5,
    on_call: Callable[[], object] = lambda: None,
) -> Iterator[list[Comparison]]:
    """Runs a model without a plan and with each of `plans` on one image after the other.

    Args:
        model: unexpedited.
        plans: for `expedite`.
        images: each [rows, columns, 3], prepared for the model.
        task: whose results are compared, by default the model's first one.
        repeats: timed runs of each, in turn, after one that compiles; the median counts.
        on_call: called after every run, (1 + plans) * (repeats + 1) times for an image.

    Yields:
        For each image, a `Comparison` for each plan.

    Raises:
        ValueError: a plan does not fit the model or an image's size, or the model has no such task.
    """
    chosen = find_task(model, task)
    models = [model, *(expedite(model, plan) for plan in plans)]
    macs: dict[tuple[int, int], list[int]] = {}
    for image in images:
        size = image.shape[:2]
        for plan in plans:
            model.backbone.check_plan(plan, size)
        if size not in macs:
            macs[size] = [count_macs(variant, size)["total"] for variant in models]
        batch = jnp.asarray(image)[None]
        prompts = None
        if isinstance(model, PromptedVisionModel):
            prompts = model.drawn_prompts(1, _content(image), POINTS)
        timed = run_model if prompts is None else _encode
        for each in models:
            check_memory(run_model, each, batch, prompts)
        times = measure(
            [functools.partial(timed, each, batch) for each in models], repeats=repeats, on_call=on_call
        )
        features, outputs = run_model(model, batch, prompts)
        result = result_at_input(chosen, outputs, size)
        found = []
        for plan, fast, time, cost in zip(plans, models[1:], times[1:], macs[size][1:], strict=True):
            tokens, clusters = fast.backbone.token_counts(*size)
            fast_features, fast_outputs = run_model(fast, batch, prompts)
            fast_result = result_at_input(chosen, fast_outputs, size)
            difference = chosen.difference(result, fast_result)
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
                agreement=chosen.agreement(result, fast_result),
            )
            if isinstance(model, PromptedVisionModel):
                figures = PromptedFigures(**vars(figures), decode_ms=_decode_ms(model, batch, size, repeats))
            groups = find_groups(model.backbone, plan, batch)
            seconds = times[0].first, time.first
            found.append(Comparison(figures, size, seconds, result, fast_result, difference, groups))
        yield found


@jax.jit
def run_model(model: Model, images: jax.Array, prompts: Any = None) -> tuple[jax.Array, Any]:
    """The features that the head reads, [B, N, C], and the outputs that tasks read.

    Of a model that answers prompts, those to `prompts`, by default a grid of points.
    """
    features = model.features(images)
    if isinstance(model, PromptedVisionModel):
        prompted = cast(PromptedVisionModel, model)
        if prompts is None:
            prompts = prompted.drawn_prompts(len(images), (images.shape[1], images.shape[2]), POINTS)
        return model.head_input(features), prompted.decode(features, prompts, None)
    return model.head_input(features), model.decode(features, None)


@jax.jit
def _encode(model: Model, images: jax.Array) -> Any:
    return model.features(images)


@jax.jit
def _answer(model: PromptedVisionModel, features: Any, prompts: Any) -> Any:
    return model.decode(features, prompts, None)


def _decode_ms(model: PromptedVisionModel, images: jax.Array, size: tuple[int, int], repeats: int) -> float:
    """Median milliseconds of the answer to one point about an encoded image."""
    features, prompts = _encode(model, images), model.drawn_prompts(1, size, 1)
    [time] = measure([functools.partial(_answer, model, features, prompts)], repeats=repeats)
    return 1e3 * time.median


def _content(image: np.ndarray) -> tuple[int, int]:
    """(rows, columns) of what a prepared image was filled up to a square from, with zeros."""
    rows, columns = (np.flatnonzero(image.any(axis=axes)) for axes in ((1, 2), (0, 2)))
    return (int(rows[-1]) + 1, int(columns[-1]) + 1) if len(rows) else image.shape[:2]


def result_at_input(task: Task, outputs: Any, size: tuple[int, int]) -> Any:
    """A task's result at the model's input `size` = (rows, columns), from the outputs of one whole image."""
    return task.postprocess(jax.tree.map(np.asarray, outputs), whole_layout(size), size)
