"""The two decoders of Mask2Former: pixels get features of all scales, queries read them through their own masks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.ops.attention import attention
from hourglass_jax.ops.deformable_attention import sample_values
from hourglass_jax.ops.grids import Grid
from hourglass_jax.ops.masked_attention import masked_attention, sine_positions
from hourglass_jax.ops.resize import resize

EPSILON = 1e-5
"""Of every norm."""
GROUPS = 32
"""Of every group norm."""
LEVELS = 3
"""Maps that the deformable encoder and the queries read, from coarse to fine."""


class FeedForward(nnx.Module):
    """Two linear layers and a ReLU."""

    def __init__(self, width: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.expand = nnx.Linear(width, hidden, dtype=dtype, rngs=rngs)
        self.contract = nnx.Linear(hidden, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.contract(jax.nn.relu(self.expand(x)))


class ConvolutionNorm(nnx.Module):
    """A convolution and a group norm."""

    def __init__(self, inputs: int, width: int, side: int = 1, *, bias: bool, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(inputs, width, (side, side), use_bias=bias, rngs=rngs)
        self.norm = nnx.GroupNorm(width, GROUPS, epsilon=EPSILON, use_fast_variance=False, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, H, W, width]"""
        return self.norm(self.convolution(x))


class DeformableAttention(nnx.Module):
    """Every token of every level mixes a few values of all levels, at places that it chooses around its own."""

    def __init__(self, width: int, heads: int, points: int, *, rngs: nnx.Rngs) -> None:
        self.heads, self.points = heads, points
        samples = heads * LEVELS * points
        self.value = nnx.Linear(width, width, rngs=rngs)
        self.offsets = nnx.Linear(width, 2 * samples, rngs=rngs)
        self.weights = nnx.Linear(width, samples, rngs=rngs)
        self.output = nnx.Linear(width, width, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, grids: tuple[Grid, ...]) -> jax.Array:
        """Tokens [B, S, C] of all levels, one after the other -> [B, S, C]; positions [S, C] say where they are."""
        batch, count, _ = x.shape
        query = x + positions
        shape = (batch, count, self.heads, LEVELS, self.points)
        weights = jax.nn.softmax(self.weights(query).reshape(*shape[:3], -1)).reshape(shape)
        sizes = np.array([grid[::-1] for grid in grids], np.float32)
        offsets = self.offsets(query).reshape(*shape, 2) / sizes[:, None]
        locations = jnp.asarray(_centres(grids))[:, None, None, None] + offsets
        values = [
            each.reshape(batch, *grid, self.heads, -1)
            for each, grid in zip(split(self.value(x), grids), grids, strict=True)
        ]
        return self.output(sample_values(values, locations, weights).reshape(x.shape))


def _centres(grids: tuple[Grid, ...]) -> np.ndarray:
    """The centres (x, y) in 0..1 of the tokens of all levels, float32 [S, 2]."""
    found = []
    for height, width in grids:
        y, x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / width, indexing="ij")
        found.append(np.stack([x, y], axis=-1).reshape(-1, 2))
    return np.concatenate(found).astype(np.float32)


def split(tokens: jax.Array, grids: tuple[Grid, ...]) -> list[jax.Array]:
    """The tokens of each level [B, H*W, C], of those of all of them [B, S, C]."""
    ends = np.cumsum([height * width for height, width in grids])[:-1]
    return jnp.split(tokens, ends.tolist(), axis=1)


class DeformableLayer(nnx.Module):
    """Deformable attention and a feed-forward, each followed by its norm."""

    def __init__(self, width: int, heads: int, points: int, hidden: int, *, rngs: nnx.Rngs) -> None:
        self.attention = DeformableAttention(width, heads, points, rngs=rngs)
        self.norm1 = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.mlp = FeedForward(width, hidden, dtype=jnp.float32, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)

    def __call__(self, x: jax.Array, positions: jax.Array, grids: tuple[Grid, ...]) -> jax.Array:
        """[B, S, C] -> [B, S, C]"""
        x = self.norm1(x + self.attention(x, positions, grids))
        return self.norm2(x + self.mlp(x))


class PixelDecoder(nnx.Module):
    """Maps of four scales to features of every pixel; computed in float32, as in the official code.

    Args:
        channels: of the four maps, from fine to coarse.
        width: of all that follows.
        heads, points: of the deformable attention.
        layers: of the deformable encoder.
        hidden: channels of its feed-forward layers.

    Source: facebookresearch/Mask2Former, mask2former/modeling/pixel_decoder/msdeformattn.py.
    """

    def __init__(
        self, channels: tuple[int, ...], width: int, heads: int, points: int, layers: int, hidden: int,
        *, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        finest, *coarser = channels
        self.projections = nnx.List(
            [ConvolutionNorm(each, width, bias=True, rngs=rngs) for each in reversed(coarser)]
        )
        self.level_embeddings = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (LEVELS, width)))
        self.layers = nnx.List([DeformableLayer(width, heads, points, hidden, rngs=rngs) for _ in range(layers)])
        self.lateral = ConvolutionNorm(finest, width, bias=False, rngs=rngs)
        self.fusion = ConvolutionNorm(width, width, 3, bias=False, rngs=rngs)
        self.mask_features = nnx.Linear(width, width, rngs=rngs)

    def project(self, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[Grid, ...]]:
        """The three coarser maps at one width as tokens [B, S, C], the coarsest first, and their grids."""
        coarsest_first = [each.astype(jnp.float32) for each in maps[:0:-1]]
        projected = [project(each) for project, each in zip(self.projections, coarsest_first, strict=True)]
        tokens = [each.reshape(each.shape[0], -1, each.shape[-1]) for each in projected]
        return jnp.concatenate(tokens, axis=1), tuple(map(_grid_of, projected))

    def __call__(self, maps: tuple[jax.Array, ...]) -> tuple[jax.Array, list[jax.Array]]:
        """Runs the decoder.

        Args:
            maps: [B, H, W, C] at strides 4, 8, 16 and 32.

        Returns:
            The features of the finest map's positions, [B, H, W, C], and those of the other three, the coarsest
            first.
        """
        with jax.named_scope("pixel_decoder"):
            x, grids = self.project(maps)
            positions = jnp.concatenate(
                [
                    sine_positions(grid, x.shape[-1]) + embedding
                    for grid, embedding in zip(grids, self.level_embeddings[...], strict=True)
                ]
            )
            for layer in self.layers:
                x = layer(x, positions, grids)
            levels = [
                each.reshape(each.shape[0], *grid, -1) for each, grid in zip(split(x, grids), grids, strict=True)
            ]
            lateral = self.lateral(maps[0].astype(jnp.float32))
            fused = self.fusion(lateral + resize(levels[-1], _grid_of(lateral), "bilinear"))
            return self.mask_features(jax.nn.relu(fused)), levels


class QueryAttention(nnx.Module):
    """Multi-head attention with projections of queries, keys and values, and the norm after its branch."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.heads = heads
        self.query = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.key = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.output = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def attend(
        self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array, allowed: jax.Array | None = None
    ) -> jax.Array:
        """[B, Q, C] -> [B, Q, C]: `x` with what its queries read; `allowed` bool [B, Q, M] says of which keys."""
        query, key, value = self.query(query), self.key(key), self.value(value)
        query, key, value = (each.reshape(*each.shape[:2], self.heads, -1) for each in (query, key, value))
        if allowed is None:
            mixed = attention(*(each.transpose(0, 2, 3, 1) for each in (query, key, value)))
        else:
            mixed = masked_attention(query, key, value, allowed)
        return self.norm(x + self.output(mixed.reshape(x.shape)))


class QueryLayer(nnx.Module):
    """Queries read a map through their masks, then one another, and are fed forward; a norm follows each."""

    def __init__(self, width: int, heads: int, hidden: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.cross = QueryAttention(width, heads, dtype=dtype, rngs=rngs)
        self.own = QueryAttention(width, heads, dtype=dtype, rngs=rngs)
        self.mlp = FeedForward(width, hidden, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: jax.Array, position: jax.Array, tokens: jax.Array, places: jax.Array, allowed: jax.Array
    ) -> jax.Array:
        """[B, Q, C] -> [B, Q, C].

        Args:
            x: queries.
            position: of the queries, [Q, C].
            tokens: of the map, [B, M, C].
            places: what says where these are, [M, C].
            allowed: bool [B, Q, M], the tokens that a query may read.
        """
        x = self.cross.attend(x, x + position, tokens + places, tokens, allowed)
        x = self.own.attend(x, x + position, x + position, x)
        return self.norm(x + self.mlp(x))


class MaskedDecoder(nnx.Module):
    """Queries to classes and masks, by layers that read one level each, in turns from coarse to fine.

    What a query may read of a level is where its mask, as it is predicted before the layer, is at least one half.

    Args:
        classes: without "no object".
        queries: number of them.
        width, heads: of the layers.
        layers: number of them.
        hidden: channels of their feed-forward.
        project: whether each level is projected before it is read.

    Source: facebookresearch/Mask2Former,
        mask2former/modeling/transformer_decoder/mask2former_transformer_decoder.py.
    """

    def __init__(
        self, classes: int, queries: int, width: int, heads: int, layers: int, hidden: int,
        *, dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        def normal(*shape: int) -> nnx.Param:
            return nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), shape))

        self.dtype = dtype
        self.queries, self.query_positions = normal(queries, width), normal(queries, width)
        self.level_embeddings = normal(LEVELS, width)
        self.layers = nnx.List([QueryLayer(width, heads, hidden, dtype=dtype, rngs=rngs) for _ in range(layers)])
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, rngs=rngs)
        self.classifier = nnx.Linear(width, classes + 1, rngs=rngs)
        self.mask_layers = nnx.List([nnx.Linear(width, width, rngs=rngs) for _ in range(3)])

    def states(self, mask_features: jax.Array, levels: list[jax.Array]) -> list[jax.Array]:
        """The queries before the first layer and after every one, after the norm; float32 [B, Q, C].

        The masks that say what may be read are needed at a level's size alone. Resizing is linear over positions,
        a mask linear in the features of each: so the features are resized, once for each level.
        """
        with jax.named_scope("mask_decoder"):
            grids = [_grid_of(level) for level in levels]
            features = [resize(mask_features, grid, "bilinear") for grid in grids]
            embeddings = self.level_embeddings[...]
            tokens = [
                (level.reshape(level.shape[0], -1, level.shape[-1]) + embedding).astype(self.dtype)
                for level, embedding in zip(levels, embeddings, strict=True)
            ]
            places = [sine_positions(grid, embeddings.shape[-1]).astype(self.dtype) for grid in grids]
            position = self.query_positions[...].astype(self.dtype)
            x = jnp.broadcast_to(
                self.queries[...].astype(self.dtype), (mask_features.shape[0], *self.queries.shape)
            )
            found = [self._normed(x)]
            for number, layer in enumerate(self.layers):
                at = number % len(levels)
                masks = self.masks(found[-1], features[at])
                x = layer(x, position, tokens[at], places[at], masks.reshape(*masks.shape[:2], -1) >= 0)
                found.append(self._normed(x))
            return found

    def _normed(self, x: jax.Array) -> jax.Array:
        return self.norm(x.astype(jnp.float32))

    def masks(self, state: jax.Array, features: jax.Array) -> jax.Array:
        """Mask logits of queries [B, Q, C] at the positions of features [B, H, W, C]: [B, Q, H, W]."""
        first, second, last = self.mask_layers
        embedding = last(jax.nn.relu(second(jax.nn.relu(first(state)))))
        return jnp.einsum("bqc,bhwc->bqhw", embedding, features)


def _grid_of(maps: jax.Array) -> Grid:
    """(H, W) of maps [B, H, W, C]."""
    return maps.shape[1], maps.shape[2]
