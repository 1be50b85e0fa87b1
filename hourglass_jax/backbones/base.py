"""The base class of backbones: images to named feature maps, under a plan."""

from collections.abc import Sequence
from typing import Protocol, Self

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.base import Plan


class Features(Protocol):
    """The output of a backbone."""

    def maps(self) -> dict[str, jax.Array]:
        """The final maps of features by name, [B, H, W, C], from fine to coarse."""
        ...


class Backbone(nnx.Module):
    """Base class of the backbones.

    Attributes:
        plan: the plan, or None; set by `expedite`.
    """

    plan: Plan | None

    @property
    def backbone(self) -> Self:
        """The backbone itself, so that it can be expedited without a model."""
        return self

    @property
    def depth(self) -> int:
        """Number of blocks."""
        raise NotImplementedError

    @property
    def windows(self) -> tuple[range, int] | None:
        """The blocks of the longest stage and the side of its windows in tokens; None if attention is global."""
        return None

    @property
    def channels(self) -> dict[str, int]:
        """Name in `Features.maps` -> channels of the map, in the same order."""
        raise NotImplementedError

    @property
    def strides(self) -> dict[str, int]:
        """Name in `Features.maps` -> stride of the map in pixels."""
        raise NotImplementedError

    @property
    def stride(self) -> int:
        """Pixels of the image on a side of one position of the finest map; a transformer's patch."""
        return min(self.strides.values())

    def check_plan(self, plan: Plan, size: tuple[int, int] | None = None) -> None:
        """Raises ValueError if the plan does not fit this backbone, or an image of `size` = (rows, columns)."""
        raise NotImplementedError

    def fit_plan(self, plan: Plan, size: tuple[int, int], made_for: tuple[int, int]) -> Plan:
        """Adapts a plan to images of another size; returns the same plan if it fits them.

        Args:
            plan: a plan that fits images of the size `made_for`.
            size: (rows, columns) of the images in pixels.
            made_for: (rows, columns) of the images that the plan was made for.

        Raises:
            ValueError: the plan does not fit and cannot be adapted.
        """
        self.check_plan(plan, size)
        return plan

    def set_plan(self, plan: Plan | None) -> None:
        """Sets the plan, or None; called by `expedite` after the plan was checked."""
        self.plan = plan

    def plan_grid(self, rows: int, columns: int) -> Grid:
        """(H, W) of the tokens that a plan is made for: a window's, or those of `rows` x `columns` pixels.

        Raises:
            ValueError: no plan fits the backbone.
        """
        raise NotImplementedError

    def token_counts(self, rows: int, columns: int) -> tuple[int, int]:
        """Number of tokens of an image of `rows` x `columns` pixels, and the smallest number under the plan."""
        raise NotImplementedError

    def features(self, images: jax.Array) -> Features:
        """The same as a call, as in a model: a backbone is an encoder without a head."""
        return self(images)

    def head_input(self, features: Features) -> jax.Array:
        """The last feature map as tokens, restored to the full grid: [B, H*W, C]."""
        *_, last = features.maps().values()
        return last.reshape(last.shape[0], -1, last.shape[-1])

    def __call__(self, images: jax.Array, *, intermediates: Sequence[int] = ()) -> Features:
        """Runs the backbone under its plan.

        Args:
            images: [B, rows, columns, 3], normalised.
            intermediates: 0-based blocks whose features are returned as well.

        Raises:
            ValueError: the images' shape, the plan or an intermediate does not fit.
        """
        raise NotImplementedError


def check_call(images: jax.Array, intermediates: Sequence[int], depth: int) -> Grid:
    """Checks the arguments of a backbone; returns (rows, columns) of the images in pixels.

    Raises:
        ValueError: `images` are not floats [B, rows, columns, 3], or `intermediates` are not among `depth` blocks.
    """
    if images.ndim != 4 or images.shape[-1] != 3:
        raise ValueError(f"images must have shape [batch, rows, columns, 3], got {images.shape}")
    if not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"images must be normalised floats, as a Predictor or model.config.preprocessing makes them, "
            f"got {images.dtype}"
        )
    if any(index not in range(depth) for index in intermediates):
        raise ValueError(f"intermediates must be blocks 0 to {depth - 1}, got {tuple(intermediates)}")
    return images.shape[1], images.shape[2]
