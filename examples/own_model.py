"""A model of one's own: a normal for every pixel, on any backbone of the library.

python examples/own_model.py
"""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.base import VisionModel
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.features import Features


@dataclass(frozen=True)
class NormalsConfig:
    backbone: ViTConfig = field(default_factory=lambda: ViTConfig(width=64, depth=4, heads=2, position_grid=(4, 4)))
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(size=64, multiple=16))


class Normals(VisionModel):
    config_class = NormalsConfig
    tasks = {"features": Features()}  # noqa: RUF012

    def __init__(self, config=None, *, dtype=jnp.float32, rngs):
        config = config or NormalsConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        self.head = nnx.Linear(config.backbone.width, 3, dtype=dtype, rngs=rngs)

    def decode(self, features, size):
        [tokens] = features.maps().values()
        normals = self.head(tokens)
        normals /= jnp.linalg.norm(normals, axis=-1, keepdims=True)
        return normals if size is None else resize(normals, size, "bilinear")


hj.register_model("normals", Normals)

if __name__ == "__main__":
    model = Normals(rngs=nnx.Rngs(0))
    fast = hj.expedite(model, hj.StagedMerging(0.8))
    print(jax.jit(lambda model, images: model(images))(fast, jnp.ones((1, 64, 96, 3))).shape)
