"""All backbones by the class of their config."""

from collections.abc import Callable
from types import MappingProxyType

import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.base import Backbone
from hourglass_jax.backbones.detector_resnet import DetectorResNet, DetectorResNetConfig
from hourglass_jax.backbones.swin import Swin, SwinConfig
from hourglass_jax.backbones.vit import ViT, ViTConfig

BackboneConfig = ViTConfig | SwinConfig | DetectorResNetConfig

BACKBONES: MappingProxyType[type[BackboneConfig], Callable[..., Backbone]] = MappingProxyType(
    {ViTConfig: ViT, SwinConfig: Swin, DetectorResNetConfig: DetectorResNet}
)
"""Class of a config -> function that builds the backbone."""


def build_backbone(config: BackboneConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> Backbone:
    """Builds a backbone with random parameters.

    Args:
        config: a config of a class in `BACKBONES`.
        dtype: data type of the computation.
        rngs: random numbers for the parameters, which are float32.
    """
    return BACKBONES[type(config)](config, dtype=dtype, rngs=rngs)
