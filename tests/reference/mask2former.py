"""What Mask2Former makes of its queries, written plainly: pixel by pixel where that is affordable, float64.

Masks are those of one image, [Q, h, w] for the padded image of 4 h x 4 w pixels.
"""

import numpy as np

Size = tuple[int, int]


def resized(image: np.ndarray, size: Size) -> np.ndarray:
    """A map [h, w] at another size, bilinear with align_corners=False."""
    result = np.zeros(size)
    for y, x in np.ndindex(*size):
        row = max((y + 0.5) * image.shape[0] / size[0] - 0.5, 0)
        column = max((x + 0.5) * image.shape[1] / size[1] - 0.5, 0)
        top, left = int(row), int(column)
        below, right = min(top + 1, image.shape[0] - 1), min(left + 1, image.shape[1] - 1)
        upper = image[top, left] * (1 - column + left) + image[top, right] * (column - left)
        lower = image[below, left] * (1 - column + left) + image[below, right] * (column - left)
        result[y, x] = upper * (1 - row + top) + lower * (row - top)
    return result


def probabilities(class_logits: np.ndarray) -> np.ndarray:
    weights = np.exp(class_logits.astype(np.float64))
    return weights / weights.sum(axis=-1, keepdims=True)


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def padded_masks(masks: np.ndarray) -> np.ndarray:
    """Mask logits at the size of the padded image."""
    return np.stack([resized(mask, (4 * mask.shape[0], 4 * mask.shape[1])) for mask in masks.astype(np.float64)])


def final_masks(masks: np.ndarray, image: Size, size: Size) -> np.ndarray:
    """Mask logits of the photograph."""
    return np.stack([resized(mask[: image[0], : image[1]], size) for mask in padded_masks(masks)])


def semantic(class_logits: np.ndarray, masks: np.ndarray, image: Size, size: Size, *, alone: bool) -> np.ndarray:
    """The label of every pixel."""
    scores = probabilities(class_logits)[:, :-1]
    if alone:
        votes = np.einsum("qk,qhw->khw", scores, sigmoid(padded_masks(masks)))
        votes = np.stack([resized(vote[: image[0], : image[1]], size) for vote in votes])
    else:
        votes = np.einsum("qk,qhw->khw", scores, sigmoid(final_masks(masks, image, size)))
    return votes.argmax(axis=0)


def instances(
    class_logits: np.ndarray,
    masks: np.ndarray,
    image: Size,
    size: Size,
    *,
    detections: int,
    things: set[int] | None,
) -> list[tuple[int, float, np.ndarray]]:
    """Label, score and mask of every instance."""
    scores = probabilities(class_logits)[:, :-1]
    pairs = sorted(np.ndindex(*scores.shape), key=lambda pair: -scores[pair])[:detections]
    logits, found = final_masks(masks, image, size), []
    for query, label in pairs:
        if things is None or label in things:
            mask = logits[query] > 0
            inside = sigmoid(logits[query])[mask].sum() / (mask.sum() + 1e-6)
            found.append((label, scores[query, label] * inside, mask))
    return found


def panoptic(
    class_logits: np.ndarray,
    masks: np.ndarray,
    image: Size,
    size: Size,
    *,
    things: set[int],
    object_threshold: float,
    overlap_threshold: float,
) -> tuple[np.ndarray, list[tuple[int, int, bool]]]:
    """The number of every pixel's segment; number, label and whether it is a thing of each."""
    scores = probabilities(class_logits)
    labels, best = scores.argmax(axis=1), scores.max(axis=1)
    kept = [q for q in range(len(scores)) if labels[q] < scores.shape[1] - 1 and best[q] > object_threshold]
    result, table, stuff = np.zeros(size, int), [], {}
    if not kept:
        return result, table
    inside = sigmoid(final_masks(masks, image, size)[kept])
    winner = (best[kept][:, None, None] * inside).argmax(axis=0)
    for place, query in enumerate(kept):
        won, own = winner == place, inside[place] >= 0.5
        final = won & own
        if won.sum() == 0 or own.sum() == 0 or final.sum() == 0 or won.sum() / own.sum() < overlap_threshold:
            continue
        label = int(labels[query])
        if label in things or label not in stuff:
            table.append((len(table) + 1, label, label in things))
            number = len(table)
            if label not in things:
                stuff[label] = number
        else:
            number = stuff[label]
        result[final] = number
    return result, table
