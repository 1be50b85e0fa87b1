"""What all models that label pixels have in common, whatever their logits come from."""

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.inference.label_pictures import colorize_labels, label_overlay
from hourglass_jax.inference.labels import Labels, labels_of


class LabelMaps:
    """The part of a model after its logits; its `config` has `classes`, and `dataset` and `labels` or None."""

    task = "segmentation"

    @staticmethod
    def most_likely(logits: jax.Array) -> jax.Array:
        """[..., classes] -> the labels [...], uint8, or uint16 for more than 256 classes."""
        return jnp.argmax(logits, axis=-1).astype(jnp.uint8 if logits.shape[-1] <= 256 else jnp.uint16)

    def result(self, output: jax.Array) -> jax.Array:
        """The label maps of logits [..., classes]."""
        return self.most_likely(output)

    @staticmethod
    def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """1 where two label maps differ, 0 elsewhere."""
        return (a != b).astype(np.float32)

    @staticmethod
    def decide(result: np.ndarray) -> np.ndarray:
        """What a label map decides: itself."""
        return result

    def pictures(self, photo: np.ndarray, result: np.ndarray) -> dict[str, np.ndarray]:
        """What is written of a prediction: the raw labels, their colours, and an overlay with a legend."""
        names, colors = self.labels.names, self.labels.colors
        return {
            "labels": result,
            "colors": colorize_labels(result, colors),
            "overlay": label_overlay(photo, result, names, colors),
        }

    @property
    def labels(self) -> Labels:
        """Names and colours of the classes."""
        return self.config.labels or labels_of(self.config.dataset, self.config.classes)
