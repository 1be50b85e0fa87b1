"""Prompts as SAM's decoder takes them, from points, boxes and masks as people give them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = range(4)
"""What a token of a prompt stands for; points are labelled with the first two."""
NOT_A_POINT, ABSENT = -1, -2
"""A token that stands for no place, as the model knows it, and one that fills up and is not attended to."""
MOST_POINTS = 1 << 14
"""Of a prompt: their attention to one another is quadratic."""
FARTHEST = 1e6
"""Pixels; the sines of what lies farther outside an image are noise."""


class Prompts(NamedTuple):
    """P prompts about each of B images.

    Attributes:
        places: float32 [B, P, T, 2], x and y in pixels of the model's input.
        kinds: int32 [B, P, T], what each place is, see `BACKGROUND` to `ABSENT`.
        masks: float32 [B, P, rows, columns], logits of an earlier answer, or None.
    """

    places: jax.Array | np.ndarray
    kinds: jax.Array | np.ndarray
    masks: jax.Array | np.ndarray | None = None


class PromptArrays(NamedTuple):
    """P prompts about one photograph, checked.

    Attributes:
        points: [P, N, 2], x and y in pixels of the photograph, or None.
        labels: int [P, N], or None.
        boxes: [P, 4], left, top, right and bottom, or None.
        masks: [P, rows, columns], or None.
        is_single: whether one prompt was given without an axis for several.
    """

    points: np.ndarray | None
    labels: np.ndarray | None
    boxes: np.ndarray | None
    masks: np.ndarray | None
    is_single: bool

    def __len__(self) -> int:
        return next(len(each) for each in (self.points, self.boxes, self.masks) if each is not None)

    def part(self, start: int, stop: int) -> "PromptArrays":
        """The prompts `start` to `stop - 1`."""
        points, labels, boxes, masks = (
            None if each is None else each[start:stop]
            for each in (self.points, self.labels, self.boxes, self.masks)
        )
        return PromptArrays(points, labels, boxes, masks, False)

    def prompts(self, scale: tuple[float, float], count: int) -> Prompts:
        """As the model takes them, about one image.

        Args:
            scale: pixels of the model's input for a pixel of the photograph, across and down.
            count: prompts in all; those that are missing repeat the first. Tokens are filled up too, to a power of
                two, so that few functions are compiled.
        """
        places, kinds = [np.zeros((len(self), 0, 2))], [np.zeros((len(self), 0), int)]
        if self.points is not None and self.labels is not None:
            places.append(self.points * scale)
            kinds.append(self.labels)
            if self.boxes is None:
                places.append(np.zeros((len(self), 1, 2)))
                kinds.append(np.full((len(self), 1), NOT_A_POINT))
        if self.boxes is not None:
            places.append(self.boxes.reshape(-1, 2, 2) * scale)
            kinds.append(np.tile([TOP_LEFT, BOTTOM_RIGHT], (len(self), 1)))
        place, kind = np.concatenate(places, axis=1), np.concatenate(kinds, axis=1)
        missing = bucket(kind.shape[1]) - kind.shape[1]
        place = np.pad(place, ((0, 0), (0, missing), (0, 0))).astype(np.float32)
        kind = np.pad(kind, ((0, 0), (0, missing)), constant_values=ABSENT).astype(np.int32)
        chosen = np.where(np.arange(count) < len(self), np.arange(count), 0)
        masks = None if self.masks is None else self.masks[chosen][None].astype(np.float32)
        return Prompts(place[chosen][None], kind[chosen][None], masks)


def bucket(count: int) -> int:
    """The next power of two, from two on; none of nothing."""
    return 0 if count == 0 else max(2, 1 << (count - 1).bit_length())


def check_prompts(
    points: ArrayLike | Sequence[Any] | None,
    labels: ArrayLike | Sequence[Any] | None,
    boxes: ArrayLike | Sequence[Any] | None,
    masks: ArrayLike | None,
    mask_size: tuple[int, int],
) -> PromptArrays:
    """Prompts about one photograph.

    Args:
        points: [N, 2], x and y in pixels, or [P, N, 2] for P prompts; they may lie outside the photograph.
        labels: [N] or [P, N], 1 for foreground, 0 for background, -1 for no point; by default all are foreground.
        boxes: [4], left, top, right and bottom in pixels, or [P, 4].
        masks: [rows, columns] or [P, rows, columns], logits.
        mask_size: what the sides of these must be.

    Raises:
        ValueError: a shape, a label or a number is not as above, nothing is given, or numbers of prompts differ.
    """
    point, is_one = _numbers("points", points, 2, "[points, 2] or [prompts, points, 2]", last=2)
    box, is_one_box = _numbers("boxes", boxes, 1, "[4] or [prompts, 4]", last=4)
    mask, is_one_mask = _numbers("mask", masks, 2, "[rows, columns] or [prompts, rows, columns]")
    if mask is not None and mask.shape[1:] != mask_size:
        raise ValueError(f"mask must hold logits of {mask_size[0]} x {mask_size[1]}, got {list(mask.shape[1:])}")
    label = None
    if point is not None:
        if point.shape[1] > MOST_POINTS:
            raise ValueError(f"a prompt must have at most {MOST_POINTS} points, got {point.shape[1]}")
        label = np.full(point.shape[:2], FOREGROUND) if labels is None else np.asarray(labels)
        label = label[None] if label.ndim == 1 and is_one else label
        if label.shape != point.shape[:2] or not np.isin(label, (BACKGROUND, FOREGROUND, NOT_A_POINT)).all():
            raise ValueError(
                f"labels must be 1, 0 or -1 for each of the points, {list(point.shape[:2])}, got {_short(label)}"
            )
    elif labels is not None:
        raise ValueError("labels are those of points, of which there are none")
    given = {"points": point, "boxes": box, "mask": mask}
    counts = {name: len(each) for name, each in given.items() if each is not None}
    if not counts:
        raise ValueError("a prompt must have points, a box or a mask, got none of them")
    if len(set(counts.values())) > 1:
        shown = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ValueError(f"points, boxes and masks must be of as many prompts, got {shown}")
    if 0 in counts.values():
        raise ValueError("prompts must be at least one, got none")
    singles = [one for each, one in ((point, is_one), (box, is_one_box), (mask, is_one_mask)) if each is not None]
    return PromptArrays(point, None if label is None else label.astype(int), box, mask, all(singles))


def _numbers(
    name: str, given: Any, axes: int, expected: str, last: int | None = None
) -> tuple[np.ndarray | None, bool]:
    """Finite numbers with an axis for prompts in front, and whether it was missing."""
    if given is None:
        return None, True
    try:
        array = np.asarray(given, np.float64)
    except (ValueError, TypeError):
        raise ValueError(f"{name} must be numbers {expected}, got {_short(given)}") from None
    is_single = array.ndim == axes
    array = array[None] if is_single else array
    if array.ndim != axes + 1 or (last is not None and array.shape[-1] != last):
        raise ValueError(f"{name} must be numbers {expected}, got shape {list(np.shape(given))}")
    if not np.isfinite(array).all() or (last is not None and np.abs(array).max(initial=0) > FARTHEST):
        limit = "" if last is None else f" of at most {FARTHEST:g} pixels"
        raise ValueError(f"{name} must be finite numbers{limit}, got {_worst(array)}")
    return array, is_single


def _worst(array: np.ndarray) -> str:
    bad = array[~np.isfinite(array)]
    return str(bad[0] if bad.size else array.ravel()[np.abs(array).argmax()])


def _short(value: object) -> str:
    text = " ".join(str(np.asarray(value, object).tolist()).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
