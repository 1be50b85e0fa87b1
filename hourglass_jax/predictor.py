"""Prediction: photographs of any size to results of the same size."""

import functools
import os
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hourglass_jax.imaging.images import ImageSource, Preprocessing, read_image
from hourglass_jax.imaging.windows import Layout, whole_view
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Model, PromptedVisionModel, find_task
from hourglass_jax.plans.expedite import fit_plan

BATCH_SIZE = 8
"""Images or windows that are run at once unless something else is asked for."""


@jax.jit
def run(model: Model, images: jax.Array, sizes: jax.Array | None = None) -> Any:
    """The outputs that tasks read, of images [B, rows, columns, 3]: a pytree of arrays [B, ...].

    A model that is `sized` takes the sizes of the images before they were filled up, [B, 2].
    """
    arguments = (images,) if sizes is None else (images, sizes)
    return model.decode(model.features(*arguments), None)


@functools.partial(jax.jit, static_argnames="mesh")
def run_shared(model: Model, images: jax.Array, sizes: jax.Array | None = None, *, mesh: Mesh) -> Any:
    """`run` on a batch that the devices of a mesh share: each runs its own images, none waits for another.

    Left to itself, XLA collects the whole batch on every device where an operator loops over it, as attention does
    on CPU, or is a kernel that it cannot split.

    Args:
        model: with its parameters on every device of the mesh.
        images: [B, rows, columns, 3], B a multiple of the number of devices.
        sizes: [B, 2], as in `run`.
        mesh: the devices.
    """
    shared = PartitionSpec(mesh.axis_names)
    inputs = PartitionSpec(), shared, shared
    own = jax.shard_map(run, mesh=mesh, in_specs=inputs, out_specs=shared, check_vma=False)
    return own(model, images, sizes)


class Predictor:
    """Runs a model on paths, PIL images or arrays, one or many.

    One function is compiled for every input shape and kept. Images (or windows of them) of the same shape are run
    together. A model that fills images up (`Model.multiple`) gets them filled up: there are fewer shapes then.

        predictor = Predictor(hourglass_jax.load("dinov2-vits14-saliency"))
        saliency = predictor("photo.jpg")    # float32 [rows, columns] in 0..1

    Args:
        model: a model of this library, under any plan.
        preprocessing: how images are prepared; by default as the model's config says.
        whole: run on whole images even if the model sees windows of them.
        batch_size: images or windows that are run at once.
        task: the name of the task whose results are wanted; by default the model's first.
        strict_plan: refuse an image that the model's plan does not fit; otherwise the plan is fitted to it at the
            same share of its tokens, with a warning in the log.
        mesh: devices of this process that share every batch of several images; by default all of them.

    Attributes:
        task: the task.

    Raises:
        ValueError: the batch size is not positive, or the model has no such task or answers prompts.
    """

    def __init__(
        self,
        model: Model,
        *,
        preprocessing: Preprocessing | None = None,
        whole: bool = False,
        batch_size: int = BATCH_SIZE,
        task: str | None = None,
        strict_plan: bool = True,
        mesh: Mesh | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if isinstance(model, PromptedVisionModel):
            raise ValueError(f"a {type(model).__name__} answers prompts: give it to a PromptPredictor")
        self.model = model
        self.task = find_task(model, task)
        self.preprocessing = preprocessing or model.config.preprocessing
        self.window = None if whole else model.window
        self.batch_size = batch_size
        self.strict_plan = strict_plan
        self.mesh = Mesh(np.array(jax.local_devices()), ("images",)) if mesh is None else mesh
        self._fitting: set[tuple[int, ...]] = set()

    def __repr__(self) -> str:
        """One line: the model, its task and the size of its input."""
        return f"Predictor({self.model!r}, task={self.task.name!r}, size={self.preprocessing.shape})"

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Any:
        """Predicts one image or several.

        Args:
            images: a path, a PIL image or an array (see `read_image`), or a list of them.

        Returns:
            The task's result at each image's size; a list if a list was given.

        A batch that does not fit into memory is halved.

        Raises:
            MemoryError: not even one image or window at once fits.
            ValueError: an image cannot be read, is too small, the model's plan does not fit it, or what the model
                makes of it is not finite.
        """
        if isinstance(images, (list, tuple)):
            return self._predict(images)
        [result] = self._predict([images])  # pyright: ignore[reportArgumentType]  `read_image` checks it
        return result

    def _predict(self, sources: Sequence[ImageSource]) -> list[Any]:
        photos = [read_image(source) for source in sources]
        layouts: list[Layout] = []
        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for index, photo in enumerate(photos):
            prepared = self.preprocessing(photo)
            views, layout = self.window.cut(prepared) if self.window else whole_view(prepared, self.model.multiple)
            by_shape[views.shape[1:]] += [(index, view) for view in views]
            layouts.append(layout)

        outputs: dict[int, list[Any]] = defaultdict(list)
        for group in by_shape.values():
            batch_size, start = min(self.batch_size, len(group)), 0
            while start < len(group):
                indices, views = zip(*group[start : start + batch_size], strict=True)
                try:
                    # Pad the last batch: a smaller one would trigger a recompilation.
                    missing = batch_size - len(views)
                    padded = np.stack(views + views[:1] * missing)
                    sizes = [layouts[index].image for index in indices + indices[:1] * missing]
                    batch = jax.tree.map(np.asarray, self._run(padded, sizes))
                except Exception as problem:
                    if batch_size == 1 or not is_out_of_memory(problem):
                        raise
                    batch_size //= 2
                    continue
                for place, index in enumerate(indices):
                    outputs[index].append(jax.tree.map(lambda leaf, place=place: leaf[place], batch))
                start += batch_size
        results = []
        for index, (photo, layout) in enumerate(zip(photos, layouts, strict=True)):
            joined = jax.tree.map(lambda *views: np.stack(views), *outputs[index])
            _check_finite(joined, sources[index])
            results.append(self.task.postprocess(joined, layout, photo.shape[:2]))
        return results

    def _run(self, images: np.ndarray, sizes: Sequence[tuple[int, int]]) -> Any:
        """The outputs for a batch; more of them where the devices' shares would not be equal."""
        batch = images, np.array(sizes, np.float32) if self.model.sized else None
        if self.mesh.size == 1 or len(images) == 1:
            return self._run_checked(run, self._fitted(self.model, images), *batch)
        missing = -len(images) % self.mesh.size
        batch = jax.tree.map(lambda each: np.concatenate([each, *[each[:1]] * missing]), batch)
        shared = jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec(self.mesh.axis_names)))
        on_mesh = functools.partial(run_shared, mesh=self.mesh)
        return self._run_checked(on_mesh, self._fitted(self._on_all_devices, images), *shared)

    @functools.cached_property
    def _on_all_devices(self) -> Model:
        return jax.device_put(self.model, NamedSharding(self.mesh, PartitionSpec()))

    def _fitted(self, model: Model, images: np.ndarray) -> Model:
        made_for = self.preprocessing.shape
        return model if self.strict_plan else fit_plan(model, images.shape[1:3], made_for)

    def _run_checked(self, function: Callable[..., Any], model: Model, images: Any, sizes: Any) -> Any:
        """Memory is checked once for every shape of images: a run leaves as much as it found."""
        if function is run and images.shape not in self._fitting:
            check_memory(run, model, images, sizes)
            self._fitting.add(images.shape)
        return function(model, images, sizes)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception means that the memory of the host or of a device was exhausted."""
    is_of_xla = isinstance(problem, jax.errors.JaxRuntimeError)
    return isinstance(problem, MemoryError) or (is_of_xla and "RESOURCE_EXHAUSTED" in str(problem))


def memory_sentence(problem: BaseException) -> str:
    """What a user is told of such an exception."""
    reason = str(problem).strip().partition("\n")[0] or "an array could not be made"
    return f"not enough memory, lower --size, --batch or the number of images at once: {reason}"


def _check_finite(outputs: Any, source: ImageSource) -> None:
    for leaf in jax.tree.leaves(outputs):
        if np.issubdtype(leaf.dtype, np.floating) and not np.isfinite(leaf).all():
            what = source if isinstance(source, str | os.PathLike) else "an image"
            raise ValueError(f"the model's output for {what} must be finite, got NaN or infinity")
