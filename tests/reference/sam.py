"""SAM's image encoder in NumPy, float64, token by token, with and without the hourglass of Expedit-SAM."""

import math

import numpy as np

from tests.reference import hourglass

Parameters = dict[str, np.ndarray]


def encoder_blocks(
    image_tokens: np.ndarray,
    parameters: Parameters,
    *,
    heads: int,
    window: int,
    global_blocks: tuple[int, ...],
    plan: object | None = None,
    epsilon: float = 1e-6,
) -> np.ndarray:
    """The tokens [H, W, C] after all blocks.

    Args:
        image_tokens: [H, W, C] with their positions.
        parameters: of our ViT by name.
        heads: of every block.
        window: side.
        global_blocks: those that attend over the whole map.
        plan: an Hourglass, or None.
        epsilon: of the norms.
    """
    x, depth, side, kept = image_tokens, _depth(parameters), window, None
    end = None if plan is None else (depth if plan.beta is None else plan.alpha + plan.beta)
    for index in range(depth):
        if plan is not None and index == plan.alpha:
            kept = x
            x, before = _clustered(x, window, plan)
            side = plan.clusters[0]
        if plan is not None and index == end:
            x, side = _reconstructed(x, kept, before, window, plan), window
        own = {
            name.removeprefix(f"blocks.{index}."): value
            for name, value in parameters.items()
            if name.startswith(f"blocks.{index}.")
        }
        tables = [parameters[f"relative_positions.{index}.{axis}"] for axis in ("rows", "columns")]
        normed = _norm(x, own["norm1.scale"], own["norm1.bias"], epsilon)
        if index in global_blocks:
            mixed = attention(normed, own, tables, heads)
        else:
            mixed = np.zeros_like(x)
            for top in range(0, x.shape[0], side):
                for left in range(0, x.shape[1], side):
                    part = np.zeros((side, side, x.shape[2]))
                    inside = normed[top : top + side, left : left + side]
                    part[: inside.shape[0], : inside.shape[1]] = inside
                    found = attention(part, own, tables, heads)
                    mixed[top : top + side, left : left + side] = found[: inside.shape[0], : inside.shape[1]]
        x = x + mixed
        hidden = _norm(x, own["norm2.scale"], own["norm2.bias"], epsilon)
        hidden = _gelu(hidden @ own["mlp.expand.kernel"] + own["mlp.expand.bias"])
        x = x + hidden @ own["mlp.contract.kernel"] + own["mlp.contract.bias"]
    if plan is not None and end == depth:
        x = _reconstructed(x, kept, before, window, plan)
    return x


def attention(x: np.ndarray, own: Parameters, tables: list[np.ndarray], heads: int) -> np.ndarray:
    """Attention over a map [h, w, C] with decomposed relative positions, pair by pair."""
    height, width, channels = x.shape
    rows, columns = (resized_table(table, side) for table, side in zip(tables, (height, width), strict=True))
    qkv = x.reshape(-1, channels) @ own["attention.qkv.kernel"] + own["attention.qkv.bias"]
    query, key, value = qkv.reshape(-1, 3, heads, channels // heads).transpose(1, 2, 0, 3)
    places = [(y, x) for y in range(height) for x in range(width)]
    mixed = np.zeros((len(places), heads, channels // heads))
    for head in range(heads):
        for p, (y, x) in enumerate(places):
            q = query[head, p]
            logits = key[head] @ q * (channels // heads) ** -0.5
            bias = [
                q @ rows[y - other_y + height - 1] + q @ columns[x - other_x + width - 1]
                for other_y, other_x in places
            ]
            logits = logits + np.array(bias)
            weights = np.exp(logits - logits.max())
            mixed[p, head] = weights / weights.sum() @ value[head]
    out = (
        mixed.reshape(len(places), channels) @ own["attention.projection.kernel"] + own["attention.projection.bias"]
    )
    return out.reshape(height, width, channels)


def resized_table(table: np.ndarray, side: int) -> np.ndarray:
    """A table of offsets for another side: linear interpolation between the middles of cells."""
    count = 2 * side - 1
    places = np.clip((np.arange(count) + 0.5) * len(table) / count - 0.5, 0, len(table) - 1)
    return np.stack([np.interp(places, np.arange(len(table)), column) for column in table.T], axis=-1)


def _windows(x: np.ndarray, window: int) -> list[tuple[int, int, np.ndarray]]:
    found = []
    for row in range(math.ceil(x.shape[0] / window)):
        for column in range(math.ceil(x.shape[1] / window)):
            part = np.zeros((window, window, x.shape[2]))
            inside = x[row * window : (row + 1) * window, column * window : (column + 1) * window]
            part[: inside.shape[0], : inside.shape[1]] = inside
            found.append((row, column, part))
    return found


def _clustered(x: np.ndarray, window: int, plan: object) -> tuple[np.ndarray, np.ndarray]:
    side, windows = plan.clusters[0], _windows(x, window)
    rows, columns = windows[-1][0] + 1, windows[-1][1] + 1
    smaller = np.zeros((rows * side, columns * side, x.shape[2]))
    for row, column, part in windows:
        clusters = hourglass.cluster_tokens(
            part.reshape(1, window**2, -1),
            token_grid=(window, window),
            cluster_grid=plan.clusters,
            window=plan.window,
            iterations=plan.iterations,
            temperature=plan.temperature,
            representative=plan.representative,
        )
        smaller[row * side : (row + 1) * side, column * side : (column + 1) * side] = np.asarray(clusters).reshape(
            side, side, -1
        )
    return smaller, smaller.copy()


def _reconstructed(x: np.ndarray, tokens: np.ndarray, before: np.ndarray, window: int, plan: object) -> np.ndarray:
    side, restored = plan.clusters[0], np.zeros_like(tokens)
    for row, column, part in _windows(tokens, window):
        own = slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side)
        found = hourglass.reconstruct_tokens(
            x[own].reshape(1, side**2, -1),
            tokens=part.reshape(1, window**2, -1),
            clusters=before[own].reshape(1, side**2, -1),
            neighbors=plan.neighbors,
            temperature=plan.temperature,
            token_grid=(window, window),
        )
        found = np.asarray(found).reshape(window, window, -1)
        target = restored[row * window : (row + 1) * window, column * window : (column + 1) * window]
        target[...] = found[: target.shape[0], : target.shape[1]]
    return restored


def _depth(parameters: Parameters) -> int:
    return 1 + max(int(name.split(".")[1]) for name in parameters if name.startswith("blocks."))


def _norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon) * scale + bias


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
