"""A backbone on its own: image to a map of features, for whatever comes after it."""

from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.swin import Swin, SwinConfig, SwinFeatures
from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.inference.images import Preprocessing
from hourglass_jax.inference.pictures import principal_components, stretched
from hourglass_jax.inference.windows import Layout


@dataclass(frozen=True)
class EncoderConfig:
    """A ViT or a Swin, and the preparation of images."""

    backbone: ViTConfig | SwinConfig = field(default_factory=ViTConfig)
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(size=224, multiple=16))

    def __post_init__(self) -> None:
        check_config(self)


class Encoder(nnx.Module):
    """Image to features."""

    def __init__(
        self, config: EncoderConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        self.config = config = config or EncoderConfig()
        backbone = Swin if isinstance(config.backbone, SwinConfig) else ViT
        self.backbone = backbone(config.backbone, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalised images [B, rows, columns, 3] -> features after the final norm, [B, H, W, C], float32.

        Those of the last stage, of a backbone that has several.
        """
        return self.decode(self.backbone(images), images.shape[1:3])

    def decode(self, features: ViTFeatures | SwinFeatures, size: tuple[int, int]) -> jax.Array:
        """The last map of features; `size` plays no part."""
        *_, last = features.maps().values()
        return last.astype(jnp.float32)

    coarse = __call__

    @staticmethod
    def finish(outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """One photograph's features [H, W, C], of the one view it has; `size` plays no part."""
        [output] = outputs
        return output

    @staticmethod
    def result(output: jax.Array) -> jax.Array:
        """The features themselves."""
        return output

    @staticmethod
    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """One minus the cosine of two feature maps, [H, W]."""
        cosine = (a * b).sum(axis=-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1))
        return 1 - cosine

    @staticmethod
    def pictures(photo: np.ndarray, result: np.ndarray) -> dict[str, np.ndarray]:
        """What is written of a prediction: the features' first three principal components, and their overlay."""
        features = stretched(principal_components(result), photo.shape[:2])
        return {"features": features, "overlay": (photo // 2 + features // 2)}
