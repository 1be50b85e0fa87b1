"""All methods by name."""

from types import MappingProxyType

from hourglass_jax.plans.act import ACT
from hourglass_jax.plans.base import Plan
from hourglass_jax.plans.dynamic_vit import DynamicViT
from hourglass_jax.plans.evit import EViT
from hourglass_jax.plans.hourglass import Hourglass
from hourglass_jax.plans.pooling import Downsampling, Pooling
from hourglass_jax.plans.staged_merging import StagedMerging
from hourglass_jax.plans.token_merging import TokenMerging

METHODS: MappingProxyType[str, type[Plan]] = MappingProxyType(
    {
        member.__name__: member
        for member in (Hourglass, TokenMerging, StagedMerging, EViT, DynamicViT, ACT, Pooling, Downsampling)
    }
)
"""Every kind of plan by the name of its class."""
