"""The contract of a model, and what most models share.

A model is two functions under `jax.jit`: `features` is the encoder, whose cost a plan reduces, and `decode` the
head. Tasks turn the outputs into results on the host (`hourglass_jax.tasks`).
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import jax
from flax import nnx

from hourglass_jax.backbones.base import Backbone
from hourglass_jax.backbones.registry import BackboneConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.tasks.base import Task

Size = tuple[int, int]
"""(rows, columns) in pixels."""


class Config(Protocol):
    """The protocol of every model's configuration, a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def backbone(self) -> BackboneConfig: ...

    @property
    def preprocessing(self) -> Preprocessing: ...


class Encoder(Protocol):
    """The part of the contract that the analysis of plans needs; models and backbones implement it.

    Attributes:
        backbone: the backbone, which takes a plan.
    """

    @property
    def backbone(self) -> Backbone: ...

    def features(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the encoder's features, an immutable pytree."""
        ...

    def head_input(self, features: Any) -> jax.Array:
        """The input of the head as tokens [B, N, C], on which the fidelity of a plan is measured."""
        ...


class Model(Encoder, Protocol):
    """A model without prompts.

    Attributes:
        config: how it was built.
        tasks: what its outputs can be made into, by the names of the tasks; the first one is the default.
        window: the views that large images are cut into; None for a model that sees whole images.
        multiple: pixels to multiples of which `features` fills the sides of images up, with zeros on the right and
            below; an image that was filled up before has the same outputs. 1 for a model that does not.
        sized: whether `features` has to be told, as its second argument [B, 2], the (rows, columns) of images that
            were filled up before.
    """

    @property
    def config(self) -> Config: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    @property
    def window(self) -> SlidingWindow | None: ...

    @property
    def multiple(self) -> int: ...

    @property
    def sized(self) -> bool: ...

    def decode(self, features: Any, size: Size | None) -> Any:
        """The head.

        Args:
            features: the output of `features`.
            size: (rows, columns) of the images, to which maps are resized; None leaves maps at the resolution that
                the tasks expect.

        Returns:
            A pytree of arrays [B, ...].
        """
        ...

    def __call__(self, images: jax.Array) -> Any:
        """`decode(features(images), size)` at the size of the images."""
        ...


class PromptedModel(Encoder, Protocol):
    """A model with prompts: one encoding of an image, then many prompts.

    The attributes are those of `Model`. The output of `features` is the encoded image: a pytree of arrays that can
    be passed from one compiled function to others.
    """

    @property
    def config(self) -> Config: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    def decode(self, features: Any, prompts: Any, size: Size | None) -> Any:
        """The head.

        Args:
            features: the output of `features` for B images.
            prompts: a pytree of arrays [B, ...]: points, boxes, ... in pixels of the images.
            size: see `Model.decode`.

        Returns:
            A pytree of arrays [B, ...].
        """
        ...


def find_task(model: Model | PromptedModel, name: str | None) -> Task:
    """Finds a model's task by name, by default the first one; ValueError if there is no such task."""
    tasks = model.tasks
    if name is None:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise ValueError(f"{type(model).__name__} has the tasks {', '.join(tasks)}, and not {name!r}")
    return tasks[name]


class BaseModel(nnx.Module):
    """What models share, whether they take prompts or not: the encoder is the backbone.

    Args:
        config: the configuration.
        backbone: the backbone.
    """

    config_class: ClassVar[type[Any]]
    """The dataclass of the configuration."""
    window: SlidingWindow | None = None
    multiple: int = 1
    sized: bool = False

    def __init__(self, config: Config, backbone: Backbone) -> None:
        self.config = config
        self.backbone = backbone

    def __repr__(self) -> str:
        """One line: the class, the backbone, parameters, the plan."""
        count = sum(each.size for each in jax.tree.leaves(nnx.state(self, nnx.Param)))
        backbone = f"{type(self.backbone).__name__} of {self.backbone.depth} blocks"
        return f"{type(self).__name__}({backbone}, {count:,} parameters, plan={self.backbone.plan})"

    __str__ = __repr__

    @property
    def tasks(self) -> Mapping[str, Task]:
        """See `Model.tasks`."""
        raise NotImplementedError

    def features(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the backbone's features."""
        return self.backbone(images)

    def head_input(self, features: Any) -> jax.Array:
        """The backbone's last feature map, restored to the full grid, [B, H*W, C]."""
        return self.backbone.head_input(features)

    def __call__(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> outputs."""
        raise NotImplementedError


class VisionModel(BaseModel):
    """A model whose outputs follow from images alone, which are seen whole."""

    def decode(self, features: Any, size: Size | None) -> Any:
        """See `Model.decode`."""
        raise NotImplementedError

    def __call__(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the outputs, maps at the size of the images."""
        return self.decode(self.features(images), (images.shape[1], images.shape[2]))


class PromptedVisionModel(BaseModel):
    """A model that answers prompts about an image.

    A call without prompts asks about the middle of each image, so that the cost of an answer can be told.
    """

    def drawn_prompts(self, batch: int, size: Size, count: int) -> Any:
        """Prompts about a grid of `count` x `count` points of each of `batch` images of `size` pixels."""
        raise NotImplementedError

    def decode(self, features: Any, prompts: Any, size: Size | None) -> Any:
        """See `PromptedModel.decode`."""
        raise NotImplementedError

    def __call__(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the answers to a prompt of one point."""
        prompts = self.drawn_prompts(len(images), (images.shape[1], images.shape[2]), 1)
        return self.decode(self.features(images), prompts, None)
