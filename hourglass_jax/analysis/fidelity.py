"""Fidelity of an expedited model to the original one; no labels are needed."""

import jax
import jax.numpy as jnp

from hourglass_jax.backbones.vit import ViT
from hourglass_jax.models.base import Encoder


def final_features(model: Encoder, images: jax.Array) -> jax.Array:
    """The features that fidelity is measured on: the input of the model's head, [B, N, C].

    Args:
        model: a model or a backbone, under any plan.
        images: [B, rows, columns, 3], normalised.
    """
    return model.head_input(model.features(images))


def cosine_similarity(features: jax.Array, original: jax.Array) -> jax.Array:
    """Mean cosine between the tokens of two feature maps: [B, N, C], [B, N, C] -> [B], float32."""
    a, b = features.astype(jnp.float32), original.astype(jnp.float32)
    norms = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
    products = jnp.sum(a * b, axis=-1)
    return jnp.mean(products / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny), axis=-1)


@jax.jit
def cosine_by_block(fast: ViT, original: ViT, images: jax.Array) -> jax.Array:
    """The cosine similarity after every block, expedited against original: the paper's Table 1.

    Blocks inside the hourglass are compared after reconstruction.

    Args:
        fast: the backbone under a plan.
        original: the backbone without.
        images: [B, rows, columns, 3], normalised.

    Returns:
        [depth, B].
    """
    every = range(original.depth)
    pairs = zip(
        fast(images, intermediates=every).intermediates,
        original(images, intermediates=every).intermediates,
        strict=True,
    )
    return jnp.stack([cosine_similarity(a.tokens, b.tokens) for a, b in pairs])
