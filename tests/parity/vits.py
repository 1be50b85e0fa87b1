"""PyTorch vision transformers with weights that hide nothing, and ours with the same weights."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from hourglass_jax.backbones.vit import ViT, ViTConfig

# Our module or parameter -> theirs; several are joined along the output. "class", "registers" and "positions" make
# up our special tokens and position embedding.
TIMM = {
    "class": "cls_token",
    "registers": "reg_token",
    "positions": "pos_embed",
    "patch_embedding.projection": "patch_embed.proj",
    "blocks.{}.norm1": "blocks.{}.norm1",
    "blocks.{}.attention.qkv": "blocks.{}.attn.qkv",
    "blocks.{}.attention.projection": "blocks.{}.attn.proj",
    "blocks.{}.scale1": "blocks.{}.ls1.gamma",
    "blocks.{}.norm2": "blocks.{}.norm2",
    "blocks.{}.mlp.expand": "blocks.{}.mlp.fc1",
    "blocks.{}.mlp.contract": "blocks.{}.mlp.fc2",
    "blocks.{}.scale2": "blocks.{}.ls2.gamma",
    "norm": "norm",
}
TRANSFORMERS_DINOV2 = {
    "class": "embeddings.cls_token",
    "registers": "embeddings.register_tokens",
    "positions": "embeddings.position_embeddings",
    "patch_embedding.projection": "embeddings.patch_embeddings.projection",
    "blocks.{}.norm1": "encoder.layer.{}.norm1",
    "blocks.{}.attention.qkv": [f"encoder.layer.{{}}.attention.{name}_proj" for name in "qkv"],
    "blocks.{}.attention.projection": "encoder.layer.{}.attention.o_proj",
    "blocks.{}.scale1": "encoder.layer.{}.layer_scale1.lambda1",
    "blocks.{}.norm2": "encoder.layer.{}.norm2",
    "blocks.{}.mlp.expand": "encoder.layer.{}.mlp.fc1",
    "blocks.{}.mlp.contract": "encoder.layer.{}.mlp.fc2",
    "blocks.{}.scale2": "encoder.layer.{}.layer_scale2.lambda1",
    "norm": "layernorm",
}
TRANSFORMERS_VIT = TRANSFORMERS_DINOV2 | {
    "blocks.{}.norm1": "layers.{}.layernorm_before",
    "blocks.{}.attention.qkv": [f"layers.{{}}.attention.{name}_proj" for name in "qkv"],
    "blocks.{}.attention.projection": "layers.{}.attention.o_proj",
    "blocks.{}.norm2": "layers.{}.layernorm_after",
    "blocks.{}.mlp.expand": "layers.{}.mlp.fc1",
    "blocks.{}.mlp.contract": "layers.{}.mlp.fc2",
}
UNUSED = {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Draws every parameter so that features are of order one, and no scale, bias or branch is trivial."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.copy_(0.3 * noise + (0 if name.endswith("bias") else 1))
            else:
                fan_in = parameter[0].numel() if name.endswith("weight") else 1
                parameter.copy_(noise * fan_in**-0.5)
    return model.eval()


def ours(model: torch.nn.Module, names: dict, config: ViTConfig, *, dtype: jnp.dtype = jnp.float32) -> ViT:
    """Our ViT with the weights of `model`; every tensor on either side has its counterpart."""
    tensors = model.state_dict()
    used = set()

    def take(template: str | Sequence[str], number: int | None = None, leaf: str = "") -> torch.Tensor:
        templates = [template] if isinstance(template, str) else template
        theirs = [".".join(filter(None, [each.format(number), leaf])) for each in templates]
        used.update(theirs)
        return torch.cat([tensors[name] for name in theirs])

    positions = take(names["positions"])
    rows, columns = config.position_grid
    prefix = positions.shape[1] - rows * columns
    special = take(names["class"])
    if config.special_tokens > 1:
        special = torch.cat([special, take(names["registers"])], dim=1)
    special[:, :prefix] += positions[:, :prefix]

    vit = ViT(config, dtype=dtype, rngs=nnx.Rngs(0))
    for path, parameter in nnx.to_flat_state(nnx.state(vit)):
        if path == ("special_tokens",):
            tensor = special[0]
        elif path == ("position_embedding",):
            tensor = positions[0, prefix:].reshape(rows, columns, -1)
        else:
            *module, leaf = path if path[-1] in LEAVES else (*path, "")
            number = next((part for part in module if isinstance(part, int)), None)
            template = ".".join("{}" if isinstance(part, int) else part for part in module)
            tensor = take(names[template], number, LEAVES.get(leaf, ""))
            if leaf == "kernel":
                tensor = tensor.movedim(1, -1).reshape(len(tensor), -1).T
        assert parameter.shape == tensor.shape, path
        parameter[...] = jnp.asarray(tensor.numpy())
    assert used == set(tensors) - UNUSED
    return vit


def config_of_timm(model: torch.nn.Module) -> ViTConfig:
    """The configuration of ours that matches a `timm.models.vision_transformer.VisionTransformer`."""
    block = model.blocks[0]
    return ViTConfig(
        patch_size=model.patch_embed.patch_size[0],
        width=model.embed_dim,
        depth=len(model.blocks),
        heads=block.attn.num_heads,
        mlp_ratio=block.mlp.fc1.out_features / model.embed_dim,
        special_tokens=model.num_prefix_tokens,
        position_grid=model.patch_embed.grid_size,
        position_resize="bicubic-antialias",
        layer_scale=hasattr(block.ls1, "gamma"),
        norm_epsilon=model.norm.eps,
    )


def random_images(rows: int, columns: int, *, batch: int = 2, seed: int = 0) -> np.ndarray:
    """[B, rows, columns, 3] in float32."""
    return np.random.default_rng(seed).normal(size=(batch, rows, columns, 3)).astype(np.float32)


def channels_first(images: np.ndarray) -> torch.Tensor:
    """[B, rows, columns, 3] -> [B, 3, rows, columns]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2)


@nnx.jit(static_argnames="intermediates")
def features(
    model: ViT, images: jax.Array, *, intermediates: tuple[int, ...] = ()
) -> tuple[jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Special tokens, tokens and intermediates as arrays."""
    found = model(images, intermediates=intermediates)
    return found.special, found.tokens.values, tuple(each.tokens for each in found.intermediates)
