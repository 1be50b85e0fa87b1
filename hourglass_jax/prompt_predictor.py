"""From a photograph to an encoding, and from that and prompts in the photograph's pixels to masks of its size."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.typing import ArrayLike

from hourglass_jax.imaging.images import ImageSource, read_image
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.io.memory import check_memory
from hourglass_jax.models.base import Model, PromptedModel, PromptedVisionModel
from hourglass_jax.models.sam import Sam
from hourglass_jax.models.sam_prompts import PromptArrays, Prompts, bucket, check_prompts
from hourglass_jax.tasks.prompted_masks import Masks, Multimask, PromptOutputs, chosen, enlarged

MOST_AT_ONCE = 64
"""Prompts that are answered at once, as in the official code."""


@jax.jit
def encode(model: Sam, images: jax.Array) -> jax.Array:
    """The encoded images, of normalised ones [B, rows, columns, 3]."""
    return model.features(images)


@jax.jit
def answer(model: Sam, features: jax.Array, prompts: Prompts) -> PromptOutputs:
    """What the model says to prompts about encoded images."""
    return model.decode(features, prompts, None)


@dataclass(frozen=True, eq=False)
class Encoded:
    """Encoded photographs, for as many prompts as are wanted. Nothing in it changes.

    Attributes:
        features: what the model's encoder says of them, [B, H, W, C].
        sizes: (rows, columns) of each photograph in pixels.
        view: (rows, columns) of the model's input.
    """

    features: jax.Array
    sizes: tuple[tuple[int, int], ...]
    view: tuple[int, int]

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: int) -> "Encoded":
        """One of the photographs."""
        place = range(len(self))[index]
        return Encoded(self.features[place : place + 1], (self.sizes[place],), self.view)

    def __iter__(self) -> Iterator["Encoded"]:
        return (self[index] for index in range(len(self)))


class PromptPredictor:
    """Runs a model that answers prompts.

        predictor = PromptPredictor(hourglass_jax.load("sam_vit_b.safetensors"))
        encoded = predictor.encode("photo.jpg")
        masks, scores, logits = predictor.masks(encoded, points=[(320, 240)])
        box = predictor.masks(encoded, boxes=(100, 80, 400, 300), multimask=False)

    Args:
        model: a `Sam`, under any plan.
        preprocessing: how images are prepared; by default as the model's config says.
        batch_size: prompts that are answered at once at most; photographs are encoded one after the other.

    Raises:
        ValueError: the model takes no prompts, or the batch size is not positive.
    """

    def __init__(
        self,
        model: Model | PromptedModel,
        *,
        preprocessing: PaddedSquare | None = None,
        batch_size: int = MOST_AT_ONCE,
    ) -> None:
        if not isinstance(model, Sam):
            name = type(model).__name__
            if isinstance(model, PromptedVisionModel):
                raise ValueError(f"expected a Sam, whose prompts are points and boxes, got a {name}")
            raise ValueError(f"a {name} answers no prompts: give it to a Predictor")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.model = model
        self.preprocessing = preprocessing or model.config.preprocessing
        self.preprocessing.whole_patches(model.config.backbone.patch_size)
        self.batch_size = batch_size

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> Encoded:
        """Encodes a photograph, or several.

        Args:
            images: a path, a PIL image or an array (see `read_image`), or a list of them.

        Raises:
            ValueError: an image cannot be read, the model's plan does not fit, or the encoding is not finite.
        """
        sources = images if isinstance(images, (list, tuple)) else [images]
        photos = [read_image(source) for source in sources]  # pyright: ignore[reportArgumentType]  or refused
        if not photos:
            raise ValueError("expected at least one photograph, got none")
        prepared = [self.preprocessing(photo)[None] for photo in photos]
        check_memory(encode, self.model, prepared[0])
        features = jax.numpy.concatenate([encode(self.model, image) for image in prepared])
        if not np.isfinite(np.asarray(features, np.float32)).all():
            raise ValueError("the encoding of an image must be finite, got NaN or infinity")
        sizes = tuple((photo.shape[0], photo.shape[1]) for photo in photos)
        return Encoded(features, sizes, (prepared[0].shape[1], prepared[0].shape[2]))

    def masks(
        self,
        encoded: Encoded,
        *,
        points: ArrayLike | Sequence[Any] | None = None,
        labels: ArrayLike | Sequence[Any] | None = None,
        boxes: ArrayLike | Sequence[Any] | None = None,
        mask: ArrayLike | None = None,
        multimask: Multimask = True,
    ) -> Masks:
        """The masks of one prompt about a photograph, or of several.

        Args:
            encoded: of one photograph; `encoded[i]` is one of several.
            points: [N, 2], x and y in pixels of the photograph, or [P, N, 2] for P prompts.
            labels: [N] or [P, N], 1 for points on what is wanted (the default), 0 for points beside it.
            boxes: [4], left, top, right and bottom in pixels, or [P, 4]: a box is a prompt of its own, or a part of
                the prompt whose points are given too.
            mask: [h, w] or [P, h, w], logits of an earlier answer.
            multimask: True for three masks, which a prompt of one point calls for; False for one, of a prompt that
                leaves no doubt; "best" for that of the three with the highest score.

        Returns:
            `Masks` of [M, rows, columns], or [P, M, rows, columns] where several prompts are given.

        Raises:
            ValueError: see `check_prompts`, or `encoded` is of several photographs.
        """
        if len(encoded) != 1:
            raise ValueError(f"prompts are about one photograph, got {len(encoded)}: take one with encoded[i]")
        asked = check_prompts(points, labels, boxes, mask, self.model.mask_size(encoded.view))
        logits, scores = chosen(*self.answers(encoded, asked), multimask)
        masks = np.concatenate([enlarged(each[None], encoded.view, encoded.sizes[0]) > 0 for each in logits])
        found = Masks(masks, scores, logits)
        return Masks(*(each[0] for each in found)) if asked.is_single else found

    def answers(self, encoded: Encoded, asked: PromptArrays) -> tuple[np.ndarray, np.ndarray]:
        """The logits [P, 4, h, w] and qualities [P, 4] of all prompts about one photograph."""
        [size] = encoded.sizes
        height, width = self.preprocessing_of(encoded).target_size(*size)
        scale = width / size[1], height / size[0]
        found = []
        for start in range(0, len(asked), self.batch_size):
            part = asked.part(start, start + self.batch_size)
            count = len(part) if len(asked) == 1 else min(self.batch_size, bucket(len(asked)))
            outputs = answer(self.model, encoded.features, part.prompts(scale, count))
            found.append(
                (np.asarray(outputs.logits[0, : len(part)]), np.asarray(outputs.qualities[0, : len(part)]))
            )
        logits, qualities = (np.concatenate(each) for each in zip(*found, strict=True))
        return logits, qualities

    def preprocessing_of(self, encoded: Encoded) -> PaddedSquare:
        """The preprocessing that an encoding was made with."""
        return self.preprocessing.at(encoded.view[0])
