"""EoMT: a plain ViT whose last blocks hold queries beside the image's tokens, and a class and a mask of each query.

Source: tue-mps/eomt, models/eomt.py and models/scale_block.py (arXiv 2503.19108).
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.layers import gelu
from hourglass_jax.backbones.queries import run_with_queries
from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import Labels
from hourglass_jax.imaging.segment_labels import SegmentLabels, segment_labels
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.models.mask2former import TASKS
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.instances import Instances
from hourglass_jax.tasks.panoptic import Panoptic
from hourglass_jax.tasks.queries import STRIDE, QueryOutputs
from hourglass_jax.tasks.query_segmentation import QuerySegmentation

NORM_EPSILON = 1e-6
"""Of the norms of the mask module."""


@dataclass(frozen=True)
class EoMTConfig:
    """A ViT, the queries that its last blocks hold, and what the results are.

    Attributes:
        backbone: the ViT; its patches are 4 pixels times a power of two, as masks have a position for every 4 x 4.
        classes: number of them, without "no object".
        queries: number of them.
        query_blocks: the last blocks, which hold the queries too.
        masked_blocks: 0-based blocks of these, in which a query reads only the tokens inside its own mask. Training
            ends without them: published checkpoints have none.
        tasks: what the model was trained for, of "panoptic", "instances", "segmentation"; the first is the default.
        dataset: whose classes they are, one of `imaging.segment_labels.DATASETS`, or None.
        labels: names and colours of the classes where they are nobody's, or None.
        things: the classes that can be counted; by default those of the data set, and all where there is none.
        detections: that are kept of an image, with the highest scores.
        object_threshold: what a query's score must exceed to be part of a panoptic map.
        overlap_threshold: the share of its mask that must be left of a query in a panoptic map.
        padding: what images are filled up to with black, on the right and below: "square" (as in training) or
            whole "patches", which costs less and is not what published weights have seen.
        window: the views that images are cut into, for label maps alone; None to take images whole.
        preprocessing: of images.
    """

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig.sized(
            "large", special_tokens=5, position_grid=(40, 40), position_resize="bicubic-antialias", layer_scale=True
        )
    )
    classes: int = 133
    queries: int = 200
    query_blocks: int = 4
    masked_blocks: tuple[int, ...] = ()
    tasks: tuple[str, ...] = TASKS
    dataset: str | None = None
    labels: Labels | None = None
    things: tuple[int, ...] | None = None
    detections: int = 100
    object_threshold: float = 0.8
    overlap_threshold: float = 0.8
    padding: Literal["square", "patches"] = "square"
    window: SlidingWindow | None = None
    preprocessing: Preprocessing = field(default_factory=lambda: Preprocessing(size=640, multiple=1))

    def __post_init__(self) -> None:
        check_config(self, layers=("query_blocks",), zero=("things", "masked_blocks"))
        depth, side = self.backbone.depth, self.backbone.patch_size
        if side % STRIDE or side & (side - 1) or side == STRIDE:
            raise ValueError(f"patch_size must be {STRIDE} times a power of two, from {2 * STRIDE} on, got {side}")
        if self.backbone.stem is not None:
            raise ValueError("backbone must be a plain ViT, got one with a convolutional stem")
        if self.query_blocks > depth:
            raise ValueError(f"query_blocks must be at most the backbone's {depth} blocks, got {self.query_blocks}")
        if any(not self.first_block <= block < depth for block in self.masked_blocks):
            raise ValueError(
                f"masked_blocks must be among those with queries, {self.first_block} to {depth - 1}, "
                f"got {self.masked_blocks}"
            )
        if not self.tasks or not set(self.tasks) <= set(TASKS):
            raise ValueError(f"tasks must be some of {', '.join(TASKS)}, got {', '.join(self.tasks) or 'none'}")
        if self.window is not None and self.tasks != ("segmentation",):
            raise ValueError(f"window is for segmentation alone: {', '.join(self.tasks)} take images whole")
        for name in ("object_threshold", "overlap_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        self.segment_labels()

    @property
    def first_block(self) -> int:
        """The first block with queries."""
        return self.backbone.depth - self.query_blocks

    @property
    def scale_blocks(self) -> int:
        """How often the token grid's sides are doubled for the masks."""
        return (self.backbone.patch_size // STRIDE).bit_length() - 1

    def segment_labels(self) -> SegmentLabels:
        """The classes; ValueError if they do not fit one another."""
        return segment_labels(self.dataset, self.classes, labels=self.labels, things=self.things)


class ScaleBlock(nnx.Module):
    """A map of twice the sides: a transposed convolution, a GELU, a depthwise convolution and a norm."""

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.expansion = nnx.Linear(width, 4 * width, use_bias=False, dtype=dtype, rngs=rngs)
        self.expansion_bias = nnx.Param(jnp.zeros(width))
        self.depthwise = nnx.Param(nnx.initializers.normal(1 / 3)(rngs.params(), (3, 3, width)))
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, 2 H, 2 W, C]."""
        batch, rows, columns, width = x.shape
        tiles = self.expansion(x).reshape(batch, rows, columns, 2, 2, width).swapaxes(2, 3)
        x = gelu(tiles.reshape(batch, 2 * rows, 2 * columns, width) + self.expansion_bias[...].astype(x.dtype))
        return self.norm(_depthwise(x, self.depthwise[...]))


def _depthwise(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3 x 3 convolution of every channel alone with a border of zeros, as a sum of shifted maps, in float32.

    XLA's own grouped convolution has no fast form on CPU.
    """
    rows, columns = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    shifted = [x[:, i : i + rows, j : j + columns] * kernel[i, j] for i, j in np.ndindex(3, 3)]
    return sum(shifted[1:], start=shifted[0])


class EoMT(VisionModel):
    """Image to the class logits and mask logits of every query.

    A plan works on all blocks: from `EoMTConfig.first_block` on the queries are special tokens like the class
    token, which plans leave alone, and the grid of tokens is restored for the masks (docs/eomt.md).
    """

    config_class = EoMTConfig
    config: EoMTConfig
    backbone: ViT

    def __init__(self, config: EoMTConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        config = config or EoMTConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        width = config.backbone.width
        self.queries = nnx.Param(nnx.initializers.normal(1.0)(rngs.params(), (config.queries, width)))
        self.scale_blocks = nnx.List(
            [ScaleBlock(width, dtype=dtype, rngs=rngs) for _ in range(config.scale_blocks)]
        )
        self.mask_layers = nnx.List([nnx.Linear(width, width, dtype=dtype, rngs=rngs) for _ in range(3)])
        self.classifier = nnx.Linear(width, config.classes + 1, dtype=dtype, rngs=rngs)

    @property
    def window(self) -> SlidingWindow | None:
        """The views that images are cut into."""
        return self.config.window

    @property
    def tasks(self) -> dict[str, Task]:
        """Those that the model was trained for."""
        config, labels = self.config, self.config.segment_labels()
        known = (
            Panoptic(labels, config.dataset, config.object_threshold, config.overlap_threshold),
            Instances(labels, config.dataset, config.detections, things_only="panoptic" in config.tasks),
            QuerySegmentation(labels, config.dataset, alone=config.tasks == ("segmentation",)),
        )
        by_name = {task.name: task for task in known}
        return {name: by_name[name] for name in config.tasks}

    def features(self, images: jax.Array) -> ViTFeatures:
        """The backbone's features of images of any size, padded with black; queries are the last special tokens."""
        return run_with_queries(
            self.backbone,
            self._padded(images),
            self.queries[...],
            first=self.config.first_block,
            masked=self.config.masked_blocks,
            masks=self._inside,
        )

    def head_input(self, features: ViTFeatures) -> jax.Array:
        """The queries and the full grid of tokens after the final norm, [B, Q + H*W, C]."""
        return jnp.concatenate([self._queries_of(features.special), super().head_input(features)], axis=1)

    def decode(self, features: ViTFeatures, size: Size | None) -> QueryOutputs:
        """The head; `size` plays no part: masks have a position for every 4 x 4 pixels of the padded images."""
        tokens = features.maps()["features"]
        with jax.named_scope("head"):
            queries = self._queries_of(features.special)
            class_logits = self.classifier(queries).astype(jnp.float32)
            return QueryOutputs(class_logits, self._masks(queries, self._upscaled(tokens)))

    def _padded(self, images: jax.Array) -> jax.Array:
        rows, columns = images.shape[1:3]
        least = max(rows, columns) if self.config.padding == "square" else 0
        side = self.config.backbone.patch_size
        height, width = (-(-max(each, least) // side) * side for each in (rows, columns))
        if (height, width) == (rows, columns):
            return images
        prepared = self.config.preprocessing
        black = (-np.asarray(prepared.mean) / np.asarray(prepared.std)).astype(images.dtype)
        padded = jnp.pad(images, ((0, 0), (0, height - rows), (0, width - columns), (0, 0)))
        inside = (np.arange(height) < rows)[:, None] & (np.arange(width) < columns)
        return jnp.where(inside[..., None], padded, black)

    def _queries_of(self, special: jax.Array) -> jax.Array:
        """The queries among special tokens; none where the backbone ran alone."""
        return special[:, self.config.backbone.special_tokens :]

    def _upscaled(self, tokens: jax.Array) -> jax.Array:
        """The map [B, H, W, C] of the image's tokens after the norm, a position for every 4 x 4 pixels."""
        for block in self.scale_blocks:
            tokens = block(tokens)
        return tokens

    def _masks(self, queries: jax.Array, features: jax.Array) -> jax.Array:
        """Mask logits of queries [B, Q, C] after the norm at the positions of features [B, H, W, C], float32."""
        first, second, last = self.mask_layers
        embedding = last(gelu(second(gelu(first(queries)))))
        return jnp.einsum("bqc,bhwc->bqhw", embedding, features, preferred_element_type=jnp.float32)

    def _inside(self, queries: jax.Array, tokens: jax.Array) -> jax.Array:
        """Where the mask of each query is, on the grid of tokens, bool [B, Q, H, W].

        Resizing is linear over positions, a mask linear in the features of each: so the features are resized.
        """
        with jax.named_scope("head"):
            features = resize(self._upscaled(tokens), (tokens.shape[1], tokens.shape[2]), "bilinear")
            return self._masks(queries, features) > 0
