"""The paper's ablations, without labels: fidelity of the features when one setting of a plan changes."""

import functools
import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.analysis.fidelity import cosine_similarity
from hourglass_jax.analysis.flops import count_function_macs
from hourglass_jax.backbones.vit import ViT
from hourglass_jax.imaging.images import Preprocessing, center_crop_square
from hourglass_jax.io.journal import Journal
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Encoder, Model
from hourglass_jax.ops.clustering import auto_temperature
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.pooling import upsample_tokens
from hourglass_jax.ops.reconstruction import unpool_tokens
from hourglass_jax.plans.base import Block, Plan, Tokens
from hourglass_jax.plans.expedite import expedite
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.wrapped import WrappedPlan

STUDIES = (
    *("beta", "alpha", "clusters", "representative", "window", "iterations", "temperature", "neighbors"),
    *("layers", "downsampling"),
)
"""The names of the studies."""


@dataclass(frozen=True)
class Layers(WrappedPlan):
    """A plan whose clustering or reconstruction layer is replaced by one of the paper's baselines (Tables 4 and 5).

    Attributes:
        plan: the places and the settings of the layers.
        clustering: "pooling" is adaptive average pooling.
        reconstruction: "bilinear" upsamples the grid of clusters; "nearest" gives every token its nearest cluster.
    """

    plan: Hourglass
    clustering: Literal["clustering", "pooling"] = "clustering"
    reconstruction: Literal["reconstruction", "bilinear", "nearest"] = "reconstruction"

    def before_block(self, index: int, tokens: Tokens, block: Block) -> Tokens:
        """See `Plan.before_block`."""
        plan = self.plan
        if self.clustering == "pooling":
            plan = replace(plan, iterations=0, representative="mean")
        reduced = plan.before_block(index, tokens, block)
        if index != plan.alpha or self.reconstruction == "reconstruction":
            return reduced

        def restore(refined: jax.Array) -> jax.Array:
            with jax.named_scope("reconstruction"):
                if self.reconstruction == "nearest":
                    return unpool_tokens(refined, tokens=tokens.values, clusters=reduced.values)
                return upsample_tokens(refined, cluster_grid=plan.clusters, token_grid=tokens.grid)

        return replace(reduced, restore=restore)


@dataclass(frozen=True)
class Point:
    """One point of a study.

    Attributes:
        label: the change; unique among the points of a study with the same `series`.
        x: coordinate on the study's axis.
        plan: the plan; None for the unchanged model.
        series: the curve that the point belongs to.
        block: 0-based block whose features are compared as well, or None.
        side: side of the input in pixels; None for the size of the ablation.
    """

    label: str
    x: float
    plan: Plan | None
    series: str = ""
    block: int | None = None
    side: int | None = None


@dataclass(frozen=True)
class Study:
    """One setting of the plan, varied alone.

    Attributes:
        title: the setting, and the table or figure of the paper that varies it.
        axis: label of `Point.x`; None if the points are categories.
        points: the points, sorted by series and then by x.
        logarithmic: whether the axis is logarithmic.
    """

    title: str
    axis: str | None
    points: tuple[Point, ...]
    logarithmic: bool = False


@dataclass(frozen=True)
class Measurement:
    """The measurements of a point.

    Attributes:
        cosine: cosine similarity of the head's input features to those of the unexpedited model, mean over the
            photographs.
        worst: the same for the worst photograph.
        cosine_at_block: the same after `Point.block`, mean over the photographs; None if the point has no block.
        gflops: cost of the encoder, 10^9 multiply-accumulates.
        gflops_ratio: `gflops` as a share of the unexpedited encoder's.
    """

    cosine: float
    worst: float
    cosine_at_block: float | None
    gflops: float
    gflops_ratio: float


class Ablation:
    """All studies of one model, around one plan, on photographs of one size.

    Args:
        model: the model, without a plan.
        photographs: name -> uint8 [rows, columns, 3]; the largest centred square is used.
        plan: the plan that the studies vary; it reconstructs tokens, even if its `reconstruct` is "logits".
        weights: identifies the model's weights, such as the hash of their file.
        preprocessing: how photographs are prepared; by default that of the model's config.

    Attributes:
        plan: the plan that the studies vary.
        size: side of the input in pixels.
        studies: name of `STUDIES` -> the study. Points that do not fit the model are left out.

    Raises:
        ValueError: there is no photograph or one is too small, or the plan does not fit the model or has alpha 0.
    """

    def __init__(
        self,
        model: Model,
        photographs: Mapping[str, np.ndarray],
        plan: Hourglass,
        *,
        weights: str,
        preprocessing: Preprocessing | None = None,
    ) -> None:
        if not isinstance(model.backbone, ViT):
            raise ValueError(f"an ablation takes a ViT apart, got a {type(model.backbone).__name__}")
        if model.backbone.config.windows is not None:
            raise ValueError("an ablation takes a ViT apart whose tokens attend to all, and this one has windows")
        preprocessing = preprocessing or model.config.preprocessing
        self._model, self._backbone, side = model, model.backbone, model.backbone.stride
        self._preprocessing = replace(preprocessing.at(preprocessing.side), multiple=side)
        self._squares = [center_crop_square(photo) for photo in photographs.values()]
        self.plan, self.size = replace(plan, reconstruct="tokens"), preprocessing.side
        self._grid = self._backbone.token_grid(self.size, self.size)
        self.plan.check(self._backbone.depth, self._grid)
        if not self._squares:
            raise ValueError("expected at least one photograph, got none")
        if self.plan.alpha < 1:
            raise ValueError("alpha must be at least 1 for an ablation, got 0")
        # Studies share points, and points share input sizes.
        self._images = functools.cache(self._images)
        self._gflops = functools.cache(self._gflops)
        images = self._images(self.size)
        self._header = {
            "model": weights,
            "size": self.size,
            "photographs": {
                name: hashlib.sha256(image.data).hexdigest()[:12]
                for name, image in zip(photographs, images, strict=True)
            },
            "plan": json.loads(json.dumps(asdict(self.plan))),
        }
        blocks = tuple(range(self.plan.alpha - 1, self._backbone.depth))
        check_memory(_features, model, images[0][None], self._grid, blocks)
        self._original = [
            jax.tree.map(np.asarray, _features(model, image[None], self._grid, blocks)) for image in images
        ]
        self.studies = self._studies()

    def measure(self, point: Point) -> Measurement:
        """Measures a point, with one compiled function for all photographs."""
        fast, blocks = expedite(self._model, point.plan), () if point.block is None else (point.block,)
        final, at_block = [], []
        for image, (features, kept) in zip(self._images(point.side or self.size), self._original, strict=True):
            fast_features, fast_at_block = _features(fast, image[None], self._grid, blocks)
            final.append(float(cosine_similarity(fast_features, features)[0]))
            if point.block is not None:
                original = kept[point.block - self.plan.alpha + 1]
                at_block.append(float(cosine_similarity(fast_at_block[0], original)[0]))
        gflops = self._gflops(point.plan, point.side or self.size)
        return Measurement(
            cosine=round(float(np.mean(final)), 6),
            worst=round(min(final), 6),
            cosine_at_block=round(float(np.mean(at_block)), 6) if at_block else None,
            gflops=round(gflops, 6),
            gflops_ratio=round(gflops / self._gflops(None, self.size), 6),
        )

    def run(
        self, journal: str | os.PathLike[str], names: Collection[str] = STUDIES
    ) -> Iterator[tuple[str, Point, Measurement]]:
        """Measures one point after the other, and resumes an earlier run.

        Points with the same plan are measured once.

        Args:
            journal: path of a JSON Lines file: a header that identifies the ablation, then one line per point. It
                is created if it does not exist.
            names: the studies to run.

        Yields:
            Name of the study, point and measurement, including the points that are already in the journal.

        Raises:
            ValueError: a study is unknown, or the journal belongs to another ablation or is damaged before its last
                line.
        """
        unknown = sorted(set(names) - set(STUDIES))
        if unknown:
            raise ValueError(f"unknown study {unknown[0]!r}; known: {', '.join(STUDIES)}")
        with Journal(Path(journal), self._header, _entry, "of another ablation") as kept:
            known = dict(kept.entries)
            measured = {
                _work(point): known[name, point.series, point.label]
                for name, study in self.studies.items()
                for point in study.points
                if (name, point.series, point.label) in known
            }
            for name in (study for study in STUDIES if study in names):
                for point in self.studies[name].points:
                    work = _work(point)
                    if work not in measured:
                        measured[work] = self.measure(point)
                    if (name, point.series, point.label) not in known:
                        place = {"study": name, "series": point.series, "label": point.label}
                        kept.append([place | asdict(measured[work])])
                    yield name, point, measured[work]

    def _images(self, side: int) -> list[np.ndarray]:
        prepare = self._preprocessing.at(side)
        return [prepare(square) for square in self._squares]

    def _gflops(self, plan: Plan | None, side: int) -> float:
        images = jax.ShapeDtypeStruct((1, side, side, 3), jnp.float32)
        run = functools.partial(_features, grid=self._grid)
        return sum(count_function_macs(run, expedite(self._model, plan), images).values()) / 1e9

    def _studies(self) -> dict[str, Study]:
        base, depth = self.plan, self._backbone.depth
        whole = base.beta is None
        ends = range(base.alpha + 1, depth + 1)
        betas = {end: replace(base, beta=None if whole and end == depth else end - base.alpha) for end in ends}
        studies = {
            "beta": Study(
                "Reconstruction after block alpha + beta (Table 1)",
                "alpha + beta, blocks",
                tuple(Point(f"block {end}", end, plan, block=end - 1) for end, plan in betas.items()),
            ),
            "alpha": Study(
                "Clustering after block alpha",
                "alpha, blocks",
                self._vary("alpha", range(1, depth, -(-depth // 8)), "alpha {}"),
            ),
            "clusters": Study(
                "Number of clusters (Tables 2, 3)",
                "clusters",
                self._clusters(base),
            ),
            "representative": Study(
                "Representative of a cluster",
                "clusters",
                (
                    *self._clusters(replace(base, representative="mean"), "mean"),
                    *self._clusters(replace(base, representative="medoid"), "medoid"),
                ),
            ),
            "window": Study(
                "Window (Tables 2, 3)", "side of the window, clusters", self._vary("window", (1, 3, 5, 7, 9))
            ),
            "iterations": Study(
                "k-means iterations (Tables 2, 3)",
                "kappa, iterations",
                self._vary("iterations", (0, 1, 2, 5, 10, 20)),
            ),
            "temperature": self._temperatures(),
            "neighbors": Study(
                "Neighbours in the reconstruction (Tables 2, 3)",
                "k, clusters",
                self._vary("neighbors", (1, 2, 5, 10, 20, 50)),
                logarithmic=True,
            ),
            "layers": self._layers(),
        }
        studies["downsampling"] = self._downsampling(studies["alpha"].points, studies["clusters"].points)
        return {name: studies[name] for name in STUDIES}

    def _vary(self, field: str, values: Iterable[int], label: str = "{}") -> tuple[Point, ...]:
        """A point for each value of a field of the plan, including the plan's own value."""
        values = sorted({*values, getattr(self.plan, field)})
        plans = {value: replace(self.plan, **{field: value}) for value in values}
        return tuple(Point(label.format(value), value, plan) for value, plan in plans.items() if self._fits(plan))

    def _clusters(self, plan: Hourglass, series: str = "") -> tuple[Point, ...]:
        """Points with a third to four thirds of the plan's clusters along each side."""
        grids = dict.fromkeys(tuple(max(1, side * sixth // 6) for side in plan.clusters) for sixth in range(2, 9))
        plans = (replace(plan, clusters=grid) for grid in grids)
        return tuple(
            Point(f"{varied.clusters[0]} x {varied.clusters[1]}", math.prod(varied.clusters), varied, series)
            for varied in plans
            if self._fits(varied)
        )

    def _temperatures(self) -> Study:
        measured = [float(auto_temperature(jnp.asarray(kept[0]), self._grid)[0]) for _, kept in self._original]
        auto = float(np.mean(measured))
        centre = auto if self.plan.temperature == "auto" else self.plan.temperature
        values = {float(f"{factor * centre:.2g}") for factor in (0.1, 0.3, 1, 3, 10)}
        if self.plan.temperature != "auto":
            values.add(self.plan.temperature)
        return Study(
            "Temperature (Tables 2, 3)",
            "tau, squared feature distance",
            (
                *(Point(f"{tau:g}", tau, replace(self.plan, temperature=tau), "fixed") for tau in sorted(values)),
                Point("auto", auto, replace(self.plan, temperature="auto"), "auto, at its mean"),
            ),
            logarithmic=True,
        )

    def _layers(self) -> Study:
        smaller = replace(self.plan, clusters=tuple(max(1, side * 5 // 6) for side in self.plan.clusters))
        points = []
        for plan in dict.fromkeys((smaller, self.plan)):
            series = f"{plan.clusters[0]} x {plan.clusters[1]}"
            for clustering in ("clustering", "pooling"):
                for reconstruction in ("reconstruction", "nearest", "bilinear"):
                    layers = Layers(plan, clustering, reconstruction)
                    used = plan if layers == Layers(plan) else layers
                    place = len(points) % 6
                    points.append(Point(f"{clustering}, {reconstruction}", place, used, series))
        return Study("Other layers (Tables 4 and 5)", None, tuple(points))

    def _downsampling(self, alphas: tuple[Point, ...], clusters: tuple[Point, ...]) -> Study:
        """Hourglass plans, and the smaller images with the closest GFLOPs."""
        unit, original = self._backbone.config.patch_size, self._gflops(None, self.size)
        sides = range(unit, self.size, unit)
        costs = np.array([self._gflops(None, side) for side in sides])
        hourglasses = [
            *(replace(point, series="hourglass, by alpha") for point in alphas),
            *(
                replace(point, label=f"{point.label} clusters", series="hourglass, by clusters")
                for point in clusters
            ),
        ]
        hourglasses = [replace(point, x=self._gflops(point.plan, self.size) / original) for point in hourglasses]
        nearest = sorted({int(np.argmin(abs(costs - point.x * original))) for point in hourglasses})
        images = [
            Point(f"{sides[i]} x {sides[i]} pixels", costs[i] / original, None, "smaller image", side=sides[i])
            for i in nearest
        ]
        return Study(
            "A smaller image instead (Figure 6)",
            "GFLOPs, share of the original",
            tuple(sorted(images + hourglasses, key=lambda point: (point.series, point.x))),
        )

    def _fits(self, plan: Hourglass) -> bool:
        try:
            plan.check(self._backbone.depth, self._grid)
        except ValueError:
            return False
        return True


@functools.partial(jax.jit, static_argnames=("grid", "blocks"))
def _features(
    model: Encoder, images: jax.Array, grid: Grid, blocks: tuple[int, ...] = ()
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """The head's input features [B, N, C], resized to `grid` if they are a map, and the tokens after `blocks`."""
    backbone = model.backbone
    assert isinstance(backbone, ViT), "see `Ablation`"
    features = backbone(images, intermediates=blocks)
    final = model.head_input(features)
    if final.shape[1] == math.prod(features.token_grid):
        final = upsample_tokens(final, cluster_grid=features.token_grid, token_grid=grid)
    return final, tuple(intermediate.tokens for intermediate in features.intermediates)


def _work(point: Point) -> tuple[object, ...]:
    """Identifies the computation of a point: points with equal ones have equal measurements."""
    return point.plan, point.block, point.side


def _entry(line: dict[str, Any]) -> tuple[tuple[str, str, str], Measurement]:
    """The study, series and label of a point, and its measurement."""
    return (line.pop("study"), line.pop("series"), line.pop("label")), Measurement(**line)
