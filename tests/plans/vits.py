"""Tiny vision transformers of which no parameter is trivial, and what they return."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.models.registry import flat_parameters
from hourglass_jax.ops.grids import Grid
from tests.reference import vit as reference
from tests.reference.plans import Result

GRID = (6, 5)
SIDES = (24, 20)
CONFIG = ViTConfig(
    patch_size=4, width=32, depth=3, heads=2, special_tokens=1, position_grid=GRID, predictors=(0, 1, 2)
)


def random_vit(
    special_tokens: int = 1, *, grid: Grid = GRID, rotary: bool = False, dtype: jnp.dtype = jnp.float32
) -> ViT:
    """With LayerScale if it has register tokens; with rotary positions or those of the grid."""
    config = dataclasses.replace(
        CONFIG,
        special_tokens=special_tokens,
        layer_scale=special_tokens > 1,
        position_grid=None if rotary else grid,
        rotary_base=100.0 if rotary else None,
    )
    vit = nnx.eval_shape(lambda: ViT(config, dtype=dtype, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(vit)):
        noise = random.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= 1.5 * parameter.shape[0] ** -0.5
        elif parameter.ndim == 1:
            noise = 0.3 * noise + (path[-1] != "bias")
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return vit


def random_images(batch: int = 2, sides: tuple[int, int] = SIDES) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *sides, 3)), jnp.float32)


@nnx.jit
def features(vit: ViT, images: jax.Array) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Special tokens, restored tokens, and restored tokens after the second and the last block."""
    found = vit(images, intermediates=(1, vit.depth - 1))
    blocks = tuple(each.tokens for each in found.intermediates)
    return found.special, found.tokens.restore(found.tokens.values), blocks


def by_reference(vit: ViT, images: jax.Array, run) -> Result:
    """What `run(parameters, special, tokens, heads)` makes of every image, after the final norm."""
    parameters = {name: np.float64(value) for name, value in flat_parameters(vit).items()}
    norm = reference.part(parameters, "norm")
    results = []
    for image in np.float64(images):
        tokens = reference.embed(parameters, image, vit.config.patch_size)
        results.append(run(parameters, parameters["special_tokens"], tokens, vit.config.heads))
    special, tokens = (np.stack(each) for each in zip(*results, strict=True))
    return reference.layer_norm(norm, special), reference.layer_norm(norm, tokens)
