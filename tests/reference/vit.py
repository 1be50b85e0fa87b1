"""A vision transformer in float64, from its parameters: what the references of plans run on.

Parameters are one module's arrays by their names, as `hourglass_jax.models.registry.flat_parameters` has them;
sequences are those of one image, [N, C], special tokens first.
"""

from collections.abc import Callable, Mapping
from math import erf

import numpy as np

Array = np.ndarray
Parameters = Mapping[str, Array]
Turn = Callable[[Array], Array]
"""What rotary positions make of the queries or keys of every head, [heads, N, D]."""


def part(parameters: Parameters, name: str) -> dict[str, Array]:
    """The parameters of a module's part."""
    prefix = f"{name}."
    return {
        key.removeprefix(prefix): np.float64(each) for key, each in parameters.items() if key.startswith(prefix)
    }


def embed(vit: Parameters, image: Array, patch: int) -> Array:
    """The image's tokens before the first block; a position embedding must have the image's grid."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    tokens = [
        linear(
            part(vit, "patch_embedding.projection"),
            image[y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].reshape(-1),
        )
        for y in range(rows)
        for x in range(columns)
    ]
    if "position_embedding" not in vit:
        return np.stack(tokens)
    positions = np.float64(vit["position_embedding"])
    assert positions.shape[:2] == (rows, columns)
    return np.stack(tokens) + positions.reshape(rows * columns, -1)


def project(block: Parameters, x: Array, heads: int, turn: Turn | None = None) -> tuple[Array, Array, Array]:
    """Query, key and value of every head, each [heads, N, D]."""
    qkv = linear(part(block, "attention.qkv"), layer_norm(part(block, "norm1"), x))
    query, key, value = (np.stack(np.split(each, heads, axis=1)) for each in np.split(qkv, 3, axis=1))
    return (query, key, value) if turn is None else (turn(query), turn(key), value)


def attention(query: Array, key: Array, sizes: Array | None = None) -> Array:
    """The weights of every head, [heads, Nq, N]; a key of size n counts n times."""
    logits = query @ key.transpose(0, 2, 1) / np.sqrt(query.shape[-1])
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True)) * (1 if sizes is None else sizes)
    return weights / weights.sum(axis=-1, keepdims=True)


def attend(block: Parameters, x: Array, mixed: Array) -> Array:
    """Tokens with what attention mixed, [heads, N, D], added."""
    joined = np.concatenate(list(mixed), axis=1)
    return x + linear(part(block, "attention.projection"), joined) * block.get("scale1", 1.0)


def feed_forward(block: Parameters, x: Array) -> Array:
    hidden = gelu(linear(part(block, "mlp.expand"), layer_norm(part(block, "norm2"), x)))
    return x + linear(part(block, "mlp.contract"), hidden) * block.get("scale2", 1.0)


def run_block(
    block: Parameters, x: Array, heads: int, sizes: Array | None = None, turn: Turn | None = None
) -> Array:
    query, key, value = project(block, x, heads, turn)
    return feed_forward(block, attend(block, x, attention(query, key, sizes) @ value))


def linear(layer: Parameters, x: Array) -> Array:
    return x @ layer["kernel"] + layer["bias"]


def layer_norm(norm: Parameters, x: Array, epsilon: float = 1e-6) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * norm["scale"] + norm["bias"]


def gelu(x: Array) -> Array:
    return x * (1 + np.vectorize(erf)(x / np.sqrt(2))) / 2
