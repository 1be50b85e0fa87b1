"""Segment Anything: an image is encoded once, and every prompt about it is answered with masks.

Source: facebookresearch/segment-anything, segment_anything/build_sam.py and modeling (arXiv 2304.02643); for the
hourglass in its encoder, Expedit-SAM.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.backbones.windowed import Windows
from hourglass_jax.checks import check_config
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.models.base import PromptedVisionModel, Size
from hourglass_jax.models.sam_decoder import MaskDecoder, PromptEncoder
from hourglass_jax.models.sam_prompts import FOREGROUND, NOT_A_POINT, Prompts
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks.automatic_masks import grid_points
from hourglass_jax.tasks.base import Task
from hourglass_jax.tasks.prompted_masks import PromptedMasks, PromptOutputs

GLOBAL_BLOCKS = {"base": (2, 5, 8, 11), "large": (5, 11, 17, 23), "huge": (7, 15, 23, 31)}
"""Of the published encoders; the others attend in windows of 14 x 14."""
NECK_EPSILON = 1e-6


def sam_backbone(size: Literal["base", "large", "huge"] = "base") -> ViTConfig:
    """One of the published encoders, ViT-B, L or H."""
    return ViTConfig.sized(
        size,
        special_tokens=0,
        position_grid=(64, 64),
        position_resize="bicubic-antialias",
        windows=Windows(14, GLOBAL_BLOCKS[size]),
    )


@dataclass(frozen=True)
class SamConfig:
    """The encoder, the decoder, and how images are prepared.

    Attributes:
        backbone: the ViT, with windows.
        width: channels of the encoded image and of the decoder, a multiple of 8 and of `heads`.
        cross_width: channels of the attention between tokens and image, a multiple of `heads`.
        layers: of the decoder.
        heads: of its attentions.
        hidden: channels of its feed-forward.
        quality_hidden: channels of the layers that tell the qualities of masks.
        mask_channels: of the second of the layers that make a map of a mask in a prompt; a multiple of 4.
        norm_epsilon: of the norms in the decoder's layers; transformers' own default is 1e-6.
        preprocessing: of images.
    """

    backbone: ViTConfig = field(default_factory=sam_backbone)
    width: int = 256
    cross_width: int = 128
    layers: int = 2
    heads: int = 8
    hidden: int = 2048
    quality_hidden: int = 256
    mask_channels: int = 16
    norm_epsilon: float = 1e-5
    preprocessing: PaddedSquare = field(default_factory=PaddedSquare)

    def __post_init__(self) -> None:
        check_config(self, layers=("layers",))
        if self.backbone.windows is None:
            raise ValueError("backbone must be a ViT with windows")
        if self.width % 8 or self.width % self.heads or self.cross_width % self.heads or self.mask_channels % 4:
            raise ValueError(
                "width must be a multiple of 8 and of heads, cross_width of heads, mask_channels of 4: "
                f"got {self.width}, {self.cross_width} and {self.mask_channels} with {self.heads} heads"
            )
        if self.norm_epsilon < 0:
            raise ValueError(f"norm_epsilon must not be negative, got {self.norm_epsilon}")

    @classmethod
    def sized(cls, size: Literal["base", "large", "huge"], **fields: Any) -> "SamConfig":
        """One of the published sizes, with further fields."""
        return cls(backbone=sam_backbone(size), **fields)


class Neck(nnx.Module):
    """The encoder's last layers: two convolutions without bias, each with a norm."""

    def __init__(self, inputs: int, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(width, epsilon=NECK_EPSILON, use_fast_variance=False, dtype=dtype, rngs=rngs)

        self.projection = nnx.Linear(inputs, width, use_bias=False, dtype=dtype, rngs=rngs)
        self.norm1 = norm()
        self.convolution = nnx.Conv(width, width, (3, 3), use_bias=False, dtype=dtype, rngs=rngs)
        self.norm2 = norm()

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, H, W, width]"""
        with jax.named_scope("neck"):
            return self.norm2(self.convolution(self.norm1(self.projection(x))))


class Sam(PromptedVisionModel):
    """Image to an encoding, encoding and prompts to masks.

    Images of another size than the model was trained with are taken too: positions and relative positions are
    resized.
    """

    config_class = SamConfig
    config: SamConfig
    backbone: ViT

    def __init__(self, config: SamConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs) -> None:
        config = config or SamConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        self.neck = Neck(config.backbone.width, config.width, dtype=dtype, rngs=rngs)
        self.prompt_encoder = PromptEncoder(config.width, config.mask_channels, dtype=dtype, rngs=rngs)
        self.mask_decoder = MaskDecoder(
            config.width,
            config.cross_width,
            config.layers,
            config.heads,
            config.hidden,
            config.quality_hidden,
            config.norm_epsilon,
            dtype=dtype,
            rngs=rngs,
        )

    @property
    def tasks(self) -> dict[str, Task]:
        """Masks of prompts alone."""
        return {"masks": PromptedMasks()}

    def features(self, images: jax.Array) -> jax.Array:
        """The encoded images, [B, H, W, width], of images whose sides are multiples of the patch size."""
        return self.neck(self.backbone(images).maps()["features"])

    def head_input(self, features: jax.Array) -> jax.Array:
        """The encoded images as tokens, [B, H*W, width]."""
        return features.reshape(len(features), -1, features.shape[-1])

    def drawn_prompts(self, batch: int, size: Size, count: int) -> Prompts:
        """A click on each of `count` x `count` points; see `PromptedVisionModel.drawn_prompts`."""
        points = grid_points(count) * size[::-1]
        places = np.stack([points, np.zeros_like(points)], axis=1).astype(np.float32)
        kinds = np.tile(np.array([FOREGROUND, NOT_A_POINT], np.int32), (len(points), 1))
        return Prompts(np.tile(places, (batch, 1, 1, 1)), np.tile(kinds, (batch, 1, 1)))

    def mask_size(self, size: Size) -> Size:
        """(rows, columns) of the logits of masks, for images of `size` = (rows, columns) in pixels."""
        rows, columns = self.backbone.token_grid(*size)
        return 4 * rows, 4 * columns

    def decode(self, features: jax.Array, prompts: Prompts, size: Size | None) -> PromptOutputs:
        """The answers to prompts.

        Args:
            features: of B images.
            prompts: P about each of them.
            size: (rows, columns) of the logits of masks; None leaves them at four times the resolution of tokens.
        """
        grid = features.shape[1], features.shape[2]
        with jax.named_scope("prompts"):
            places = self.prompt_encoder.grid_positions(grid)
            tokens = self.prompt_encoder.tokens(prompts, self.backbone.image_size(grid))
            image = self.head_input(features)[:, None] + self.prompt_encoder.maps(prompts.masks)
        with jax.named_scope("head"):
            logits, qualities = self.mask_decoder(image, places, tokens, prompts.kinds, grid)
            if size is not None:
                flat = logits.reshape(-1, *logits.shape[-2:], 1)
                logits = resize(flat, size, "bilinear").reshape(*logits.shape[:-2], *size)
        return PromptOutputs(logits, qualities)
