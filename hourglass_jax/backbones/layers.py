"""The layers of vision transformers."""

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.prediction import PredictionModule
from hourglass_jax.ops.attention import attention


class PatchEmbedding(nnx.Module):
    """Non-overlapping patches, flattened and projected: a strided convolution written as one matrix product."""

    def __init__(self, patch_size: int, channels: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.patch_size = patch_size
        self.projection = nnx.Linear(patch_size**2 * channels, width, dtype=dtype, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """[B, rows, columns, channels] -> [B, H*W, C]."""
        batch, rows, columns, channels = images.shape
        side = self.patch_size
        height, width = rows // side, columns // side
        patches = images.reshape(batch, height, side, width, side, channels).swapaxes(2, 3)
        return self.projection(patches.reshape(batch, height * width, -1))


class Attention(nnx.Module):
    """Multi-head self-attention: the projections before and after the mixing of values (`ops.attention`)."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, dtype=dtype, rngs=rngs)
        self.projection = nnx.Linear(width, width, dtype=dtype, rngs=rngs)

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """[B, N, C] -> query, key and value, each [B, heads, D, N]."""
        batch, count, width = x.shape
        kernel, bias = kernel_and_bias(self.qkv, x.dtype)
        qkv = jnp.einsum("bnc,cd->bdn", x, kernel) + bias[:, None]
        query, key, value = qkv.reshape(batch, 3, self.heads, width // self.heads, count).swapaxes(0, 1)
        return query, key, value

    def keys(self, x: jax.Array, *, mean: bool = False) -> jax.Array:
        """The keys alone, [B, N, C] -> [B, N, C], those of all heads side by side; or their mean, [B, N, D]."""
        width = x.shape[-1]
        kernel, bias = (y[..., width : 2 * width] for y in kernel_and_bias(self.qkv))
        if mean:
            kernel, bias = (y.reshape(*y.shape[:-1], self.heads, -1).mean(axis=-2) for y in (kernel, bias))
        return x @ kernel.astype(x.dtype) + bias.astype(x.dtype)

    def combine(self, mixed: jax.Array) -> jax.Array:
        """The output of all heads, [B, N, heads, D] -> [B, N, C]."""
        return self.projection(mixed.reshape(*mixed.shape[:2], -1))


def kernel_and_bias(layer: nnx.Linear, dtype: jnp.dtype | None = None) -> tuple[jax.Array, jax.Array]:
    """Kernel and bias of a layer, optionally in another dtype."""
    assert layer.bias is not None
    kernel, bias = layer.kernel[...], layer.bias[...]
    return (kernel, bias) if dtype is None else (kernel.astype(dtype), bias.astype(dtype))


class MLP(nnx.Module):
    """Two linear layers and a GELU; `gated`: silu of one half of the first times the other half (SwiGLU)."""

    def __init__(self, width: int, hidden: int, *, gated: bool = False, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.gated = gated
        self.expand = nnx.Linear(width, 2 * hidden if gated else hidden, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.expand(x)
        if self.gated:
            gate, x = jnp.split(x, 2, axis=-1)
            return self.contract(jax.nn.silu(gate) * x)
        return self.contract(gelu(x))


def gelu(x: jax.Array) -> jax.Array:
    """The exact GELU with erf, as PyTorch computes it; `jax.nn.gelu` takes erfc, which is slower on CPU."""
    return 0.5 * x * (1 + jax.lax.erf(x * 2**-0.5))


class Block(nnx.Module):
    """A pre-norm transformer block.

    Attributes:
        predictor: DynamicViT's prediction module before the block, or None.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        *,
        gated: bool = False,
        layer_scale: bool = False,
        norm_epsilon: float,
        predictor: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        self.norm1 = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.attention = Attention(width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=norm_epsilon, dtype=dtype, rngs=rngs)
        self.mlp = MLP(width, hidden, gated=gated, dtype=dtype, rngs=rngs)
        self.scale1 = nnx.Param(jnp.ones(width)) if layer_scale else None
        self.scale2 = nnx.Param(jnp.ones(width)) if layer_scale else None
        self.predictor = PredictionModule(width, dtype=dtype, rngs=rngs) if predictor else None

    def __call__(self, x: jax.Array, key_bias: jax.Array | None = None) -> jax.Array:
        """[B, N, C] -> [B, N, C]; `key_bias` [B, N] is added to the attention logits of every key."""
        query, key, value = self.project(x)
        return self.feed_forward(self.attend(x, attention(query, key, value, key_bias=key_bias)))

    def project(self, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Query, key and value of the tokens [B, N, C], each [B, heads, D, N]."""
        return self.attention.project(self.norm1(x))

    def keys(self, x: jax.Array, *, mean: bool = False) -> jax.Array:
        """The keys of the tokens [B, N, C] alone; see `Attention.keys`."""
        return self.attention.keys(self.norm1(x), mean=mean)

    def attend(self, x: jax.Array, mixed: jax.Array) -> jax.Array:
        """Adds the attention branch to tokens [B, N, C], from the mixed values [B, N, heads, D]."""
        return x + _scale(self.attention.combine(mixed), self.scale1)

    def feed_forward(self, x: jax.Array) -> jax.Array:
        """The MLP branch of the block, [B, N, C] -> [B, N, C]."""
        return x + _scale(self.mlp(self.norm2(x)), self.scale2)


def _scale(x: jax.Array, scale: nnx.Param | None) -> jax.Array:
    return x if scale is None else x * scale[...].astype(x.dtype)
