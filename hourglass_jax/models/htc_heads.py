"""The parts of Hybrid Task Cascade after the backbone: pyramid, proposals, box heads, mask heads, semantic branch.

Every batch norm of the official heads is folded into the convolution before it.

Source: open-mmlab/mmdetection 2.28, mmdet/models/necks/fpn.py, dense_heads/rpn_head.py and roi_heads;
    czczup/ViT-Adapter, detection/mmdet_custom/models/necks (the attention layer of HTC++).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.layers import Block
from hourglass_jax.ops.attention import attention
from hourglass_jax.ops.resize import resize

EPSILON = 1e-5
"""Of every norm."""
ANCHORS = 3
"""At every position of a map, of which each has another shape."""
BOX_BINS, MASK_BINS = 7, 14
"""On a side of what the two heads read of a region."""
FUSED = 1
"""The map of the pyramid whose size the semantic branch has."""
CONVOLUTIONS = 4
"""In a row, of every head that has any."""


def _convolutions(width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.List:
    return nnx.List([nnx.Conv(width, width, (3, 3), dtype=dtype, rngs=rngs) for _ in range(CONVOLUTIONS)])


def _in_turn(layers: nnx.List, x: jax.Array) -> jax.Array:
    """The layers one after the other, a ReLU after each."""
    for layer in layers:
        x = jax.nn.relu(layer(x))
    return x


class GlobalAttention(nnx.Module):
    """HTC++'s layer on the backbone's last map: a transformer block over all of its positions, and a norm."""

    def __init__(self, width: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.block = Block(width, heads, 4 * width, norm_epsilon=EPSILON, dtype=dtype, rngs=rngs)
        self.norm = nnx.LayerNorm(width, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]"""
        tokens = x.reshape(x.shape[0], -1, x.shape[-1])
        mixed = attention(*self.block.project(tokens))
        return self.norm(self.block.feed_forward(self.block.attend(tokens, mixed))).reshape(x.shape)


class Pyramid(nnx.Module):
    """The feature pyramid: maps of one width at strides 4 to 64, each with what the coarser ones know.

    Args:
        channels: of the backbone's four maps, from fine to coarse.
        width: of the pyramid's.
        attention_heads: of the global attention on the last map, or None without that layer.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        attention_heads: int | None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        self.attention = (
            None if attention_heads is None else GlobalAttention(channels[-1], attention_heads, **kinds)
        )
        self.laterals = nnx.List([nnx.Linear(each, width, **kinds) for each in channels])
        self.outputs = nnx.List([nnx.Conv(width, width, (3, 3), **kinds) for _ in channels])

    def __call__(self, maps: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        """Maps [B, H, W, C] from fine to coarse, each half as large as the one before -> one more, of one width."""
        with jax.named_scope("fpn"):
            *finer, last = maps
            if self.attention is not None:
                last = self.attention(last)
            sums: list[jax.Array] = []
            for lateral, each in reversed([*zip(self.laterals, (*finer, last), strict=True)]):
                x = lateral(each)
                if sums:
                    x = x + jnp.repeat(jnp.repeat(sums[-1], 2, axis=1), 2, axis=2)
                sums.append(x)
            found = [output(x) for output, x in zip(self.outputs, reversed(sums), strict=True)]
            return *found, found[-1][:, ::2, ::2]


class ProposalHead(nnx.Module):
    """A score for every anchor of a map, and what has to be done to it to become a box around something."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.convolution = nnx.Conv(width, width, (3, 3), dtype=dtype, rngs=rngs)
        self.classifier = nnx.Linear(width, ANCHORS, dtype=dtype, rngs=rngs)
        self.regressor = nnx.Linear(width, 4 * ANCHORS, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, C] -> scores in 0..1 [B, H * W * 3] and deltas [B, H * W * 3, 4], float32."""
        x = jax.nn.relu(self.convolution(x))
        scores = jax.nn.sigmoid(self.classifier(x).astype(jnp.float32))
        deltas = self.regressor(x).astype(jnp.float32)
        return scores.reshape(x.shape[0], -1), deltas.reshape(x.shape[0], -1, 4)


class BoxHead(nnx.Module):
    """Class logits and deltas of regions, by four convolutions and a linear layer, or by two linear layers.

    Args:
        width: of the pyramid.
        hidden: channels of the linear layers.
        classes: without "nothing", which is the last one.
        convolutions: whether it has them.
        class_agnostic: whether deltas are the same for all classes.
    """

    def __init__(
        self, width: int, hidden: int, classes: int, *, convolutions: bool, class_agnostic: bool,
        dtype: jnp.dtype, rngs: nnx.Rngs,
    ) -> None:  # fmt: skip
        kinds = {"dtype": dtype, "rngs": rngs}
        self.convolutions = _convolutions(width, **kinds) if convolutions else None
        inputs = (BOX_BINS**2 * width,) if convolutions else (BOX_BINS**2 * width, hidden)
        self.linear = nnx.List([nnx.Linear(each, hidden, **kinds) for each in inputs])
        self.classifier = nnx.Linear(hidden, classes + 1, **kinds)
        self.regressor = nnx.Linear(hidden, 4 if class_agnostic else 4 * classes, **kinds)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[N, 7, 7, C] -> logits [N, classes + 1] and deltas [N, classes or 1, 4], float32."""
        if self.convolutions is not None:
            x = _in_turn(self.convolutions, x)
        x = _in_turn(self.linear, x.reshape(x.shape[0], -1))
        deltas = self.regressor(x).astype(jnp.float32)
        return self.classifier(x).astype(jnp.float32), deltas.reshape(x.shape[0], -1, 4)


class Doubling(nnx.Module):
    """A transposed convolution of 2 x 2 with stride 2: every position becomes four."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(nnx.initializers.lecun_normal()(rngs.params(), (2, 2, width, width)))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        """[N, H, W, C] -> [N, 2 H, 2 W, C]"""
        kernel, bias = self.kernel[...].astype(self.dtype), self.bias[...].astype(self.dtype)
        batch, rows, columns, width = x.shape
        four = x @ kernel.transpose(2, 0, 1, 3).reshape(width, -1)
        four = four.reshape(batch, rows, columns, 2, 2, width).swapaxes(2, 3)
        return four.reshape(batch, 2 * rows, 2 * columns, width) + bias


class MaskHead(nnx.Module):
    """The mask of a region for a class.

    Args:
        width: of the pyramid.
        classes: number of them.
        residual: whether the features of the stage before are read, too.
    """

    def __init__(self, width: int, classes: int, *, residual: bool, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        self.residual = nnx.Linear(width, width, **kinds) if residual else None
        self.convolutions = _convolutions(width, **kinds)
        self.doubling = Doubling(width, **kinds)
        self.classifier = nnx.Linear(width, classes, **kinds)

    def __call__(self, x: jax.Array, before: jax.Array | None, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mask logits of one class of each region, and the features that the next stage reads.

        Args:
            x: [N, 14, 14, C], of the regions.
            before: the features of the stage before, likewise, or None.
            labels: int [N], the class.

        Returns:
            float32 [N, 28, 28], and [N, 14, 14, C].
        """
        if self.residual is not None and before is not None:
            x = x + jax.nn.relu(self.residual(before))
        x = _in_turn(self.convolutions, x)
        larger = jax.nn.relu(self.doubling(x))
        assert self.classifier.bias is not None
        kernel = self.classifier.kernel[...].T[labels].astype(larger.dtype)
        logits = jnp.einsum("nhwc,nc->nhw", larger, kernel, preferred_element_type=jnp.float32)
        return logits + self.classifier.bias[...][labels][:, None, None], x


class SemanticBranch(nnx.Module):
    """One map of what is where, from all maps of the pyramid."""

    def __init__(self, width: int, maps: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        kinds = {"dtype": dtype, "rngs": rngs}
        self.laterals = nnx.List([nnx.Linear(width, width, **kinds) for _ in range(maps)])
        self.convolutions = _convolutions(width, **kinds)
        self.embedding = nnx.Linear(width, width, **kinds)

    def __call__(self, pyramid: Sequence[jax.Array]) -> jax.Array:
        """Maps [B, H, W, C] -> a map of the size of the second one, [B, H, W, C]."""
        with jax.named_scope("semantic"):
            size = (pyramid[FUSED].shape[1], pyramid[FUSED].shape[2])
            resized = (resize(each, size, "bilinear-align-corners") for each in pyramid)
            fused = [jax.nn.relu(lateral(each)) for lateral, each in zip(self.laterals, resized, strict=True)]
            return jax.nn.relu(self.embedding(_in_turn(self.convolutions, sum(fused[1:], fused[0]))))
