"""From photographs of any size to the model's result at the same size."""

from collections import defaultdict
from collections.abc import Sequence

import jax
import numpy as np
from flax import nnx

from hourglass_jax.imaging.images import ImageSource, Preprocessing, read_image
from hourglass_jax.imaging.windows import Layout, whole_view


class Predictor:
    """Runs a model on images as they come: paths, PIL images or arrays, one or many.

    One function is compiled for every input shape and kept. Images (or windows of them) of the same shape are run
    together.

        predictor = Predictor(hourglass_jax.load("dinov2-vits14-saliency"))
        saliency = predictor("photo.jpg")    # float32 [rows, columns] in 0..1

    Args:
        model: a model of this library, under any plan.
        preprocessing: how images are prepared; by default as the model's config says.
        whole: run on whole images even if the model's config says that they are cut into windows.
        batch_size: images or windows that are run at once.
    """

    def __init__(
        self,
        model: nnx.Module,
        *,
        preprocessing: Preprocessing | None = None,
        whole: bool = False,
        batch_size: int = 8,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.preprocessing = preprocessing or model.config.preprocessing
        self.window = None if whole else getattr(model.config, "window", None)
        self.batch_size = batch_size
        self._run = jax.jit(lambda model, images: model.coarse(images))

    def __call__(self, images: ImageSource | Sequence[ImageSource]) -> np.ndarray | list[np.ndarray]:
        """Predicts one image or several.

        Args:
            images: a path, a PIL image or an array (see `read_image`), or a list of them.

        Returns:
            The model's result at each image's own size; a list where a list was given.

        Raises:
            ValueError: an image cannot be read, is too small, or the model's plan does not fit it.
        """
        if not isinstance(images, (list, tuple)):
            return self._predict([images])[0]
        return self._predict(images)

    def _predict(self, sources: Sequence[ImageSource]) -> list[np.ndarray]:
        photos = [read_image(source) for source in sources]
        layouts: list[Layout] = []
        by_shape: dict[tuple[int, ...], list[tuple[int, np.ndarray]]] = defaultdict(list)
        for index, photo in enumerate(photos):
            prepared = self.preprocessing(photo)
            views, layout = self.window.cut(prepared) if self.window else whole_view(prepared)
            by_shape[views.shape[1:]] += [(index, view) for view in views]
            layouts.append(layout)

        outputs: dict[int, list[np.ndarray]] = defaultdict(list)
        for group in by_shape.values():
            batch_size = min(self.batch_size, len(group))
            for start in range(0, len(group), batch_size):
                indices, views = zip(*group[start : start + batch_size], strict=True)
                # The last batch is filled up: its own size would be compiled anew.
                filled = views + views[:1] * (batch_size - len(views))
                for index, output in zip(
                    indices, np.asarray(self._run(self.model, np.stack(filled))), strict=False
                ):
                    outputs[index].append(output)
        return [
            self.model.finish(np.stack(outputs[index]), layout, photos[index].shape[:2])
            for index, layout in enumerate(layouts)
        ]
