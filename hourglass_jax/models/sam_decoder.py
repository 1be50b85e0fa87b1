"""SAM's prompt encoder and mask decoder: prompts and an encoded image to masks and their qualities.

Source: facebookresearch/segment-anything, segment_anything/modeling/prompt_encoder.py, mask_decoder.py and
transformer.py (arXiv 2304.02643).
"""

import math
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.layers import PatchEmbedding, gelu
from hourglass_jax.models.sam_prompts import ABSENT, BOTTOM_RIGHT, NOT_A_POINT, Prompts
from hourglass_jax.ops.attention import attention
from hourglass_jax.ops.grids import Grid

MASKS = 4
"""Of an answer: one for a prompt that says enough, and three for one that may mean a part or the whole."""
MAP_EPSILON = 1e-6
"""Of the norms of maps."""
Size = tuple[int, int]


class PromptEncoder(nnx.Module):
    """Places, boxes and masks as tokens and maps.

    Args:
        width: channels.
        mask_channels: of the second of the three layers that make a map of a mask's logits.
    """

    def __init__(self, width: int, mask_channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), shape))

        self.dtype = dtype
        self.frequencies = normal(2, width // 2)
        self.kinds = normal(BOTTOM_RIGHT + 1, width)
        self.not_a_point = normal(width)
        self.no_mask = normal(width)
        channels = (1, mask_channels // 4, mask_channels)
        self.mask_layers = nnx.List(
            [PatchEmbedding(2, *pair, dtype=dtype, rngs=rngs) for pair in pairwise(channels)]
        )
        self.mask_norms = nnx.List(
            [
                nnx.LayerNorm(each, epsilon=MAP_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)
                for each in channels[1:]
            ]
        )
        self.mask_projection = nnx.Linear(mask_channels, width, dtype=dtype, rngs=rngs)

    def positions(self, places: jax.Array | np.ndarray) -> jax.Array:
        """Sines and cosines of places [..., 2], x and y in 0..1 of the image's sides: float32 [..., C]."""
        angles = 2 * jnp.pi * jnp.matmul(2 * places - 1, self.frequencies[...], precision="highest")
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)

    def grid_positions(self, grid: Grid) -> jax.Array:
        """The positions of the cells of a map, [H*W, C]."""
        y, x = np.meshgrid(*((np.arange(side) + 0.5) / side for side in grid), indexing="ij")
        places = np.stack([x, y], axis=-1).reshape(-1, 2).astype(np.float32)
        return self.positions(places).astype(self.dtype)

    def tokens(self, prompts: Prompts, size: Size) -> jax.Array:
        """What the places of prompts are to the decoder, [B, P, T, C]; `size` is that of the model's input."""
        places = (jnp.asarray(prompts.places) + 0.5) / np.array(size[::-1], np.float32)
        kinds = jnp.asarray(prompts.kinds)[..., None]
        named = self.positions(places) + self.kinds[...][jnp.maximum(kinds[..., 0], 0)]
        return jnp.where(kinds == NOT_A_POINT, self.not_a_point[...], named).astype(self.dtype)

    def maps(self, masks: jax.Array | np.ndarray | None) -> jax.Array:
        """What is added to the encoded image: of masks [B, P, 4 H, 4 W] [B, P, H*W, C], else [1, 1, 1, C]."""
        if masks is None:
            return self.no_mask[...].astype(self.dtype)[None, None, None]
        batch, prompts, *sides = masks.shape
        x = jnp.asarray(masks, self.dtype).reshape(batch * prompts, *sides, 1)
        for layer, norm in zip(self.mask_layers, self.mask_norms, strict=True):
            sides = [side // 2 for side in sides]
            x = gelu(norm(layer(x))).reshape(x.shape[0], *sides, -1)
        return self.mask_projection(x).reshape(batch, prompts, math.prod(sides), -1)


class PromptAttention(nnx.Module):
    """Multi-head attention whose heads together may be narrower than the tokens."""

    def __init__(self, width: int, inner: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query, self.key, self.value = (nnx.Linear(width, inner, dtype=dtype, rngs=rngs) for _ in range(3))
        self.output = nnx.Linear(inner, width, dtype=dtype, rngs=rngs)

    def __call__(
        self, query: jax.Array, key: jax.Array, value: jax.Array, key_bias: jax.Array | None = None
    ) -> jax.Array:
        """What queries read.

        One image may be read by all of its prompts, and read all of them: then P of the one is 1.

        Args:
            query: [B, P, N, C].
            key, value: [B, P, M, C].
            key_bias: [B, P, M], added to the logits.

        Returns:
            [B, P, N, C]
        """
        query, key, value = self.query(query), self.key(key), self.value(value)
        batch, asked, count, inner = query.shape
        read = key.shape[1]
        if read == 1:
            query = query.reshape(batch, 1, asked * count, inner)
        elif asked == 1:
            query = jnp.broadcast_to(query, (batch, read, count, inner))

        def by_head(x: jax.Array) -> jax.Array:
            return x.reshape(batch * read, -1, self.heads, inner // self.heads).transpose(0, 2, 3, 1)

        bias = None if key_bias is None else key_bias.reshape(batch * read, -1)
        mixed = attention(by_head(query), by_head(key), by_head(value), key_bias=bias)
        return self.output(mixed.reshape(batch, max(asked, read), count, inner))


class TwoWayLayer(nnx.Module):
    """Tokens attend to one another and to the image, and the image to the tokens; a norm follows each.

    Args:
        is_first: whether the tokens attend to one another without their positions, and in place of themselves.
        width, cross_width: channels of the tokens, and of the attention between tokens and image.
        heads: of every attention.
        hidden: channels of the feed-forward.
        epsilon: of the norms.
    """

    def __init__(
        self, is_first: bool, width: int, cross_width: int, heads: int, hidden: int, epsilon: float,
        *, dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(width, epsilon=epsilon, dtype=dtype, rngs=rngs)

        self.is_first = is_first
        self.own = PromptAttention(width, width, heads, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.to_image = PromptAttention(width, cross_width, heads, dtype=dtype, rngs=rngs)
        self.norm2 = norm()
        self.mlp = Perceptron((width, hidden, width), dtype=dtype, rngs=rngs)
        self.norm3 = norm()
        self.to_tokens = PromptAttention(width, cross_width, heads, dtype=dtype, rngs=rngs)
        self.norm4 = norm()

    def __call__(
        self, x: jax.Array, image: jax.Array, own: jax.Array, places: jax.Array, key_bias: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Tokens and image after the layer.

        Args:
            x: the tokens, [B, P, T, C].
            image: [B, P or 1, N, C].
            own: what says which tokens they are, of the shape of `x`.
            places: what says where the image's are, [N, C].
            key_bias: [B, P, T], minus infinity for tokens that nothing attends to.
        """
        named = x if self.is_first else x + own
        read = self.own(named, named, x, key_bias)
        x = self.norm1(read if self.is_first else x + read)
        x = self.norm2(x + self.to_image(x + own, image + places, image))
        x = self.norm3(x + self.mlp(x))
        image = self.norm4(image + self.to_tokens(image + places, x + own, x, key_bias))
        return x, image


class Perceptron(nnx.Module):
    """Linear layers with a ReLU between each two."""

    def __init__(self, widths: tuple[int, ...], *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        pairs = pairwise(widths)
        self.layers = nnx.List([nnx.Linear(*pair, dtype=dtype, rngs=rngs) for pair in pairs])

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., first width] -> [..., last width]"""
        *before, last = self.layers
        for layer in before:
            x = jax.nn.relu(layer(x))
        return last(x)


class Doubling(nnx.Module):
    """A transposed convolution, 2 x 2 with stride 2: every position becomes four, as one matrix product."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (2, 2, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., H, W, inputs] -> [..., H, W, 2, 2, outputs], the four positions of each, down and across."""
        kernel, bias = (each[...].astype(self.dtype) for each in (self.kernel, self.bias))
        return jnp.einsum("...c,abcd->...abd", x, kernel) + bias


class MaskDecoder(nnx.Module):
    """The tokens of prompts and an encoded image to masks and their qualities.

    Args:
        width, cross_width, heads, hidden, epsilon: see `TwoWayLayer`.
        layers: number of them.
        quality_hidden: channels of the layers that tell qualities.
    """

    def __init__(
        self, width: int, cross_width: int, layers: int, heads: int, hidden: int, quality_hidden: int,
        epsilon: float, *, dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        fine = width // 8
        self.dtype = dtype
        self.tokens = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (1 + MASKS, width)))
        self.layers = nnx.List(
            [
                TwoWayLayer(number == 0, width, cross_width, heads, hidden, epsilon, dtype=dtype, rngs=rngs)
                for number in range(layers)
            ]
        )
        self.to_image = PromptAttention(width, cross_width, heads, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.upscale1 = Doubling(width, width // 4, dtype=dtype, rngs=rngs)
        self.upscale_norm = nnx.LayerNorm(
            width // 4, epsilon=MAP_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs
        )
        self.upscale2 = Doubling(width // 4, fine, dtype=dtype, rngs=rngs)
        self.mask_layers = nnx.List(
            [Perceptron((width, width, width, fine), dtype=dtype, rngs=rngs) for _ in range(MASKS)]
        )
        self.quality = Perceptron((width, quality_hidden, quality_hidden, MASKS), dtype=dtype, rngs=rngs)

    def __call__(
        self, image: jax.Array, places: jax.Array, prompts: jax.Array, kinds: jax.Array | np.ndarray, grid: Grid
    ) -> tuple[jax.Array, jax.Array]:
        """The answers to prompts.

        Args:
            image: [B, P, H*W, C], the encoded image with what masks say of it; P is 1 where none say anything.
            places: what says where its cells are, [H*W, C].
            prompts: [B, P, T, C].
            kinds: int [B, P, T]; tokens that are `ABSENT` are not attended to.
            grid: (H, W).

        Returns:
            float32 mask logits [B, P, 4, 4 H, 4 W], and their qualities [B, P, 4].
        """
        batch, count = prompts.shape[:2]
        own = jnp.broadcast_to(self.tokens[...].astype(self.dtype), (batch, count, *self.tokens.shape))
        x = tokens = jnp.concatenate([own, prompts], axis=2)
        absent = jnp.pad(jnp.asarray(kinds) == ABSENT, ((0, 0), (0, 0), (own.shape[2], 0)))
        key_bias = jnp.where(absent, -jnp.inf, 0.0)
        for layer in self.layers:
            x, image = layer(x, image, tokens, places, key_bias)
        x = self.norm(x + self.to_image(x + tokens, image + places, image))
        quality = self.quality(x[:, :, 0])
        masks = jnp.stack([layer(x[:, :, 1 + n]) for n, layer in enumerate(self.mask_layers)], axis=2)

        height, width = grid
        features = self.upscale1(image.reshape(batch, -1, height, width, image.shape[-1]))
        features = gelu(self.upscale2(gelu(self.upscale_norm(features))))
        # The two doublings are undone in the masks, of which there are fewer than channels.
        logits = jnp.einsum("bpmc,bpyxijklc->bpmyikxjl", masks, features, preferred_element_type=jnp.float32)
        return logits.reshape(batch, count, MASKS, 4 * height, 4 * width), quality.astype(jnp.float32)
