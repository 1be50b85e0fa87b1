"""The search for a plan: which method, with which settings, is best for a model and images without labels.

It goes from coarse to fine. Every method's plan for the target is tried on few images; the best methods are kept,
and their settings are changed one at a time; what is left is measured on all images that are tuned on. Temperatures
are continuous: they follow the gradient of the fidelity through the expedited backbone. The other half of the
images is held out for the final figure. The weights are never touched.
"""

import contextlib
import functools
import hashlib
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax

from hourglass_jax.analysis.fidelity import cosine_similarity, final_features
from hourglass_jax.analysis.inspection import inspect_block
from hourglass_jax.analysis.latency import measure
from hourglass_jax.imaging.images import Preprocessing, center_crop_square
from hourglass_jax.io.journal import Journal
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Encoder, Model
from hourglass_jax.ops.clustering import auto_temperature
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.files import plan_fields
from hourglass_jax.plans.registry import METHODS, find_method
from hourglass_jax.search.budget import Costs

FEW = 4
"""Images that candidates are told apart by: with fewer, settings are chosen that suit but these."""
KEPT, HOPELESS = 3, 3.0
"""So many methods have their settings changed; none whose cosine is so many times farther from 1 than the best."""
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Costs that are tried for a wanted cosine, from safe to cheap."""
SPREAD = 0.02
"""A cosine so far below the mean is worth a warning."""
AROUND = 0.12
"""How far a plot looks to cheaper and dearer plans."""
STEPS, RATE = 8, 0.3
"""Of Adam, on the logarithm of a temperature."""

GAIN = 1e-4
"""Of the cosine, for a setting to be changed."""
LEFT_ALONE = {"reconstruct"}
"""Fields that say what a head sees."""


Kind = Literal["gflops", "speedup", "cosine"]


@dataclass(frozen=True)
class Target:
    """What is wanted.

    Attributes:
        kind: "gflops": at most this share of the encoder's multiply-accumulates, at the best cosine; "speedup": at
            least this one, measured, at the best cosine; "cosine": at least this mean cosine, at the least cost.
        value: the share, the speed-up or the cosine.

    Raises:
        ValueError: the value is out of range.
    """

    kind: Kind
    value: float

    def __post_init__(self) -> None:
        if self.kind == "speedup" and not 1 < self.value < np.inf:
            raise ValueError(f"a wanted speed-up must be more than 1, got {self.value:g}")
        if self.kind != "speedup" and not 0 < self.value < 1:
            what = "share of the multiply-accumulates" if self.kind == "gflops" else "cosine"
            raise ValueError(f"a wanted {what} must be between 0 and 1, got {self.value:g}")


@dataclass(frozen=True)
class Candidate:
    """A plan that was measured.

    Attributes:
        plan: as it ran.
        share: of the encoder's multiply-accumulates.
        cosines: of the final features with the original's, by photograph.
        speedup: of the whole model; None if it was not asked for.
    """

    plan: Plan
    share: float
    cosines: dict[str, float]
    speedup: float | None = None

    @property
    def method(self) -> str:
        """The name of the plan's class."""
        return type(self.plan).__name__

    @property
    def speed(self) -> float:
        """The speed-up as a number, 0 if it was not asked for."""
        return self.speedup or 0.0

    @property
    def cosine(self) -> float:
        """Mean of the photographs."""
        return float(np.mean(list(self.cosines.values())))

    @property
    def worst(self) -> float:
        """Of the worst photograph."""
        return min(self.cosines.values())


@dataclass(frozen=True)
class Tuned:
    """What a search found.

    Attributes:
        best: the plan, and its cosines on the photographs that it was chosen by.
        held_out: its cosines on the others.
        finalists: the best of each method that was left, by what was wanted; `best` is the first.
        warnings: sentences.
    """

    best: Candidate
    held_out: dict[str, float]
    finalists: tuple[Candidate, ...]
    warnings: tuple[str, ...]


class NoPlan(Exception):
    """No plan meets the target; says in a sentence how near the best one comes."""


class Tuner:
    """Searches plans for one model, on photographs of one size.

    Args:
        model: unexpedited.
        photographs: name -> uint8 [rows, columns, 3], at least two; the largest square in the middle is used. Every
            other one is held out.
        journal: file of lines of JSON, what is measured and then every measurement; made if it is missing.
        weights: what tells the model's weights from others, such as the hash of its file.
        preprocessing: how photographs are prepared; by default as the model's config says.
        on_plan: called with every plan that is measured or looked up.

    Attributes:
        candidates: the plans that were measured, with the photographs that they were measured on.

    Raises:
        ValueError: there are fewer than two photographs, one is too small, or the journal is of another search, or
            damaged other than at its end.
    """

    def __init__(
        self,
        model: Model,
        photographs: Mapping[str, np.ndarray],
        journal: Path,
        *,
        weights: str,
        preprocessing: Preprocessing | None = None,
        on_plan: Callable[[Plan], object] = lambda plan: None,
    ) -> None:
        if len(photographs) < 2:
            raise ValueError(f"expected at least 2 photographs, as some are held out; got {len(photographs)}")
        preprocessing = preprocessing or model.config.preprocessing
        preprocessing = preprocessing.at(preprocessing.side).whole_patches(model.config.backbone.patch_size)
        self.model, self.size, self._on_plan = expedite(model, None), preprocessing.shape[0], on_plan
        self._images = {name: preprocessing(center_crop_square(each))[None] for name, each in photographs.items()}
        names = list(photographs)
        self.tuned_on, self.held_out = tuple(names[::2]), tuple(names[1::2])
        self.costs = Costs(model, (self.size, self.size))
        header = {
            "model": weights,
            "size": self.size,
            "photographs": {
                name: hashlib.sha256(image.data).hexdigest()[:12] for name, image in self._images.items()
            },
        }
        self._journal = Journal(journal, header, _entry, "of another search")
        self._known = dict(self._journal.entries)
        self._original = functools.cache(self._features_of)
        self.candidates: dict[Plan, Candidate] = {}

    def __enter__(self) -> Self:
        self._journal.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._journal.__exit__(kind, error, trace)

    def measure(self, plan: Plan, names: Sequence[str]) -> Candidate:
        """The cosines of a plan on some of the photographs; what is known is not measured again."""
        cosines = self._cosines(plan, names)
        known = self.candidates.get(plan)
        self.candidates[plan] = Candidate(
            plan, self.costs(plan), {**(known.cosines if known else {}), **cosines}, known and known.speedup
        )
        return replace(self.candidates[plan], cosines=cosines)

    def _cosines(self, plan: Plan, names: Sequence[str]) -> dict[str, float]:
        self._on_plan(plan)
        fast, cosines = expedite(self.model, plan), {}
        for name in names:
            [cosines[name]] = self._once(
                {"plan": plan_fields(plan), "photograph": name},
                lambda name=name: [float(_cosine(fast, self._images[name], self._original(name)))],
            )
        return cosines

    def speedup(self, plan: Plan) -> float:
        """How much faster the whole model is under a plan: medians of runs in turn on one photograph."""
        [found] = self._once({"plan": plan_fields(plan), "speedup": True}, lambda: [self._time(plan)])
        return found

    def tune(self, target: Target, methods: Sequence[str] | None = None) -> Tuned:
        """Searches a plan.

        Args:
            target: what is wanted.
            methods: names that `find_method` knows; by default all of `plans.METHODS`.

        Returns:
            The best plan that meets the target on the photographs that it was tuned on.

        Raises:
            NoPlan: none meets it.
            ValueError: no method, or an unknown one.
        """
        wanted = dict.fromkeys(find_method(name).__name__ for name in (METHODS if methods is None else methods))
        if not wanted:
            raise ValueError(f"expected methods of {', '.join(METHODS)}, got none")
        first = {}
        reasons = []
        for method in wanted:
            try:
                first[method] = self._first(method, target)
            except ValueError as problem:
                reasons.append(str(problem))
        if not first:
            raise NoPlan(f"no plan meets the target: {'; '.join(reasons)}")
        key = self._key(target)
        kept = sorted(first, key=lambda method: key(first[method]))[:KEPT]
        if target.kind != "cosine":
            kept = [each for each in kept if 1 - first[each].cosine < HOPELESS * (1 - first[kept[0]].cosine)]
        refined = [self._refined(first[method], target) for method in kept]
        refined.sort(key=lambda pair: key(pair[0]))
        best = refined[0][0]
        reached = {"gflops": 1.0, "speedup": best.speed, "cosine": best.cosine}[target.kind]
        if target.kind != "gflops" and reached < target.value:
            raise NoPlan(
                f"no plan meets the target: {target.kind} {target.value:g} was wanted, and the best is "
                f"{reached:.4f}, of {best.method} at {best.share:.2f} of the encoder's multiply-accumulates"
            )
        for candidate, changed in refined:
            self._look_around(candidate, changed)
        held_out = self._cosines(best.plan, self.held_out)
        return Tuned(best, held_out, tuple(each for each, _ in refined), self._warnings(best, held_out, target))

    def _key(self, target: Target) -> Callable[[Candidate], tuple[bool, float]]:
        """What finalists are sorted by, the best first."""
        if target.kind == "cosine":
            return lambda each: (False, each.share) if each.cosine >= target.value else (True, -each.cosine)
        if target.kind == "speedup":
            return lambda each: (False, -each.cosine) if each.speed >= target.value else (True, -each.speed)
        return lambda each: (False, -each.cosine)

    @property
    def _few(self) -> tuple[str, ...]:
        return self.tuned_on[:FEW]

    def _first(self, method: str, target: Target) -> Candidate:
        """A method's own plan that meets the target, on few photographs, or its nearest."""
        if target.kind == "gflops":
            return self.measure(self.costs.solve(method, target.value), self._few)
        if target.kind == "speedup":
            return self._fast_enough(method, {}, target.value, self._few)
        found = None
        for share in SHARES:
            try:
                plan = self.costs.solve(method, share)
            except ValueError:
                break
            candidate = self.measure(plan, self._few)
            if candidate.cosine < target.value:
                return found or candidate
            found = candidate
        if found is None:
            raise ValueError(f"{method} cannot do with {SHARES[0]:g} of the encoder's cost")
        return found

    def _fast_enough(
        self, method: str, changed: Mapping[str, object], wanted: float, names: Sequence[str]
    ) -> Candidate:
        """The plan that keeps most and whose measured speed-up is the wanted one; the fastest if there is none.

        The time is nearly a straight line over the share of the multiply-accumulates, which the last two
        measurements give.
        """
        points, share, found = [(1.0, 1.0)], 1 / wanted, {}
        for _ in range(4):
            try:
                plan = self.costs.solve(method, share, changed)
            except ValueError:
                if not found:
                    raise
                break
            found[plan] = self.speedup(plan)
            points.append((self.costs(plan), 1 / found[plan]))
            (x0, y0), (x1, y1) = points[-2:]
            if x0 == x1 or y0 == y1 or wanted <= found[plan] < 1.03 * wanted:
                break
            # A little faster than wanted: the next measurement may be a little slower.
            share = float(np.clip(x1 + (0.985 / wanted - y1) * (x1 - x0) / (y1 - y0), 0.05, 1))
        enough = [plan for plan in found if found[plan] >= wanted]
        plan = max(enough, key=self.costs) if enough else max(found, key=found.__getitem__)
        self.measure(plan, names)
        self.candidates[plan] = replace(self.candidates[plan], speedup=found[plan])
        return replace(self.measure(plan, names), speedup=found[plan])

    def _refined(self, start: Candidate, target: Target) -> tuple[Candidate, dict[str, object]]:
        """A method's best plan for the target, on all photographs that are tuned on, and its settings."""
        share = target.value if target.kind == "gflops" else start.share
        plan, changed = self._polished(start, share)
        if target.kind == "gflops":
            # What is better on few photographs need not be so on all.
            own, polished = (self.measure(each, self.tuned_on) for each in (start.plan, plan))
            return (polished, changed) if polished.cosine >= own.cosine else (own, {})
        if target.kind == "speedup":
            return self._fast_enough(start.method, changed, target.value, self.tuned_on), changed
        return self._cheapest(start.method, changed, target.value, plan), changed

    def _polished(self, start: Candidate, share: float) -> tuple[Plan, dict[str, object]]:
        """Changes one setting after the other at the same cost, on few photographs; keeps what is better.

        Returns:
            The plan, and the settings that it has in place of the method's own.
        """
        best, changed = start, {}

        def improves(field: str, value: object) -> bool:
            nonlocal best, changed
            try:
                plan = self.costs.solve(start.method, share, {**changed, field: value})
            except ValueError:
                return False
            found = self.measure(plan, self._few)
            if found.cosine < best.cosine + GAIN:
                return False
            best, changed = found, {**changed, field: value}
            return True

        for field, values in self._settings(type(start.plan)).items():
            here = getattr(best.plan, field)
            if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
                for value in values:
                    if value != here:
                        improves(field, value)
                continue
            above, below = [v for v in values if v > here], [v for v in reversed(values) if v < here]
            for direction in (above, below):
                for value in direction:
                    if not improves(field, value):
                        break
        if getattr(best.plan, "temperature", None) is not None:
            temperature = self.follow_gradient(best.plan)
            improves("temperature", temperature)
        return best.plan, changed

    def _settings(self, method: type[Plan]) -> dict[str, Sequence[object]]:
        """Field -> the values that are tried of it, for a class of plans."""
        hints = typing.get_type_hints(method)
        found = {}
        for field in fields(method):
            if hints[field.name] is bool:
                found[field.name] = (False, True)
            elif typing.get_origin(hints[field.name]) is Literal and field.name not in LEFT_ALONE:
                found[field.name] = typing.get_args(hints[field.name])
        return found | method.search_space(self.costs.depth)

    def _cheapest(self, method: str, changed: Mapping[str, object], wanted: float, plan: Plan) -> Candidate:
        """The least cost, to a hundredth, at which a method's mean cosine is the wanted one."""
        found = self.measure(plan, self.tuned_on)
        low, high = 0, 100
        if found.cosine >= wanted:
            high = int(100 * found.share) + 1
        else:
            low = int(100 * found.share)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                candidate = self.measure(self.costs.solve(method, middle / 100, changed), self.tuned_on)
            except ValueError:
                low = middle
                continue
            if candidate.cosine >= wanted:
                high, found = middle, candidate
            else:
                low = middle
                found = found if found.cosine >= wanted else max(found, candidate, key=lambda each: each.cosine)
        return found

    def _look_around(self, candidate: Candidate, changed: Mapping[str, object]) -> None:
        """Measures the same settings at less and at more cost, for the curves of a plot."""
        for share in (candidate.share - AROUND, candidate.share + AROUND):
            with contextlib.suppress(ValueError):
                self.measure(self.costs.solve(candidate.method, share, changed), self.tuned_on)

    def follow_gradient(self, plan: Plan) -> float:
        """The temperature at which the mean cosine is best, by Adam on its logarithm.

        It starts from the plan's own, or from the mean of what "auto" measures. The derivative goes forward through
        the expedited backbone with the value: there is but one parameter.

        Args:
            plan: with a field `temperature`.

        Returns:
            The best temperature on the way.
        """
        start = asdict(plan)["temperature"]
        if start == "auto":
            start = float(np.mean([self._auto_temperature(plan, name) for name in self.tuned_on]))
        optimizer = optax.adam(RATE)
        position = jnp.log(start)
        state = optimizer.init(position)
        path = []
        for _ in range(STEPS):
            self._on_plan(plan)
            found = [self._slope(plan, float(position), name) for name in self.tuned_on]
            loss, slope = np.mean(found, axis=0)
            path.append((loss, float(position)))
            if len(path) > 2 and path[-3][0] < path[-2][0] < path[-1][0]:
                break  # with medoids the loss has steps that the gradient does not see
            update, state = optimizer.update(jnp.asarray(slope, position.dtype), state)
            [position] = jax.tree.leaves(optax.apply_updates(position, update))
        return float(f"{np.exp(min(path)[1]):.4g}")

    def _slope(self, plan: Plan, position: float, name: str) -> list[float]:
        """One minus the cosine at the logarithm of a temperature, and its derivative."""
        return self._once(
            {"plan": plan_fields(plan), "photograph": name, "log_temperature": position},
            lambda: [
                float(each)
                for each in _slope(
                    self.model, plan, jnp.float32(position), self._images[name], self._original(name)
                )
            ],
        )

    def _auto_temperature(self, plan: Plan, name: str) -> float:
        """What "auto" measures of a photograph where the plan begins to reduce its tokens."""
        counts = plan.counts(self.costs.depth, self.costs.token_grid)
        block = next(index for index, count in enumerate(counts) if count < max(counts))

        def measure() -> list[float]:
            seen = inspect_block(self.model.backbone, self._images[name], plan=None, block=block, positions=(0,))
            return [float(auto_temperature(seen.entering[None], self.costs.token_grid)[0])]

        [found] = self._once({"photograph": name, "auto_before": block}, measure)
        return found

    def _features_of(self, name: str) -> jax.Array:
        check_memory(_features, self.model, self._images[name])
        return _features(self.model, self._images[name])

    def _time(self, plan: Plan) -> float:
        image = self._images[self.tuned_on[0]]
        models = self.model, expedite(self.model, plan)
        slow, fast = measure([functools.partial(_run, each, image) for each in models], repeats=5)
        return slow.median / fast.median

    def _once(self, what: dict[str, object], measure: Callable[[], list[float]]) -> list[float]:
        """What the journal knows, or what is measured now and kept there."""
        key = json.dumps(what)
        if key not in self._known:
            self._known[key] = measure()
            self._journal.append([{"measured": what, "found": self._known[key]}])
        return self._known[key]

    @staticmethod
    def _warnings(best: Candidate, held_out: Mapping[str, float], target: Target) -> tuple[str, ...]:
        found = {**best.cosines, **held_out}
        mean, mean_held_out = (float(np.mean(list(each.values()))) for each in (found, held_out))
        worst = min(found, key=found.__getitem__)
        warnings = []
        if found[worst] < mean - SPREAD:
            warnings.append(
                f"fidelity differs much between images: the cosine is {found[worst]:.4f} on {worst}, and "
                f"{mean:.4f} in the mean"
            )
        if target.kind == "cosine" and mean_held_out < target.value:
            warnings.append(
                f"on the images that were held out the mean cosine is {mean_held_out:.4f}, less than the "
                f"{target.value:g} that was wanted: more images would tell"
            )
        return tuple(warnings)


def _entry(line: dict[str, Any]) -> tuple[str, list[float]]:
    return json.dumps(line["measured"]), [float(each) for each in line["found"]]


_features = jax.jit(final_features)


@jax.jit
def _run(model: Model, images: jax.Array) -> jax.Array:
    return model(images)


@jax.jit
def _cosine(model: Encoder, images: jax.Array, original: jax.Array) -> jax.Array:
    return cosine_similarity(final_features(model, images), original)[0]


@functools.partial(jax.jit, static_argnames="plan")
def _slope(
    model: Encoder, plan: Plan, position: jax.Array, images: jax.Array, original: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """One minus the cosine at exp(position) as the plan's temperature, and its derivative by the position."""

    def loss(position: jax.Array) -> jax.Array:
        fast = expedite(model, replace(plan, temperature=jnp.exp(position)))
        return 1 - cosine_similarity(final_features(fast, images), original)[0]

    return jax.jvp(loss, (position,), (jnp.ones_like(position),))
