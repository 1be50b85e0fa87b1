"""SWAG: a ViT whose class token is classified.

The class token is read after the last block, so nothing of the image's tokens is needed there: under an hourglass,
they stay clusters to the end.

Source: facebookresearch/SWAG, models/vision_transformer.py and imagenet_1k_eval.py (arXiv 2201.08371); for the
hourglass, Expedit-SWAG, models/hourglass_vit.py.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.inference.class_pictures import class_overlay
from hourglass_jax.inference.images import Preprocessing
from hourglass_jax.inference.labels import Labels, labels_of
from hourglass_jax.inference.windows import Layout

SHOWN = 5
"""Classes that are printed and drawn."""


@dataclass(frozen=True)
class SwagConfig:
    """A ViT, its classes, and how images are prepared.

    Attributes:
        backbone: the ViT; the official loader resizes its position embedding with aligned corners.
        classes: number of them.
        dataset: whose classes they are (`inference.labels.DATASETS`), or None.
        preprocessing: of images.
        labels: names and colours of the classes where they are nobody's or others than the data set's, or None.
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


class Guess(NamedTuple):
    """A class, by its number and name, and how probable it is, in 0..1."""

    label: int
    name: str
    probability: float


class Swag(nnx.Module):
    """Image to the logits of its class."""

    task = "classification"

    def __init__(self, config: SwagConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        self.config = config = config or SwagConfig()
        self.backbone = ViT(config.backbone, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(config.backbone.width, config.classes, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Normalised images [B, rows, columns, 3] -> logits [B, classes], float32."""
        return self.decode(self.backbone(images), images.shape[1:3])

    def decode(self, features: ViTFeatures, size: tuple[int, int]) -> jax.Array:
        """The head: the class token after the final norm -> logits; `size` plays no part."""
        with jax.named_scope("head"):
            return self.head(self.final(features)[:, 0]).astype(jnp.float32)

    coarse = __call__

    @staticmethod
    def final(features: ViTFeatures) -> jax.Array:
        """The features that the head reads, [B, 1, C]: the class token."""
        return features.special[:, :1]

    @classmethod
    def finish(cls, outputs: np.ndarray, layout: Layout, size: tuple[int, int]) -> np.ndarray:
        """One photograph's probabilities [classes], from the one view it has; `size` plays no part."""
        [output] = outputs
        return np.asarray(cls.result(output))

    @staticmethod
    def result(output: jax.Array) -> jax.Array:
        """The probabilities of logits [..., classes]."""
        return jax.nn.softmax(output, axis=-1)

    @staticmethod
    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """The probability that other classes have, in 0..1 (total variation); no axes."""
        return np.abs(a - b).sum(axis=-1) / 2

    @staticmethod
    def decide(result: np.ndarray) -> np.ndarray:
        """The most probable class; no axes."""
        return np.argmax(result, axis=-1)

    def top(self, result: np.ndarray) -> list[Guess]:
        """The most probable classes of probabilities [classes], the first one first."""
        labels, names = np.argsort(-result, kind="stable")[:SHOWN].tolist(), self.labels.names
        return [Guess(label, names[label], float(result[label])) for label in labels]

    def pictures(self, photo: np.ndarray, result: np.ndarray) -> dict[str, np.ndarray]:
        """What is written of a prediction: the photograph with its most probable classes as bars below."""
        return {"overlay": class_overlay(photo, [(each.name, each.probability) for each in self.top(result)])}

    @property
    def labels(self) -> Labels:
        """Names of the classes, and colours."""
        return self.config.labels or labels_of(self.config.dataset, self.config.classes)
