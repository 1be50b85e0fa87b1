"""The contract of a model, and what most models share.

A model is two functions under `jax.jit`: `features` is the encoder, whose cost a plan lowers, and `decode` the
head. What the outputs mean is said by tasks, on the host (`hourglass_jax.tasks`).
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
    """What every model's configuration, a frozen dataclass, says."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def backbone(self) -> BackboneConfig: ...

    @property
    def preprocessing(self) -> Preprocessing: ...


class Encoder(Protocol):
    """The part of the contract that analyses of plans need; models and bare backbones have it.

    Attributes:
        backbone: what takes a plan.
    """

    @property
    def backbone(self) -> Backbone: ...

    def features(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> what the encoder says of them, an immutable pytree."""
        ...

    def head_input(self, features: Any) -> jax.Array:
        """The features that the head reads, [B, N, C]: what the fidelity of a plan is measured on."""
        ...


class Model(Encoder, Protocol):
    """A model whose outputs follow from images alone.

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
            features: what `features` returned.
            size: (rows, columns) of the images, the size of output maps; None leaves them at the resolution that
                the tasks read.

        Returns:
            A pytree of arrays [B, ...].
        """
        ...

    def __call__(self, images: jax.Array) -> Any:
        """`decode(features(images), size)` at the size of the images."""
        ...


class PromptedModel(Encoder, Protocol):
    """A model that answers prompts about an image: one encoding, then many prompts.

    Attributes are those of `Model`. What `features` returns is the encoded image: a pytree of arrays, which leaves
    one compiled function and enters others.
    """

    @property
    def config(self) -> Config: ...

    @property
    def tasks(self) -> Mapping[str, Task]: ...

    def decode(self, features: Any, prompts: Any, size: Size | None) -> Any:
        """The head.

        Args:
            features: what `features` returned, of B images.
            prompts: a pytree of arrays [B, ...]: points, boxes, ... in pixels of the images.
            size: see `Model.decode`.

        Returns:
            A pytree of arrays [B, ...].
        """
        ...


def find_task(model: Model | PromptedModel, name: str | None) -> Task:
    """A model's task of this name, its first one without a name; ValueError if it has none such."""
    tasks = model.tasks
    if name is None:
        return next(iter(tasks.values()))
    if name not in tasks:
        raise ValueError(f"{type(model).__name__} has the tasks {', '.join(tasks)}, and not {name!r}")
    return tasks[name]


class VisionModel(nnx.Module):
    """What models share: the encoder is the backbone, and images are seen whole.

    Args:
        config: of the model.
        backbone: the encoder.
    """

    config_class: ClassVar[type[Any]]
    """The dataclass of the configuration."""
    window: SlidingWindow | None = None
    multiple: int = 1
    sized: bool = False

    def __init__(self, config: Config, backbone: Backbone) -> None:
        self.config = config
        self.backbone = backbone

    @property
    def tasks(self) -> Mapping[str, Task]:
        """See `Model.tasks`."""
        raise NotImplementedError

    def features(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the backbone's features."""
        return self.backbone(images)

    def head_input(self, features: Any) -> jax.Array:
        """The backbone's last map of features, restored to the full grid, [B, H*W, C]."""
        return self.backbone.head_input(features)

    def decode(self, features: Any, size: Size | None) -> Any:
        """See `Model.decode`."""
        raise NotImplementedError

    def __call__(self, images: jax.Array) -> Any:
        """Normalised images [B, rows, columns, 3] -> the outputs, maps at the size of the images."""
        return self.decode(self.features(images), (images.shape[1], images.shape[2]))
