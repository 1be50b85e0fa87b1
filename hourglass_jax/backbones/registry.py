"""All backbones, by their configs."""

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
"""Every kind of backbone by the class of its config."""


def build_backbone(config: BackboneConfig, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> Backbone:
    """The backbone that a config describes, with random parameters.

    Args:
        config: of one of `BACKBONES`.
        dtype: of the computation.
        rngs: for the parameters, which are float32.
    """
    return BACKBONES[type(config)](config, dtype=dtype, rngs=rngs)
