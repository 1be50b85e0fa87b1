"""Tiny checkpoints in the namings of official weights: random arrays, and what their parts are called."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

WIDTH, DEPTH, PATCH, GRID = 64, 2, 2, 3
GATED = 172
"""Hidden channels of a SwiGLU."""
REGISTERS = 4
MLP = ("mlp.fc1", "mlp.fc2")

Arrays = dict[str, np.ndarray]
Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Checkpoint:
    """A vision transformer and what comes after it.

    Attributes:
        arrays: by name.
        patches: the weight of the patch embedding.
        positions: the position embedding.
        special: the special tokens, in order.
        qkv: the weights of the second block's queries, keys and values, or the one of all three.
        expand: the weight of the second block's first linear layer of the MLP.
    """

    arrays: Arrays
    patches: str
    positions: str
    special: tuple[str, ...]
    qkv: tuple[str, ...]
    expand: str

    def plus(self, arrays: Mapping[str, np.ndarray]) -> "Checkpoint":
        """With more arrays, or others in their place."""
        return replace(self, arrays=self.arrays | arrays)

    def without(self, name: str) -> "Checkpoint":
        """Without one of its arrays."""
        return replace(self, arrays={key: array for key, array in self.arrays.items() if key != name})

    def wrapped(self, prefix: str) -> "Checkpoint":
        """With a prefix before all names in the file alone."""
        return replace(self, arrays={prefix + name: array for name, array in self.arrays.items()})


def timm_vit(
    prefix: str = "",
    *,
    special: tuple[str, ...] = ("cls_token",),
    positions: int = 1,
    scales: bool = False,
    mlp: tuple[str, str] = MLP,
    gated: bool = False,
    depth: int = DEPTH,
) -> Checkpoint:
    """timm's names.

    Args:
        prefix: before all names.
        special: special tokens.
        positions: how many of them have a position embedding.
        scales: whether there is LayerScale.
        mlp: what the linear layers of the MLP are called.
        gated: whether they are a SwiGLU.
        depth: number of blocks.
    """
    shapes: Shapes = {
        **{prefix + name: (1, REGISTERS if "reg" in name else 1, WIDTH) for name in special},
        f"{prefix}pos_embed": (1, positions + GRID * GRID, WIDTH),
        f"{prefix}patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        f"{prefix}patch_embed.proj.bias": (WIDTH,),
        **_norm(f"{prefix}norm"),
    }
    for number in range(depth):
        block = f"{prefix}blocks.{number}"
        shapes |= _timm_block(block, mlp, gated=gated)
        if scales:
            shapes |= {f"{block}.ls{i}.gamma": (WIDTH,) for i in (1, 2)}
    return Checkpoint(
        random_arrays(shapes),
        patches=f"{prefix}patch_embed.proj.weight",
        positions=f"{prefix}pos_embed",
        special=tuple(prefix + name for name in special),
        qkv=(f"{prefix}blocks.1.attn.qkv.weight",),
        expand=f"{prefix}blocks.1.{mlp[0]}.weight",
    )


def mmsegmentation_vit() -> Checkpoint:
    """mmsegmentation's names."""
    shapes: Shapes = {
        "backbone.cls_token": (1, 1, WIDTH),
        "backbone.pos_embed": (1, 1 + GRID * GRID, WIDTH),
        "backbone.patch_embed.projection.weight": (WIDTH, 3, PATCH, PATCH),
        "backbone.patch_embed.projection.bias": (WIDTH,),
        **_norm("backbone.ln1"),
    }
    for number in range(DEPTH):
        layer = f"backbone.layers.{number}"
        shapes |= {
            **_norm(f"{layer}.ln1"),
            **_norm(f"{layer}.ln2"),
            f"{layer}.attn.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{layer}.attn.attn.in_proj_bias": (3 * WIDTH,),
            **_linear(f"{layer}.attn.attn.out_proj", WIDTH, WIDTH),
            **_mlp(f"{layer}.ffn.layers.0.0", f"{layer}.ffn.layers.1"),
        }
    return Checkpoint(
        random_arrays(shapes),
        patches="backbone.patch_embed.projection.weight",
        positions="backbone.pos_embed",
        special=("backbone.cls_token",),
        qkv=("backbone.layers.1.attn.attn.in_proj_weight",),
        expand="backbone.layers.1.ffn.layers.0.0.weight",
    )


def swag(layer: str, head: str, *, classes: int, mlp: tuple[str, str] | None = None) -> Checkpoint:
    """SWAG's names.

    Args:
        layer: stands before a block's number: "layer_" officially, and "encoder_layer_" in torchvision.
        head: the linear classifier.
        classes: that it tells apart.
        mlp: what the linear layers of the MLP are called, where it is not as usual.
    """
    is_official = layer == "layer_"
    mlp = mlp or (("mlp.linear_1", "mlp.linear_2") if is_official else ("mlp.0", "mlp.3"))
    positions = 1 + GRID * GRID
    shapes: Shapes = {
        "class_token": (1, 1, WIDTH),
        "encoder.pos_embedding": (positions, 1, WIDTH) if is_official else (1, positions, WIDTH),
        "conv_proj.weight": (WIDTH, 3, PATCH, PATCH),
        "conv_proj.bias": (WIDTH,),
        **_norm("encoder.ln"),
        **_linear(head, classes, WIDTH),
    }
    for number in range(DEPTH):
        block = f"encoder.layers.{layer}{number}"
        shapes |= {
            **_norm(f"{block}.ln_1"),
            **_norm(f"{block}.ln_2"),
            f"{block}.self_attention.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.self_attention.in_proj_bias": (3 * WIDTH,),
            **_linear(f"{block}.self_attention.out_proj", WIDTH, WIDTH),
            **_mlp(*(f"{block}.{name}" for name in mlp)),
        }
    return Checkpoint(
        random_arrays(shapes),
        patches="conv_proj.weight",
        positions="encoder.pos_embedding",
        special=("class_token",),
        qkv=(f"encoder.layers.{layer}1.self_attention.in_proj_weight",),
        expand=f"encoder.layers.{layer}1.{mlp[0]}.weight",
    )


def transformers_dinov2(
    prefix: str = "", *, registers: bool = False, gated: bool = False, depth: int = DEPTH
) -> Checkpoint:
    """Hugging Face's DINOv2 names."""
    embeddings = f"{prefix}embeddings."
    shapes: Shapes = {
        f"{embeddings}cls_token": (1, 1, WIDTH),
        f"{embeddings}mask_token": (1, WIDTH),
        f"{embeddings}position_embeddings": (1, 1 + GRID * GRID, WIDTH),
        **({f"{embeddings}register_tokens": (1, REGISTERS, WIDTH)} if registers else {}),
        f"{embeddings}patch_embeddings.projection.weight": (WIDTH, 3, PATCH, PATCH),
        f"{embeddings}patch_embeddings.projection.bias": (WIDTH,),
        **_norm(f"{prefix}layernorm"),
    }
    linears = ("weights_in", "weights_out") if gated else ("fc1", "fc2")
    for number in range(depth):
        layer = f"{prefix}encoder.layer.{number}"
        for part in ("attention.query", "attention.key", "attention.value", "output.dense"):
            shapes |= _linear(f"{layer}.attention.{part}", WIDTH, WIDTH)
        for i in (1, 2):
            shapes |= {**_norm(f"{layer}.norm{i}"), f"{layer}.layer_scale{i}.lambda1": (WIDTH,)}
        shapes |= _mlp(*(f"{layer}.mlp.{name}" for name in linears), gated=gated)
    return Checkpoint(
        random_arrays(shapes),
        patches=f"{embeddings}patch_embeddings.projection.weight",
        positions=f"{embeddings}position_embeddings",
        special=(f"{embeddings}cls_token", f"{embeddings}register_tokens")[: 2 if registers else 1],
        qkv=tuple(
            f"{prefix}encoder.layer.1.attention.attention.{part}.weight" for part in ("query", "key", "value")
        ),
        expand=f"{prefix}encoder.layer.1.mlp.{linears[0]}.weight",
    )


def segmenter(encoder: Checkpoint, decoder: str, *, classes: int, masks: bool) -> Checkpoint:
    """An encoder with one of Segmenter's decoders; `decoder` is what stands before its names."""
    if not masks:
        return encoder.plus(random_arrays(_linear(f"{decoder}head", classes, WIDTH), seed=1))
    shapes: Shapes = {
        f"{decoder}cls_emb": (1, classes, WIDTH),
        **_linear(f"{decoder}proj_dec", WIDTH, WIDTH),
        f"{decoder}proj_patch": (WIDTH, WIDTH),
        f"{decoder}proj_classes": (WIDTH, WIDTH),
        **_norm(f"{decoder}decoder_norm"),
        **_norm(f"{decoder}mask_norm", classes),
        **_timm_block(f"{decoder}blocks.0"),
        **_timm_block(f"{decoder}blocks.1"),
    }
    return encoder.plus(random_arrays(shapes, seed=1))


def prediction_modules(count: int) -> Arrays:
    """DynamicViT's, with the official names."""
    shapes: Shapes = {}
    for number in range(count):
        module = f"score_predictor.{number}"
        shapes |= {
            **_norm(f"{module}.in_conv.0"),
            **_linear(f"{module}.in_conv.1", WIDTH, WIDTH),
            **_linear(f"{module}.out_conv.0", WIDTH // 2, WIDTH),
            **_linear(f"{module}.out_conv.2", WIDTH // 4, WIDTH // 2),
            **_linear(f"{module}.out_conv.4", 2, WIDTH // 4),
        }
    return random_arrays(shapes, seed=3)


def classifier(name: str) -> Arrays:
    """A linear classifier of 10 classes."""
    return random_arrays(_linear(name, 10, WIDTH), seed=2)


def write_safetensors(path: Path, arrays: Arrays) -> Path:
    """Writes arrays as a safetensors file."""
    safetensors.numpy.save_file(arrays, path)
    return path


def write_onnx(path: Path, arrays: Arrays) -> Path:
    """Writes arrays as PyTorch's exporter writes them, all being initializers of a graph.

    One under the name of a node (it starts with "/") becomes a nameless initializer that the node reads.
    """
    onnx = pytest.importorskip("onnx")
    initializers, nodes = [], []
    for number, (name, array) in enumerate(arrays.items()):
        if name.startswith("/"):
            operation = name.rpartition("/")[2].partition("_")[0]
            node, name = name, f"onnx::{operation}_{number}"
            nodes.append(onnx.helper.make_node(operation, ["x", name], [f"{node}_output"], name=node))
        initializers.append(onnx.numpy_helper.from_array(array, name))
    graph = onnx.helper.make_graph(nodes, "main_graph", [], [], initializers)
    onnx.save(onnx.helper.make_model(graph), str(path))
    return path


def node_of(module: str) -> str:
    """The MatMul node of a linear layer in an ONNX graph."""
    return "/" + "/".join(re.split(r"\.(?!\d)", module)) + "/MatMul"


def random_arrays(shapes: Shapes, *, seed: int = 0) -> Arrays:
    """Arrays of these shapes, float32."""
    random = np.random.default_rng(seed)
    return {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _timm_block(block: str, mlp: tuple[str, str] = MLP, *, gated: bool = False) -> Shapes:
    return {
        **_norm(f"{block}.norm1"),
        **_linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH),
        **_linear(f"{block}.attn.proj", WIDTH, WIDTH),
        **_norm(f"{block}.norm2"),
        **_mlp(*(f"{block}.{name}" for name in mlp), gated=gated),
    }


def _mlp(expand: str, contract: str, *, gated: bool = False) -> Shapes:
    hidden = GATED if gated else 4 * WIDTH
    return {**_linear(expand, 2 * hidden if gated else hidden, WIDTH), **_linear(contract, WIDTH, hidden)}


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int = WIDTH) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}
