"""The Swin transformer and its hourglass in float64: one image, one window, one head, one pair of tokens at a time.

Parameters are those of the library by their dotted names, as arrays. A map is [H, W, C].
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from hourglass_jax import Hourglass
from tests.reference import hourglass as reference

Array = np.ndarray
Parameters = Mapping[str, Array]


def swin(
    image: Array,
    parameters: Parameters,
    *,
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    patch_size: int,
    version: int,
    plan: Hourglass | None = None,
) -> list[Array]:
    """Every stage's map after its norm, of a normalised image [rows, columns, 3]."""
    x = patches(image, parameters, patch_size)
    outputs, first = [], 0
    for stage, depth in enumerate(depths):
        blocks = [below(parameters, f"stages.{stage}.blocks.{number}.") for number in range(depth)]
        alpha = end = depth
        if plan is not None and first <= plan.alpha < first + depth:
            alpha = plan.alpha - first
            end = depth if plan.beta is None else alpha + plan.beta
        for number in range(alpha):
            x = block(x, blocks[number], heads[stage], window, shift_of(number, window), version)
        if end > alpha:
            side = plan.clusters[0]
            z = windows_of(x, window)
            s = clusters_of(z, window, plan)
            clustered = map_of(s, side, [math.ceil(length / window) * side for length in x.shape[:2]])
            for number in range(alpha, end):
                clustered = block(clustered, blocks[number], heads[stage], side, shift_of(number, side), version)
            refined = windows_of(clustered, side)
            for index, tokens in z.items():
                z[index] = reference.reconstruct_tokens(
                    refined[index][None],
                    tokens=tokens[None],
                    clusters=s[index][None],
                    neighbors=plan.neighbors,
                    temperature=plan.temperature,
                    token_grid=(window, window),
                )[0]
            x = map_of(z, window, x.shape[:2])
        for number in range(end, depth):
            x = block(x, blocks[number], heads[stage], window, shift_of(number, window), version)
        outputs.append(norm(x, below(parameters, f"norms.{stage}.")))
        if stage < len(depths) - 1:
            x = merged(x, below(parameters, f"stages.{stage}.merging."), version)
        first += depth
    return outputs


def shift_of(number: int, window: int) -> int:
    """Every second block of a stage is shifted."""
    return window // 2 if number % 2 == 1 else 0


def clusters_of(windows: dict[tuple[int, int], Array], window: int, plan: Hourglass) -> dict:
    return {
        index: reference.cluster_tokens(
            tokens[None],
            token_grid=(window, window),
            cluster_grid=plan.clusters,
            window=plan.window,
            iterations=plan.iterations,
            temperature=plan.temperature,
            representative=plan.representative,
        )[0]
        for index, tokens in windows.items()
    }


def windows_of(x: Array, window: int) -> dict[tuple[int, int], Array]:
    """The tokens [window^2, C] of every window of a map, zeros beyond its border."""
    H, W, C = x.shape
    found = {}
    for row in range(math.ceil(H / window)):
        for column in range(math.ceil(W / window)):
            tokens = []
            for y in range(row * window, (row + 1) * window):
                for column_x in range(column * window, (column + 1) * window):
                    tokens.append(x[y, column_x] if y < H and column_x < W else np.zeros(C))
            found[row, column] = np.stack(tokens)
    return found


def map_of(windows: dict[tuple[int, int], Array], window: int, size: Sequence[int]) -> Array:
    """The inverse of `windows_of`."""
    H, W = size
    x = np.zeros((H, W, windows[0, 0].shape[1]))
    for y in range(H):
        for column in range(W):
            x[y, column] = windows[y // window, column // window][y % window * window + column % window]
    return x


def block(x: Array, parameters: Parameters, heads: int, window: int, shift: int, version: int) -> Array:
    norm1, norm2 = below(parameters, "norm1."), below(parameters, "norm2.")
    attend, mlp = below(parameters, "attention."), below(parameters, "mlp.")
    if version == 1:
        x = x + attention(norm(x, norm1), attend, heads, window, shift, version)
        return x + perceptron(norm(x, norm2), mlp)
    x = x + norm(attention(x, attend, heads, window, shift, version), norm1)
    return x + norm(perceptron(x, mlp), norm2)


def attention(x: Array, parameters: Parameters, heads: int, window: int, shift: int, version: int) -> Array:
    """The map is filled up with zeros; what stands at (y, x) of the rolled map is its (y + shift, x + shift)."""
    H, W, C = x.shape
    rows, columns = (math.ceil(length / window) * window for length in (H, W))
    padded = np.zeros((rows, columns, C))
    padded[:H, :W] = x
    qkv = linear(padded, below(parameters, "qkv.")).reshape(rows, columns, 3, heads, C // heads)
    bias = position_bias(below(parameters, "position_bias."), window, version)
    mixed = np.zeros((rows, columns, heads, C // heads))
    for top in range(0, rows, window):
        for left in range(0, columns, window):
            places = [(top + i, left + j) for i in range(window) for j in range(window)]
            for head in range(heads):
                for p in places:
                    logits = []
                    for q in places:
                        query = qkv[origin(p, shift, rows, columns)][0, head]
                        key = qkv[origin(q, shift, rows, columns)][1, head]
                        if version == 1:
                            logit = query @ key / math.sqrt(C // heads)
                        else:
                            scale = math.exp(min(parameters["logit_scale"][head], math.log(100)))
                            logit = scale * unit(query) @ unit(key)
                        logit += bias[p[0] - q[0] + window - 1, p[1] - q[1] + window - 1, head]
                        if region(p, window, shift, rows, columns) != region(q, window, shift, rows, columns):
                            logit -= 100
                        logits.append(logit)
                    weights = reference.softmax(logits)
                    for weight, q in zip(weights, places, strict=True):
                        value = qkv[origin(q, shift, rows, columns)][2, head]
                        mixed[origin(p, shift, rows, columns)][head] += weight * value
    return linear(mixed.reshape(rows, columns, C), below(parameters, "projection."))[:H, :W]


def origin(place: tuple[int, int], shift: int, rows: int, columns: int) -> tuple[int, int]:
    return (place[0] + shift) % rows, (place[1] + shift) % columns


def region(place: tuple[int, int], window: int, shift: int, rows: int, columns: int) -> tuple[int, int]:
    """Of three along each axis: all but the last window, its part before the shift, and what was rolled there."""

    def of_axis(position: int, length: int) -> int:
        if shift == 0 or position < length - window:
            return 0
        return 1 if position < length - shift else 2

    return of_axis(place[0], rows), of_axis(place[1], columns)


def position_bias(parameters: Parameters, window: int, version: int) -> Array:
    """[2 w - 1, 2 w - 1, heads] for windows of side w; the unit of V2's coordinates is the stored window of 3."""
    side = 2 * window - 1
    if version == 1:
        stored = parameters["table"]
        source = stored.shape[:2]
        flat = stored.reshape(1, source[0] * source[1], -1)
        resized = reference.upsample_tokens(flat, cluster_grid=source, token_grid=(side, side))
        return resized.reshape(side, side, -1)
    found = np.zeros((side, side, parameters["contract.kernel"].shape[1]))
    for i in range(side):
        for j in range(side):
            offsets = [8 * (place - window + 1) / (PRETRAINED - 1) for place in (i, j)]
            logs = [math.copysign(math.log2(abs(each) + 1) / 3, each) for each in offsets]
            hidden = np.maximum(0, linear(np.array(logs), below(parameters, "expand.")))
            found[i, j] = 16 / (1 + np.exp(-hidden @ parameters["contract.kernel"]))
    return found


PRETRAINED = 3
"""The side of the windows in whose units V2's coordinates are."""


def patches(image: Array, parameters: Parameters, side: int) -> Array:
    """Patches of an image that is filled up with zeros, projected and normalised."""
    H, W = (math.ceil(length / side) for length in image.shape[:2])
    padded = np.zeros((H * side, W * side, 3))
    padded[: image.shape[0], : image.shape[1]] = image
    x = [[padded[y * side : (y + 1) * side, c * side : (c + 1) * side].ravel() for c in range(W)] for y in range(H)]
    x = linear(np.array(x), below(parameters, "patch_embedding.projection."))
    return norm(x, below(parameters, "patch_norm."))


def merged(x: Array, parameters: Parameters, version: int) -> Array:
    """2 x 2 tokens, column by column, as one."""
    H, W, C = x.shape
    padded = np.zeros((H + H % 2, W + W % 2, C))
    padded[:H, :W] = x
    corners = [padded[i::2, j::2] for j in (0, 1) for i in (0, 1)]
    together = np.concatenate(corners, axis=-1)
    if version == 1:
        together = norm(together, below(parameters, "norm."))
    reduced = together @ parameters["reduction.kernel"]
    return norm(reduced, below(parameters, "norm.")) if version == 2 else reduced


def perceptron(x: Array, parameters: Parameters) -> Array:
    hidden = linear(x, below(parameters, "expand."))
    gelu = np.vectorize(lambda value: value * (1 + math.erf(value / math.sqrt(2))) / 2)
    return linear(gelu(hidden), below(parameters, "contract."))


def norm(x: Array, parameters: Parameters) -> Array:
    mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-5) * parameters["scale"] + parameters["bias"]


def linear(x: Array, parameters: Parameters) -> Array:
    return x @ parameters["kernel"] + parameters["bias"]


def unit(x: Array) -> Array:
    return x / max(math.sqrt(x @ x), 1e-12)


def below(parameters: Parameters, prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): each for name, each in parameters.items() if name.startswith(prefix)}
