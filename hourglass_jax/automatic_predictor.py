"""All masks of a photograph: a grid of points is asked about, in the photograph and in crops of it."""

from collections.abc import Callable, Iterator
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.imaging.images import ImageSource, read_image
from hourglass_jax.metrics.run_lengths import run_lengths
from hourglass_jax.models.sam_prompts import check_prompts
from hourglass_jax.prompt_predictor import Encoded, PromptPredictor
from hourglass_jax.tasks.automatic_masks import (
    AutomaticMask,
    AutomaticSettings,
    Box,
    box_of,
    crop_boxes,
    grid_points,
    is_cut,
    select,
    select_among_crops,
    without_small_regions,
)
from hourglass_jax.tasks.prompted_masks import mask_weights

MOST_PIXELS = 1 << 25
"""Of the logits that are enlarged at once."""


class AutomaticPredictor:
    """Finds the masks of a photograph without a prompt.

        predictor = AutomaticPredictor(PromptPredictor(model))
        masks = predictor("photo.jpg")    # a list of AutomaticMask, those of the highest quality first

    Args:
        predictor: of a model that answers prompts.
        settings: which points are asked about, and which answers are kept; by default as in the official code.

    Raises:
        ValueError: a setting is out of range.

    Source: facebookresearch/segment-anything, segment_anything/automatic_mask_generator.py.
    """

    def __init__(self, predictor: PromptPredictor, settings: AutomaticSettings = AutomaticSettings()) -> None:
        settings.check()
        self.predictor = predictor
        self.settings = settings

    def steps(self, size: tuple[int, int]) -> int:
        """How often `on_progress` is called for a photograph of `size` = (rows, columns)."""
        settings = self.settings
        return sum(
            -(-(self._points(layer) ** 2) // settings.batch_size)
            for _, layer in crop_boxes(size, settings.crop_layers, settings.crop_overlap)
        )

    def __call__(
        self, image: ImageSource, *, on_progress: Callable[[], object] = lambda: None
    ) -> list[AutomaticMask]:
        """The masks of a photograph.

        Args:
            image: a path, a PIL image or an array (see `read_image`).
            on_progress: called after every batch of points, `steps` times.

        Raises:
            ValueError: the image cannot be read, or the model's plan does not fit.
        """
        photo = read_image(image)
        size, settings = (photo.shape[0], photo.shape[1]), self.settings
        crops = crop_boxes(size, settings.crop_layers, settings.crop_overlap)
        found: list[AutomaticMask] = []
        for crop, layer in crops:
            found += self._of_crop(photo, crop, self._points(layer), on_progress)
        if len(crops) > 1:
            found = select_among_crops(found, settings.crop_box_overlap)
        if settings.least_region:
            most = max(settings.box_overlap, settings.crop_box_overlap)
            found = without_small_regions(found, settings.least_region, most)
        return found

    def _points(self, layer: int) -> int:
        """Points along a side of the grid of a layer of crops."""
        return int(self.settings.points / self.settings.crop_downscale**layer)

    def _of_crop(
        self, photo: np.ndarray, crop: Box, count: int, on_progress: Callable[[], object]
    ) -> list[AutomaticMask]:
        left, top, right, bottom = crop
        part = np.ascontiguousarray(photo[top:bottom, left:right])
        encoded = self.predictor.encode(part)
        points = grid_points(count) * [right - left, bottom - top]
        size, found = (photo.shape[0], photo.shape[1]), []
        for start in range(0, len(points), self.settings.batch_size):
            batch = points[start : start + self.settings.batch_size]
            missing = min(self.settings.batch_size, len(points)) - len(batch)
            padded = np.concatenate([batch, np.repeat(batch[:1], missing, axis=0)])
            for index, mask, quality, stability in self._answers(encoded, padded, len(batch)):
                whole = np.zeros(size, bool)
                whole[top:bottom, left:right] = mask
                x0, y0, x1, y1 = box_of(mask)
                box = x0 + left, y0 + top, x1 + left, y1 + top
                if not is_cut(box, crop, size):
                    point = float(batch[index, 0] + left), float(batch[index, 1] + top)
                    found.append(AutomaticMask(run_lengths(whole), size, box, quality, stability, point, crop))
            on_progress()
        return select(found, self.settings.box_overlap)

    def _answers(
        self, encoded: Encoded, points: np.ndarray, count: int
    ) -> Iterator[tuple[int, np.ndarray, float, float]]:
        """The place of the point, the mask, its quality and its stability, of all answers that are good enough."""
        settings, [size] = self.settings, encoded.sizes
        asked = check_prompts(points[:, None], None, None, None, self.predictor.model.mask_size(encoded.view))
        logits, qualities = (each[:count, 1:] for each in self.predictor.answers(encoded, asked))
        places = np.argwhere(qualities > settings.quality)
        positions = logits.shape[-2], logits.shape[-1]
        rows, columns = map(jnp.asarray, mask_weights(positions, encoded.view, size))
        at_once = max(1, min(16, MOST_PIXELS // (size[0] * size[1])))
        for start in range(0, len(places), at_once):
            part = places[start : start + at_once]
            chosen = logits[tuple(part.T)]
            padded = np.zeros((at_once, *positions), np.float32)
            padded[: len(chosen)] = chosen
            masks, above, below = map(np.asarray, _masks(padded, rows, columns, settings.offset))
            for place, (point, answer) in enumerate(part):
                stability = float(above[place] / below[place]) if below[place] else np.nan
                if stability >= settings.stability:
                    yield int(point), masks[place], float(qualities[point, answer]), stability


@partial(jax.jit, static_argnames="offset")
def _masks(
    logits: jax.Array, rows: jax.Array, columns: jax.Array, offset: float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Masks [n, rows, columns] of logits [n, h, w], and the pixels of those at the two thresholds, [n] each."""
    enlarged = jnp.einsum("yh,nhw,xw->nyx", rows, logits, columns, precision="highest")
    above, below = ((enlarged > threshold).sum(axis=(1, 2), dtype=jnp.int32) for threshold in (offset, -offset))
    return enlarged > 0, above, below
