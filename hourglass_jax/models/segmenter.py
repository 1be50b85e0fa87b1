"""Segmenter: a ViT whose tokens are classified, by a linear layer or by a transformer over tokens and classes.

Source: rstrudel/segmenter, segm/model/segmenter.py and segm/model/decoder.py (arXiv 2105.05633); for the hourglass
that reconstructs logits, Expedit-Segmenter, mmseg/models/backbones/hourglass_vit.py.
"""

from dataclasses import dataclass, field
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx

from hourglass_jax.backbones.layers import Block
from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.labels import Labels, labels_of
from hourglass_jax.imaging.windows import SlidingWindow
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.segmentation import Segmentation

DECODER_HEAD_WIDTH = 64
DECODER_NORM_EPSILON = 1e-5


@dataclass(frozen=True)
class SegmenterConfig:
    """A ViT, its decoder, and how images are prepared, cut and labelled.

    Attributes:
        backbone: the ViT; upstream resizes its position embedding bilinearly and has norms of epsilon 1e-5.
        classes: number of classes.
        decoder: "linear" or "mask_transformer".
        decoder_depth: number of blocks of the mask transformer.
        window: how images are cut into windows; None for whole images.
        dataset: data set of the classes (`imaging.labels.DATASETS`), or None.
        preprocessing: how images are prepared.
        labels: names and colours of the classes if they differ from those of the data set, or None.
    """

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig(position_grid=(32, 32), position_resize="bilinear", norm_epsilon=1e-5)
    )
    classes: int = 150
    decoder: Literal["linear", "mask_transformer"] = "mask_transformer"
    decoder_depth: int = 2
    window: SlidingWindow | None = field(default_factory=lambda: SlidingWindow(512, 512))
    dataset: str | None = None
    preprocessing: Preprocessing = field(
        default_factory=lambda: Preprocessing(
            size=512, multiple=1, resize="none", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)
        )
    )
    labels: Labels | None = None

    def __post_init__(self) -> None:
        check_config(self, layers=("decoder_depth",), zero=("decoder_depth",))
        if self.decoder == "mask_transformer" and self.backbone.width % DECODER_HEAD_WIDTH:
            raise ValueError(
                f"a mask transformer's width must be a multiple of {DECODER_HEAD_WIDTH}, got {self.backbone.width}"
            )
        if self.labels is not None and len(self.labels.names) != self.classes:
            raise ValueError(f"labels must name {self.classes} classes, got {len(self.labels.names)}")


class MaskTransformer(nnx.Module):
    """Blocks over the tokens and an embedding of each class; the logits are their cosines, normalised."""

    def __init__(self, config: SegmenterConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        width, classes = config.backbone.width, config.classes
        initial = nnx.initializers.normal(width**-0.5)
        self.dtype = dtype
        self.projection = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.class_embeddings = nnx.Param(nnx.initializers.normal(0.02)(rngs.params(), (classes, width)))
        self.blocks = nnx.List(
            [
                Block(
                    width,
                    width // DECODER_HEAD_WIDTH,
                    4 * width,
                    gated=config.backbone.mlp == "swiglu",
                    norm_epsilon=DECODER_NORM_EPSILON,
                    dtype=dtype,
                    rngs=rngs,
                )
                for _ in range(config.decoder_depth)
            ]
        )
        self.norm = nnx.LayerNorm(width, epsilon=DECODER_NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.token_projection = nnx.Param(initial(rngs.params(), (width, width)))
        self.class_projection = nnx.Param(initial(rngs.params(), (width, width)))
        self.mask_norm = nnx.LayerNorm(classes, epsilon=DECODER_NORM_EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, M, C] -> class logits [B, M, classes]."""
        count = tokens.shape[1]
        embeddings = self.class_embeddings[...].astype(self.dtype)
        x = jnp.concatenate(
            [self.projection(tokens), jnp.broadcast_to(embeddings, (tokens.shape[0], *embeddings.shape))], axis=1
        )
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        masks = _unit(x[:, :count] @ self.token_projection[...].astype(self.dtype))
        classes = _unit(x[:, count:] @ self.class_projection[...].astype(self.dtype))
        return self.mask_norm(jnp.einsum("bmd,bcd->bmc", masks, classes))


def _unit(x: jax.Array) -> jax.Array:
    return x / jnp.linalg.norm(x, axis=-1, keepdims=True)


class Segmenter(VisionModel):
    """Image to class logits of every pixel."""

    config_class = SegmenterConfig
    config: SegmenterConfig
    backbone: ViT

    def __init__(
        self, config: SegmenterConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or SegmenterConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        if config.decoder == "linear":
            self.decoder = nnx.Linear(config.backbone.width, config.classes, dtype=dtype, rngs=rngs)
        else:
            self.decoder = MaskTransformer(config, dtype=dtype, rngs=rngs)

    @property
    def window(self) -> SlidingWindow | None:
        """How images are cut into windows."""
        return self.config.window

    @property
    def tasks(self) -> dict[str, Task]:
        """Segmentation alone; it merges the logits of tokens."""
        config = self.config
        labels = config.labels or labels_of(config.dataset, config.classes)
        return {"segmentation": Segmentation(labels, config.dataset, cell=config.backbone.patch_size)}

    def features(self, images: jax.Array) -> ViTFeatures:
        """The backbone's features of images of any size, padded with zeros to multiples of the patch size."""
        side = self.config.backbone.patch_size
        padding = [(0, -length % side) for length in images.shape[1:3]]
        return self.backbone(jnp.pad(images, ((0, 0), *padding, (0, 0))))

    def decode(self, features: ViTFeatures, size: Size | None) -> jax.Array:
        """The head: features -> class logits, float32.

        Under a plan with reconstruct="logits", the decoder runs on the clusters and its logits are restored.

        Args:
            features: of the padded images.
            size: (rows, columns) of the images: logits of every pixel, [B, rows, columns, classes]; None leaves
                them at the resolution of the tokens, [B, H, W, classes].
        """
        tokens = features.tokens
        with jax.named_scope("head"):
            logits = self.decoder(tokens.values).astype(jnp.float32)
        logits = tokens.restore(logits).reshape(logits.shape[0], *features.token_grid, -1)
        if size is None:
            return logits
        with jax.named_scope("head"):
            upsampled = resize(logits, self.backbone.image_size(features.token_grid), "bilinear")
            return upsampled[:, : size[0], : size[1]]
