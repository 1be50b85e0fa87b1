"""What every backbone is: images to named maps of features, under a plan."""

from collections.abc import Sequence
from typing import Protocol, Self

import jax
from flax import nnx

from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan


class Features(Protocol):
    """What a backbone returns."""

    def maps(self) -> dict[str, jax.Array]:
        """The final maps of features by name, [B, H, W, C], from fine to coarse."""
        ...


class Backbone(nnx.Module):
    """Base class of the backbones.

    Attributes:
        plan: how many tokens the blocks work on, or None; set by `expedite`.
    """

    plan: Plan | None

    @property
    def backbone(self) -> Self:
        """The backbone itself, so that one that stands alone takes a plan as a model does."""
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        raise NotImplementedError

    @property
    def channels(self) -> dict[str, int]:
        """Channels of every map by its name in `Features.maps`, in the same order."""
        raise NotImplementedError

    @property
    def strides(self) -> dict[str, int]:
        """Pixels of the image on a side of one position of every map, by the same names."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels of the image on a side of one position of the finest map; a transformer's patch."""
        return min(self.strides.values())

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None:
        """Raises ValueError if the plan does not fit this backbone, or an image of `size` = (rows, columns)."""
        raise NotImplementedError

    def fit_plan(self, plan: Plan, size: tuple[int, int], made_for: tuple[int, int]) -> Plan:
        """The plan for images of another size than it was made for, the same one if it fits them.

        Args:
            plan: one that fits images of `made_for`.
            size: (rows, columns) of the images in pixels.
            made_for: likewise.

        Raises:
            ValueError: the plan does not fit, and cannot be made to.
        """
        self.check_plan(plan, size)
        return plan

    def set_plan(self, plan: Plan | None) -> None:
        """Puts a plan that fits in force, or none; called by `expedite`, which has it checked."""
        self.plan = plan

    def plan_grid(self, rows: int, columns: int) -> Grid:
        """(H, W) of the tokens that a plan is made for: a window's, or those of `rows` x `columns` pixels.

        Raises:
            ValueError: no plan fits the backbone.
        """
        raise NotImplementedError

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Tokens of an image of `rows` x `columns` pixels, and the fewest that the plan leaves of them."""
        raise NotImplementedError

    def features(self, images: jax.Array) -> Features:
        """What a call returns: a backbone that stands alone is the encoder of a model without a head."""
        return self(images)

    def head_input(self, features: Features) -> jax.Array:
        """The last map of features, restored to the full grid, as tokens: [B, H*W, C]."""
        *_, last = features.maps().values()
        return last.reshape(len(last), -1, last.shape[-1])

    def __call__(self, images: jax.Array, *, intermediates: Sequence[int] = ()) -> Features:
        """Runs the backbone under its plan.

        Args:
            images: [B, rows, columns, 3], normalised.
            intermediates: 0-based blocks whose features are wanted too.

        Raises:
            ValueError: the images' shape, the plan or an intermediate does not fit.
        """
        raise NotImplementedError


def check_call(images: jax.Array, intermediates: Sequence[int], depth: int) -> Grid:
    """The sides of normalised images in pixels, (rows, columns).

    Raises:
        ValueError: `images` are not [B, rows, columns, 3], or `intermediates` are not among `depth` blocks.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape [batch, rows, columns, 3], got {images.shape}")
    if any(index not in range(depth) for index in intermediates):
        raise ValueError(f"intermediates must be blocks 0 to {depth - 1}, got {tuple(intermediates)}")
    return images.shape[1], images.shape[2]
