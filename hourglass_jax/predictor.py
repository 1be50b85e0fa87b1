"""From photographs of any size to the model's result at the same size."""

import os
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from hourglass_jax.imaging.images import ImageSource, Preprocessing, read_image
from hourglass_jax.imaging.windows import Layout, whole_view
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Model, find_task
from hourglass_jax.plans.expedite import fit_plan


@jax.jit
def run(model: Model, images: jax.Array) -> Any:
    """The outputs that tasks read, of images [B, rows, columns, 3]: a pytree of arrays [B, ...]."""
    return model.decode(model.features(images), None)


class Predictor:
    """Runs a model on images as they come: paths, PIL images or arrays, one or many.

    One function is compiled for every input shape and kept. Images (or windows of them) of the same shape are run
    together.

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

    Attributes:
        task: the task.

    Raises:
        ValueError: the batch size is not positive, or the model has no such task.
    """

    def __init__(
        self,
        model: Model,
        *,
        preprocessing: Preprocessing | None = None,
        whole: bool = False,
        batch_size: int = 8,
        task: str | None = None,
        strict_plan: bool = True,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.task = find_task(model, task)
        self.preprocessing = preprocessing or model.config.preprocessing
        self.window = None if whole else model.window
        self.batch_size = batch_size
        self.strict_plan = strict_plan
        self._fitting: set[tuple[int, ...]] = set()

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> Any:
        """Predicts one image or several.

        Args:
            images: a path, a PIL image or an array (see `read_image`), or a list of them.

        Returns:
            The task's result at each image's own size; a list where a list was given.

        A batch that does not fit into memory is halved.

        Raises:
            MemoryError: not even one image or window at once fits.
            ValueError: an image cannot be read, is too small, the model's plan does not fit it, or what the model
                makes of it is not finite.
        """
        if isinstance(images, (list, tuple)):
            return self._predict(images)
        [result] = self._predict([images])  # pyright: ignore[reportArgumentType]  read as one image, or refused
        return result

    def _predict(self, sources: Sequence[ImageSource]) -> list[Any]:
        photos = [read_image(source) for source in sources]
        layouts: list[Layout] = []
        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for index, photo in enumerate(photos):
            prepared = self.preprocessing(photo)
            views, layout = self.window.cut(prepared) if self.window else whole_view(prepared)
            by_shape[views.shape[1:]] += [(index, view) for view in views]
            layouts.append(layout)

        outputs: dict[int, list[Any]] = defaultdict(list)
        for group in by_shape.values():
            batch_size, start = min(self.batch_size, len(group)), 0
            while start < len(group):
                indices, views = zip(*group[start : start + batch_size], strict=True)
                try:
                    # Pad the last batch: a smaller one would trigger a recompilation.
                    padded = np.stack(views + views[:1] * (batch_size - len(views)))
                    batch = jax.tree.map(np.asarray, self._run(padded))
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

    def _run(self, images: np.ndarray) -> Any:
        made_for = self.preprocessing.shape
        model = self.model if self.strict_plan else fit_plan(self.model, images.shape[1:3], made_for)
        self._check_memory(model, images)
        return run(model, images)

    def _check_memory(self, model: Model, images: Any) -> None:
        """Once for every shape of images; a run leaves as much memory as it found."""
        if images.shape not in self._fitting:
            check_memory(run, model, images)
            self._fitting.add(images.shape)


def is_out_of_memory(problem: BaseException) -> bool:
    """Whether an exception says that an array did not fit into the memory of the host or of a device."""
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
