"""The tuner: searches the method and the settings that suit a model best, on images without labels.

The search goes from coarse to fine. One plan of every method is measured on a few images; the best methods are
kept, and their settings are changed one at a time; the finalists are measured on all tuning images. Temperatures
are continuous: they follow the gradient of the fidelity through the expedited backbone. The other half of the
images is held out for the final figure. The weights never change.
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
from hourglass_jax.analysis.inspection import entering_tokens
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

RANKING_IMAGES = 4
"""Number of images used to rank candidates. With fewer, the search overfits to them."""
MAX_REFINED = 3
"""Number of methods that are refined."""
MAX_ERROR_RATIO = 3.0
"""A method is dropped if its error, 1 - cosine, exceeds this many times the best method's."""
SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Costs that are tried to reach a target cosine, in shares of the encoder, from expensive to cheap."""
MAX_SPREAD = 0.02
"""An image whose cosine lies further below the mean than this gets a warning."""
PLOT_MARGIN = 0.12
"""Plots also show plans that cost this much less and this much more, in shares of the encoder."""
STEPS, RATE = 8, 0.3
"""Number of steps and learning rate of Adam, on the logarithm of a temperature."""

MIN_GAIN = 1e-4
"""The least gain of the cosine for which a setting is changed."""
FIXED_FIELDS = {"reconstruct"}
"""Fields that are not tuned, as they decide what the head receives."""

Kind = Literal["share", "speedup", "cosine"]


@dataclass(frozen=True)
class Target:
    """The target of a search.

    Attributes:
        kind: "share": at most this share of the encoder's multiply-accumulates, at the best cosine; "speedup": at
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
            what = "share of the multiply-accumulates" if self.kind == "share" else "cosine"
            raise ValueError(f"a wanted {what} must be between 0 and 1, got {self.value:g}")


@dataclass(frozen=True)
class Candidate:
    """A plan and its measurements.

    Attributes:
        plan: the plan.
        share: its cost as a share of the encoder's multiply-accumulates.
        cosines: photograph -> cosine similarity of the final features to those of the original model.
        speedup: speed-up of the whole model; None if it was not measured.
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
        """The speed-up as a number, 0 if it was not measured."""
        return self.speedup or 0.0

    @property
    def cosine(self) -> float:
        """Mean cosine over the photographs."""
        return float(np.mean(list(self.cosines.values())))

    @property
    def worst(self) -> float:
        """Cosine of the worst photograph."""
        return min(self.cosines.values())


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        best: the best plan, with its cosines on the tuning photographs.
        held_out: photograph -> its cosine, for the photographs that were held out.
        finalists: the best candidate of each refined method, best first; the first one is `best`.
        warnings: sentences for the user.
    """

    best: Candidate
    held_out: dict[str, float]
    finalists: tuple[Candidate, ...]
    warnings: tuple[str, ...]


class NoPlan(Exception):
    """No plan meets the target; the message says how close the best one comes."""


class Tuner:
    """Searches plans for one model, on photographs of one size.

    Args:
        model: the model, without a plan.
        photographs: name -> uint8 [rows, columns, 3], at least two; the largest centred square is used. Every
            second one is held out.
        journal: path of a JSON Lines file: a header that identifies the search, then one line per measurement. It
            is created if it does not exist.
        weights: identifies the model's weights, such as the hash of their file.
        preprocessing: how photographs are prepared; by default that of the model's config.
        on_plan: called with every plan that is measured or looked up.

    Attributes:
        candidates: plan -> its measurements so far.

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
        preprocessing = preprocessing.at(preprocessing.side).whole_patches(model.backbone.stride, model.multiple)
        self.model, self.size, self._on_plan = expedite(model, None), preprocessing.shape[0], on_plan
        self._images = {name: preprocessing(center_crop_square(photo))[None] for name, photo in photographs.items()}
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
        """Measures the cosines of a plan on some photographs; those in the journal are not measured again."""
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
            [cosines[name]] = self._measure_once(
                {"plan": plan_fields(plan), "photograph": name},
                lambda name=name: [float(_cosine(fast, self._images[name], self._original(name)))],
            )
        return cosines

    def speedup(self, plan: Plan) -> float:
        """Speed-up of the whole model under a plan, from the medians of alternating runs on one photograph."""
        [ratio] = self._measure_once({"plan": plan_fields(plan), "speedup": True}, lambda: [self._time(plan)])
        return ratio

    def tune(self, target: Target, methods: Sequence[str] | None = None) -> Tuned:
        """Searches the best plan for a target.

        Args:
            target: the target.
            methods: names that `find_method` knows; by default all of `plans.METHODS`.

        Returns:
            The best plan that meets the target on the tuning photographs, and the other finalists.

        Raises:
            NoPlan: no plan meets the target.
            ValueError: `methods` is empty or names an unknown method.
        """
        wanted = dict.fromkeys(find_method(name).__name__ for name in (METHODS if methods is None else methods))
        if not wanted:
            raise ValueError(f"expected methods of {', '.join(METHODS)}, got none")
        first = {}
        reasons = []
        for method in wanted:
            try:
                first[method] = self._first_candidate(method, target)
            except ValueError as problem:
                reasons.append(str(problem))
        if not first:
            raise NoPlan(f"no plan meets the target: {'; '.join(reasons)}")
        key = self._ranking_key(target)
        kept = sorted(first, key=lambda method: key(first[method]))[:MAX_REFINED]
        if target.kind != "cosine":
            limit = MAX_ERROR_RATIO * (1 - first[kept[0]].cosine)
            kept = [method for method in kept if 1 - first[method].cosine < limit]
        refined = [self._refine(first[method], target) for method in kept]
        refined.sort(key=lambda pair: key(pair[0]))
        best = refined[0][0]
        reached = {"share": 1.0, "speedup": best.speed, "cosine": best.cosine}[target.kind]
        if target.kind != "share" and reached < target.value:
            raise NoPlan(
                f"no plan meets the target: {target.kind} {target.value:g} was wanted, and the best is "
                f"{reached:.4f}, of {best.method} at {best.share:.2f} of the encoder's multiply-accumulates"
            )
        for candidate, changed in refined:
            self._measure_nearby(candidate, changed)
        held_out = self._cosines(best.plan, self.held_out)
        finalists = tuple(candidate for candidate, _ in refined)
        return Tuned(best, held_out, finalists, self._warnings(best, held_out, target))

    def _ranking_key(self, target: Target) -> Callable[[Candidate], tuple[bool, float]]:
        """The sort key of finalists, the best first."""
        if target.kind == "cosine":
            return lambda plan: (False, plan.share) if plan.cosine >= target.value else (True, -plan.cosine)
        if target.kind == "speedup":
            return lambda plan: (False, -plan.cosine) if plan.speed >= target.value else (True, -plan.speed)
        return lambda plan: (False, -plan.cosine)

    @property
    def _ranking_images(self) -> tuple[str, ...]:
        return self.tuned_on[:RANKING_IMAGES]

    def _first_candidate(self, method: str, target: Target) -> Candidate:
        """The method's default plan that meets the target on the ranking images, or the closest to it."""
        if target.kind == "share":
            return self.measure(self.costs.solve(method, target.value), self._ranking_images)
        if target.kind == "speedup":
            return self._solve_speedup(method, {}, target.value, self._ranking_images)
        cheapest = None
        for share in SHARES:
            try:
                plan = self.costs.solve(method, share)
            except ValueError:
                break
            candidate = self.measure(plan, self._ranking_images)
            if candidate.cosine < target.value:
                return cheapest or candidate
            cheapest = candidate
        if cheapest is None:
            raise ValueError(f"{method} cannot do with {SHARES[0]:g} of the encoder's cost")
        return cheapest

    def _solve_speedup(
        self, method: str, changed: Mapping[str, object], wanted: float, names: Sequence[str]
    ) -> Candidate:
        """The most expensive plan whose measured speed-up reaches the target; the fastest if none does.

        Time is nearly linear in the share of the multiply-accumulates: each step is along the line through the last
        two measurements.
        """
        points, share, speedups = [(1.0, 1.0)], 1 / wanted, {}
        for _ in range(4):
            try:
                plan = self.costs.solve(method, share, changed)
            except ValueError:
                if not speedups:
                    raise
                break
            speedups[plan] = self.speedup(plan)
            points.append((self.costs(plan), 1 / speedups[plan]))
            (x0, y0), (x1, y1) = points[-2:]
            if x0 == x1 or y0 == y1 or wanted <= speedups[plan] < 1.03 * wanted:
                break
            # Aim slightly above the target: the next measurement may be slightly slower.
            share = float(np.clip(x1 + (0.985 / wanted - y1) * (x1 - x0) / (y1 - y0), 0.05, 1))
        fast = [plan for plan, speedup in speedups.items() if speedup >= wanted]
        plan = max(fast, key=self.costs) if fast else max(speedups, key=speedups.__getitem__)
        self.measure(plan, names)
        self.candidates[plan] = replace(self.candidates[plan], speedup=speedups[plan])
        return replace(self.measure(plan, names), speedup=speedups[plan])

    def _refine(self, start: Candidate, target: Target) -> tuple[Candidate, dict[str, object]]:
        """The method's best plan for the target on all tuning photographs, and the settings that it changes."""
        share = target.value if target.kind == "share" else start.share
        plan, changed = self._improve_settings(start, share)
        if target.kind == "share":
            # An improvement on the ranking images need not be one on all of them.
            default, improved = (self.measure(candidate, self.tuned_on) for candidate in (start.plan, plan))
            return (improved, changed) if improved.cosine >= default.cosine else (default, {})
        if target.kind == "speedup":
            return self._solve_speedup(start.method, changed, target.value, self.tuned_on), changed
        return self._find_cheapest(start.method, changed, target.value, plan), changed

    def _improve_settings(self, start: Candidate, share: float) -> tuple[Plan, dict[str, object]]:
        """Changes one setting at a time at constant cost, on the ranking images, and keeps the improvements.

        Returns:
            The plan, and the settings that differ from the method's defaults.
        """
        best, changed = start, {}

        def improves(field: str, value: object) -> bool:
            nonlocal best, changed
            try:
                plan = self.costs.solve(start.method, share, {**changed, field: value})
            except ValueError:
                return False
            candidate = self.measure(plan, self._ranking_images)
            if candidate.cosine < best.cosine + MIN_GAIN:
                return False
            best, changed = candidate, {**changed, field: value}
            return True

        for field, values in self._settings(type(start.plan)).items():
            current = getattr(best.plan, field)
            if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
                for value in values:
                    if value != current:
                        improves(field, value)
                continue
            above, below = [v for v in values if v > current], [v for v in reversed(values) if v < current]
            for direction in (above, below):
                for value in direction:
                    if not improves(field, value):
                        break
        if getattr(best.plan, "temperature", None) is not None:
            temperature = self.follow_gradient(best.plan)
            improves("temperature", temperature)
        return best.plan, changed

    def _settings(self, method: type[Plan]) -> dict[str, Sequence[object]]:
        """Field of a class of plans -> the values to try."""
        hints = typing.get_type_hints(method)
        values = {}
        for field in fields(method):
            if hints[field.name] is bool:
                values[field.name] = (False, True)
            elif typing.get_origin(hints[field.name]) is Literal and field.name not in FIXED_FIELDS:
                values[field.name] = typing.get_args(hints[field.name])
        return values | method.search_space(self.costs.depth)

    def _find_cheapest(self, method: str, changed: Mapping[str, object], wanted: float, plan: Plan) -> Candidate:
        """The method's cheapest plan, to a hundredth of the encoder, whose mean cosine reaches the target."""
        best = self.measure(plan, self.tuned_on)
        low, high = 0, 100
        if best.cosine >= wanted:
            high = int(100 * best.share) + 1
        else:
            low = int(100 * best.share)
        while high - low > 1:
            middle = (low + high) // 2
            try:
                candidate = self.measure(self.costs.solve(method, middle / 100, changed), self.tuned_on)
            except ValueError:
                low = middle
                continue
            if candidate.cosine >= wanted:
                high, best = middle, candidate
            else:
                low = middle
                best = best if best.cosine >= wanted else max(best, candidate, key=lambda plan: plan.cosine)
        return best

    def _measure_nearby(self, candidate: Candidate, changed: Mapping[str, object]) -> None:
        """Measures the same settings at a lower and at a higher cost, for the curves of a plot."""
        for share in (candidate.share - PLOT_MARGIN, candidate.share + PLOT_MARGIN):
            with contextlib.suppress(ValueError):
                self.measure(self.costs.solve(candidate.method, share, changed), self.tuned_on)

    def follow_gradient(self, plan: Plan) -> float:
        """Optimises a plan's temperature for the mean cosine, by Adam on its logarithm.

        The start is the plan's temperature, or the mean of the "auto" temperatures. The derivative is computed in
        forward mode, as there is a single parameter.

        Args:
            plan: a plan with a field `temperature`.

        Returns:
            The best temperature of all steps.
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
            losses = [self._slope(plan, float(position), name) for name in self.tuned_on]
            loss, slope = np.mean(losses, axis=0)
            path.append((loss, float(position)))
            if len(path) > 2 and path[-3][0] < path[-2][0] < path[-1][0]:
                break  # with medoids the loss has steps, where the gradient is zero
            update, state = optimizer.update(jnp.asarray(slope, position.dtype), state)
            [position] = jax.tree.leaves(optax.apply_updates(position, update))
        return float(f"{np.exp(min(path)[1]):.4g}")

    def _slope(self, plan: Plan, position: float, name: str) -> list[float]:
        """1 - cosine at the logarithm of a temperature, and its derivative."""
        return self._measure_once(
            {"plan": plan_fields(plan), "photograph": name, "log_temperature": position},
            lambda: [
                float(value)
                for value in _slope(
                    self.model, plan, jnp.float32(position), self._images[name], self._original(name)
                )
            ],
        )

    def _auto_temperature(self, plan: Plan, name: str) -> float:
        """The "auto" temperature of a photograph, before the first block that runs on fewer tokens."""
        counts = plan.counts(self.costs.depth, self.costs.token_grid)
        block = next(index for index, count in enumerate(counts) if count < max(counts))

        def measure() -> list[float]:
            tokens = entering_tokens(self.model.backbone, jnp.asarray(self._images[name]), block=block)
            return [float(auto_temperature(tokens, self.costs.token_grid).mean())]

        [temperature] = self._measure_once({"photograph": name, "auto_before": block}, measure)
        return temperature

    def _features_of(self, name: str) -> jax.Array:
        check_memory(_features, self.model, self._images[name])
        return _features(self.model, self._images[name])

    def _time(self, plan: Plan) -> float:
        image = self._images[self.tuned_on[0]]
        models = self.model, expedite(self.model, plan)
        slow, fast = measure([functools.partial(_run, model, image) for model in models], repeats=5)
        return slow.median / fast.median

    def _measure_once(self, what: dict[str, object], measure: Callable[[], list[float]]) -> list[float]:
        """The values in the journal, or new measurements that are added to it."""
        key = json.dumps(what)
        if key not in self._known:
            self._known[key] = measure()
            self._journal.append([{"measured": what, "found": self._known[key]}])
        return self._known[key]

    @staticmethod
    def _warnings(best: Candidate, held_out: Mapping[str, float], target: Target) -> tuple[str, ...]:
        cosines = {**best.cosines, **held_out}
        mean, mean_held_out = (float(np.mean(list(part.values()))) for part in (cosines, held_out))
        worst = min(cosines, key=cosines.__getitem__)
        warnings = []
        if cosines[worst] < mean - MAX_SPREAD:
            warnings.append(
                f"fidelity differs much between images: the cosine is {cosines[worst]:.4f} on {worst}, and "
                f"{mean:.4f} in the mean"
            )
        if target.kind == "cosine" and mean_held_out < target.value:
            warnings.append(
                f"on the images that were held out the mean cosine is {mean_held_out:.4f}, less than the "
                f"{target.value:g} that was wanted: more images would tell"
            )
        return tuple(warnings)


def _entry(line: dict[str, Any]) -> tuple[str, list[float]]:
    return json.dumps(line["measured"]), [float(value) for value in line["found"]]


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
    """1 - cosine with the temperature exp(position), and its derivative with respect to the position."""

    def loss(position: jax.Array) -> jax.Array:
        fast = expedite(model, replace(plan, temperature=jnp.exp(position)))
        return 1 - cosine_similarity(final_features(fast, images), original)[0]

    return jax.jvp(loss, (position,), (jnp.ones_like(position),))
