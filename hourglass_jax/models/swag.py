"""SWAG: a ViT whose class token is classified.

Only the class token is read after the last block: under an hourglass, the clusters are never restored.

Source: facebookresearch/SWAG, models/vision_transformer.py and imagenet_1k_eval.py (arXiv 2201.08371); for the
hourglass, Expedit-SWAG, models/hourglass_vit.py.
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import Labels, labels_of
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.classification import Classification


@dataclass(frozen=True)
class SwagConfig:
    """A ViT, its classes, and how images are prepared.

    Attributes:
        backbone: the ViT; the official loader resizes its position embedding with aligned corners.
        classes: number of classes.
        dataset: data set of the classes (`imaging.labels.DATASETS`), or None.
        preprocessing: how images are prepared.
        labels: names and colours of the classes if they differ from those of the data set, or None.
    """

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig(position_grid=(24, 24), position_resize="bicubic-align-corners")
    )
    classes: int = 1000
    dataset: str | None = None
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(size=384, multiple=16, resize="crop", interpolation="bicubic")
    )
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_config(self)
        if self.labels is not None and len(self.labels.names) != self.classes:
            raise ValueError(f"labels must name {self.classes} classes, got {len(self.labels.names)}")


class Swag(VisionModel):
    """Image to the logits of its class."""

    config_class = SwagConfig
    config: SwagConfig
    backbone: ViT

    def __init__(self, config: SwagConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        config = config or SwagConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear(config.backbone.width, config.classes, dtype=dtype, rngs=rngs)

    @property
    def tasks(self) -> dict[str, Task]:
        """Classification alone."""
        config = self.config
        labels = config.labels or labels_of(config.dataset, config.classes)
        return {"classification": Classification(labels, config.dataset)}

    def head_input(self, features: ViTFeatures) -> jax.Array:
        """The class token after the final norm, [B, 1, C]."""
        return features.special[:, :1]

    def decode(self, features: ViTFeatures, size: Size | None) -> jax.Array:
        """The head: features -> class logits [B, classes], float32; `size` is ignored."""
        with jax.named_scope("head"):
            return self.head(self.head_input(features)[:, 0]).astype(jnp.float32)
