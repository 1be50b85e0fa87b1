"""The vision transformer's rows in the namings that its checkpoints use."""

from checkpoints_convert.rules import Row, concatenated, linear, patch_kernel, row, same


def transformers_dinov2(prefix: str, target: str = "backbone.") -> tuple[Row, ...]:
    """Hugging Face's DINOv2 names, without class token and position embeddings.

    Source: huggingface/transformers, src/transformers/models/dinov2/modeling_dinov2.py.
    """
    layer, block = f"{prefix}encoder.layer.*.", f"{target}blocks.*."
    qkv = tuple(f"{layer}attention.attention.{part}" for part in ("query", "key", "value"))
    return (
        row(
            f"{target}patch_embedding.projection.kernel",
            f"{prefix}embeddings.patch_embeddings.projection.weight",
            patch_kernel,
        ),
        row(
            f"{target}patch_embedding.projection.bias",
            f"{prefix}embeddings.patch_embeddings.projection.bias",
            same,
        ),
        row(f"{block}norm1.scale", f"{layer}norm1.weight", same),
        row(f"{block}norm1.bias", f"{layer}norm1.bias", same),
        row(f"{block}attention.qkv.kernel", tuple(f"{name}.weight" for name in qkv), linear),
        row(f"{block}attention.qkv.bias", tuple(f"{name}.bias" for name in qkv), concatenated),
        row(f"{block}attention.projection.kernel", f"{layer}attention.output.dense.weight", linear),
        row(f"{block}attention.projection.bias", f"{layer}attention.output.dense.bias", same),
        row(f"{block}scale1", f"{layer}layer_scale1.lambda1", same),
        row(f"{block}norm2.scale", f"{layer}norm2.weight", same),
        row(f"{block}norm2.bias", f"{layer}norm2.bias", same),
        row(f"{block}mlp.expand.kernel", f"{layer}mlp.fc1.weight", linear),
        row(f"{block}mlp.expand.bias", f"{layer}mlp.fc1.bias", same),
        row(f"{block}mlp.contract.kernel", f"{layer}mlp.fc2.weight", linear),
        row(f"{block}mlp.contract.bias", f"{layer}mlp.fc2.bias", same),
        row(f"{block}scale2", f"{layer}layer_scale2.lambda1", same),
        row(f"{target}norm.scale", f"{prefix}layernorm.weight", same),
        row(f"{target}norm.bias", f"{prefix}layernorm.bias", same),
    )
