"""Masks that a model answers prompts with: what they cover in a photograph, and how good they are said to be."""

import functools
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import numpy as np

from hourglass_jax.imaging.labels import Color, palette
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.imaging.segment_pictures import Region, segment_overlay
from hourglass_jax.imaging.windows import Layout
from hourglass_jax.metrics.base import Metric
from hourglass_jax.metrics.run_lengths import encode_mask
from hourglass_jax.ops.resize import resize_matrix
from hourglass_jax.tasks.base import Rendering, image_id, only_view

Multimask = bool | Literal["best"]


class PromptOutputs(NamedTuple):
    """What a model answers P prompts with.

    Attributes:
        logits: [B, P, 4, h, w], positive inside: of the mask for a prompt that says enough, and of three for one
            that may mean a part or the whole.
        qualities: [B, P, 4], the overlap with the truth that the model expects of each.
    """

    logits: jax.Array
    qualities: jax.Array


class Masks(NamedTuple):
    """Masks of a photograph; the axes in front are those of prompts and of the masks of each.

    Attributes:
        masks: bool [..., rows, columns].
        scores: [...], the overlap with the truth that the model expects; may exceed 1.
        logits: [..., h, w], which a further prompt may hold.
    """

    masks: np.ndarray
    scores: np.ndarray
    logits: np.ndarray


@functools.lru_cache(maxsize=4)
def mask_weights(
    positions: tuple[int, int], view: tuple[int, int], size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """What every row and column of a photograph takes from those of a mask's logits.

    The logits are enlarged to the model's input, what was filled up is cut off, and the rest gets the photograph's
    size: each bilinearly, and so all of it is one matrix for rows and one for columns.

    Args:
        positions: (rows, columns) of the logits.
        view: (rows, columns) of the model's input, a square.
        size: (rows, columns) of the photograph.

    Returns:
        float32 [rows, h] and [columns, w].
    """
    scaled = PaddedSquare(view[0]).target_size(*size)
    rows, columns = (
        (resize_matrix(inner, target, "bilinear") @ resize_matrix(few, whole, "bilinear")[:inner]).astype(
            np.float32
        )
        for few, whole, inner, target in zip(positions, view, scaled, size, strict=True)
    )
    return rows, columns


def enlarged(logits: np.ndarray, view: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Mask logits [..., h, w] at the size of a photograph, float32 [..., rows, columns]; see `mask_weights`."""
    rows, columns = mask_weights((logits.shape[-2], logits.shape[-1]), view, size)
    return rows @ logits @ columns.T


def chosen(logits: np.ndarray, qualities: np.ndarray, multimask: Multimask) -> tuple[np.ndarray, np.ndarray]:
    """The masks of each prompt that are wanted.

    Args:
        logits: [P, 4, h, w].
        qualities: [P, 4].
        multimask: True for the three of an ambiguous prompt, False for the one of a prompt that says enough, "best"
            for the best of the three.

    Returns:
        [P, M, h, w] and [P, M].
    """
    if multimask not in (True, False, "best"):
        raise ValueError(f"multimask must be True, False or 'best', got {multimask!r}")
    if multimask is False:
        return logits[:, :1], qualities[:, :1]
    if multimask is True:
        return logits[:, 1:], qualities[:, 1:]
    best = 1 + np.argmax(qualities[:, 1:], axis=1)[:, None]
    return np.take_along_axis(logits, best[..., None, None], axis=1), np.take_along_axis(qualities, best, axis=1)


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of masks, bool [..., rows, columns] -> [...]; two empty ones are equal."""
    union = (a | b).sum(axis=(-2, -1))
    return np.where(union, (a & b).sum(axis=(-2, -1)) / np.maximum(union, 1), 1.0)


@dataclass(frozen=True)
class PromptedMasks:
    """The best mask of every prompt.

    Source: facebookresearch/segment-anything, segment_anything/modeling/sam.py (postprocess_masks).
    """

    name = "masks"

    def postprocess(self, outputs: PromptOutputs, layout: Layout, size: tuple[int, int]) -> Masks:
        """See `Task.postprocess`; the masks of a result are [P, rows, columns]."""
        answers, qualities = (only_view(np.asarray(each)) for each in outputs)
        logits, scores = chosen(answers, qualities, "best")
        logits, scores = logits[:, 0], scores[:, 0]
        return Masks(enlarged(logits, layout.view, size) > 0, scores, logits)

    def difference(self, a: Masks, b: Masks) -> np.ndarray:
        """The share of the masks that one result has at a pixel and the other has not."""
        return np.asarray(np.mean(a.masks != b.masks, axis=0, dtype=np.float32))

    def agreement(self, a: Masks, b: Masks) -> float | None:
        """The mean overlap of the masks: intersection over union."""
        return float(np.mean(overlap(a.masks, b.masks)))

    def render(self, photo: np.ndarray, result: Masks) -> Rendering:
        """A picture of every mask, COCO's form of all, and all of them on the photograph."""
        colors = _colors(len(result.masks))
        regions = [
            Region(mask, f"mask {place} {score:.2f}", color, is_thing=True)
            for place, (mask, score, color) in enumerate(zip(result.masks, result.scores, colors, strict=True))
        ]
        pictures = {f"mask_{place}": mask.astype(np.uint8) * 255 for place, mask in enumerate(result.masks)}
        return Rendering(
            {**pictures, "overlay": segment_overlay(photo, regions)},
            records={
                "masks": [
                    {"score": float(score), "area": int(mask.sum()), "bbox": bounding_box(mask)}
                    for mask, score in zip(result.masks, result.scores, strict=True)
                ]
            },
            documents={"masks": lambda name: [*map(_annotation, [name] * len(result.masks), *result[:2])]},
            text=tuple(
                f"mask {place}: quality {score:.3f}, {mask.mean():.1%} of the photograph"
                for place, (mask, score) in enumerate(zip(result.masks, result.scores, strict=True))
            ),
        )

    def check_dataset(self, name: str, classes: int) -> None:
        """See `Task.check_dataset`."""
        raise ValueError(f"masks of prompts have no classes, and {name} is labelled with {classes}")

    def metric(self, published: Metric) -> Metric:
        """See `Task.metric`."""
        return published


def bounding_box(mask: np.ndarray) -> list[int]:
    """COCO's box around a mask: left, top, width and height in pixels; zeros of an empty one."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return [0, 0, 0, 0]
    return [int(columns[0]), int(rows[0]), int(columns[-1] - columns[0] + 1), int(rows[-1] - rows[0] + 1)]


def _annotation(name: str, mask: np.ndarray, score: float) -> dict[str, object]:
    return {
        "image_id": image_id(name),
        "segmentation": encode_mask(mask),
        "area": int(mask.sum()),
        "bbox": bounding_box(mask),
        "score": float(score),
    }


def _colors(count: int) -> tuple[Color, ...]:
    return palette(count + 1)[1:]
