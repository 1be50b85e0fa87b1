"""The family of token reductions, one file for each method."""

from types import MappingProxyType

from hourglass_jax.hourglass import Hourglass
from hourglass_jax.reductions.act import ACT
from hourglass_jax.reductions.dynamic_vit import DynamicViT
from hourglass_jax.reductions.evit import EViT
from hourglass_jax.reductions.pooling import Downsampling, Pooling
from hourglass_jax.reductions.staged_merging import StagedMerging
from hourglass_jax.reductions.token_merging import TokenMerging
from hourglass_jax.tokens import TokenReduction

REDUCTIONS: MappingProxyType[str, type[TokenReduction]] = MappingProxyType(
    {
        member.__name__: member
        for member in (Hourglass, TokenMerging, StagedMerging, EViT, DynamicViT, ACT, Pooling, Downsampling)
    }
)
"""Every member by the name of its class."""
