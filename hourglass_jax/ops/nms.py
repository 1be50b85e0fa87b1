"""Non-maximum suppression of fixed size: what the official lists hold, in their order, with masks of what is valid.

Greedy suppression goes through boxes from the best score to the worst. Equal scores stand in the order of their
index, as after a stable sort.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32

from hourglass_jax.ops.boxes import overlaps


@dataclass(frozen=True)
class Suppression:
    """What becomes of boxes of a class that overlap a better one.

    Attributes:
        method: "hard" drops them; "linear" lowers their scores by the factor 1 - overlap, "gaussian" those of all
            by exp(-overlap^2 / sigma): soft-NMS.
        threshold: of the overlap, above which boxes are dropped, or from which on scores are lowered ("linear").
        least: the score below which boxes are dropped from a soft-NMS.
        sigma: of "gaussian".

    Source: open-mmlab/mmcv 1.7, mmcv/ops/csrc/pytorch/cpu/nms.cpp.
    """

    method: Literal["hard", "linear", "gaussian"] = "hard"
    threshold: float = 0.5
    least: float = 1e-3
    sigma: float = 0.5

    def __post_init__(self) -> None:
        if self.method not in ("hard", "linear", "gaussian"):
            raise ValueError(f"method must be 'hard', 'linear' or 'gaussian', got {self.method!r}")
        if not (0 <= self.threshold <= 1 and 0 <= self.least <= 1 and self.sigma > 0):
            raise ValueError(
                "threshold and least must lie in 0..1 and sigma be positive, got "
                f"{self.threshold}, {self.least} and {self.sigma}"
            )

    def lowered(self, scores: Float[Array, " boxes"], overlap: Float[Array, " boxes"]) -> Float[Array, " boxes"]:
        """Scores after a box was selected with which they overlap; -inf of those that are dropped."""
        if self.method == "hard":
            return jnp.where(overlap > self.threshold, -jnp.inf, scores)
        if self.method == "linear":
            return scores * jnp.where(overlap >= self.threshold, 1 - overlap, 1)
        return scores * jnp.exp(-jnp.square(overlap) / self.sigma)


def suppress(
    boxes: Float[Array, "boxes 4"], valid: Bool[Array, " boxes"], threshold: float
) -> Bool[Array, " boxes"]:
    """Which boxes a greedy suppression keeps.

    A box is kept if none that is kept before it overlaps it too much. What is kept is the only set of which that is
    true, so it is found in parallel: every pass settles at least one more box, and most passes almost all.

    Args:
        boxes: [N, 4], from the best to the worst.
        valid: [N], which of them there are.
        threshold: of the overlap (intersection over union), above which the worse box goes.

    Returns:
        bool [N]
    """
    order = jnp.arange(len(boxes))
    is_over = (overlaps(boxes[:, None], boxes[None]) > threshold) & (order[:, None] < order)
    is_over = is_over.astype(jnp.float32)

    def settle(state: tuple[Array, Array]) -> tuple[Array, Array]:
        kept, _ = state
        return valid & (kept.astype(jnp.float32) @ is_over == 0), kept

    kept, _ = jax.lax.while_loop(lambda state: jnp.any(state[0] != state[1]), settle, (valid, ~valid))
    return kept


class Selected(NamedTuple):
    """Pairs of a box and a class, the best first.

    Attributes:
        places: int32 [D], the box of each.
        labels: int32 [D], its class.
        scores: float [D]; -inf where there are no more.
    """

    places: Int32[Array, " count"]
    labels: Int32[Array, " count"]
    scores: Float[Array, " count"]


def select(
    boxes: Float[Array, "boxes own 4"],
    scores: Float[Array, "boxes classes"],
    count: int,
    rule: Suppression,
) -> Selected:
    """The best pairs of a box and a class, each suppressing others of its class.

    Args:
        boxes: [N, K, 4] with a box for every class, or [N, 1, 4] with one for all.
        scores: [N, K]; -inf of a pair that is no candidate.
        count: D, how many are wanted.
        rule: what becomes of worse boxes.

    Returns:
        `Selected`.
    """
    classes = scores.shape[1]
    own = boxes.shape[1] > 1

    def step(number: Array, state: tuple[Array, Selected]) -> tuple[Array, Selected]:
        left, found = state
        best = jnp.argmax(left)
        place, label = jnp.divmod(best.astype(jnp.int32), classes)
        score = left[place, label]
        column = jax.lax.dynamic_index_in_dim(boxes, label if own else 0, axis=1, keepdims=False)
        lowered = rule.lowered(left[:, label], overlaps(column, column[place])).at[place].set(-jnp.inf)
        left = left.at[:, label].set(lowered)
        if rule.method != "hard":
            left = jnp.where(left < rule.least, -jnp.inf, left)
        new = Selected(place, label, score)
        return left, jax.tree.map(lambda all_of, each: all_of.at[number].set(each), found, new)

    nothing = Selected(
        jnp.zeros(count, jnp.int32), jnp.zeros(count, jnp.int32), jnp.full(count, -jnp.inf, scores.dtype)
    )
    return jax.lax.fori_loop(0, count, step, (scores, nothing))[1]
