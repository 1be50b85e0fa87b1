"""A model of your own: a normal vector for every pixel, on any backbone of the library."""

import jax.numpy as jnp
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.registry import build_backbone
from hourglass_jax.models.base import VisionModel
from hourglass_jax.models.encoder import EncoderConfig
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.features import Features


class Normals(VisionModel):
    config_class = EncoderConfig
    tasks = {"features": Features()}  # noqa: RUF012

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        super().__init__(config, build_backbone(config.backbone, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear([*self.backbone.channels.values()][-1], 3, dtype=dtype, rngs=rngs)

    def decode(self, features, size):
        *_, last = features.maps().values()
        normals = self.head(last)
        normals /= jnp.linalg.norm(normals, axis=-1, keepdims=True)
        return normals if size is None else resize(normals, size, "bilinear")


hj.register_model("normals", Normals)
