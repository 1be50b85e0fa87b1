"""A backbone without a head: image to a feature map, for downstream use."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.base import Features as BackboneFeatures
from hourglass_jax.backbones.registry import BackboneConfig, build_backbone
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.features import Features


@dataclass(frozen=True)
class EncoderConfig:
    """A backbone, and the preparation of images."""

    backbone: BackboneConfig = field(default_factory=ViTConfig)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(size=224, multiple=16))

    def __post_init__(self) -> None:
        check_config(self)


class Encoder(VisionModel):
    """Image to features."""

    config_class = EncoderConfig

    def __init__(
        self, config: EncoderConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or EncoderConfig()
        super().__init__(config, build_backbone(config.backbone, dtype=dtype, rngs=rngs))

    @property
    def tasks(self) -> dict[str, Task]:
        """The features themselves."""
        return {"features": Features()}

    def decode(self, features: BackboneFeatures, size: Size | None) -> jax.Array:
        """The last map of features after its norm, [B, H, W, C], float32; `size` plays no part."""
        *_, last = features.maps().values()
        return last.astype(jnp.float32)
