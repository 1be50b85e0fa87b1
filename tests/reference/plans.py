"""Vision transformers under every kind of plan, in float64, for one image."""

from collections.abc import Sequence
from math import ceil

import numpy as np

from tests.reference import hourglass, merging
from tests.reference.rotary import Rotary
from tests.reference.vit import (
    Array,
    Parameters,
    Turn,
    attend,
    attention,
    feed_forward,
    gelu,
    layer_norm,
    linear,
    part,
    project,
    run_block,
)

Result = tuple[Array, Array]
"""Special tokens, and tokens of the full grid, before the final norm."""


def places_of(rotary: Rotary | None) -> Array | None:
    """Where the tokens of an image are before any plan, if their positions are rotary."""
    return None if rotary is None else rotary.places()


def turn_of(rotary: Rotary | None, places: Array | None) -> Turn | None:
    """How queries and keys of tokens at these places are turned."""
    return None if rotary is None else rotary.turn(places)


def blocks_of(vit: Parameters) -> list[dict[str, Array]]:
    depth = len({name.split(".")[1] for name in vit if name.startswith("blocks.")})
    return [part(vit, f"blocks.{index}") for index in range(depth)]


def token_merging(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    left: Sequence[int],
    *,
    proportional: bool = True,
    rotary: Rotary | None = None,
) -> Result:
    """`left` is the number of tokens after every block."""
    steps, sizes, full, count = [], np.ones(len(tokens)), len(tokens), len(special)
    places = places_of(rotary)
    for block, goal in zip(blocks_of(vit), left, strict=True):
        x = np.concatenate([special, tokens])
        query, key, value = project(block, x, heads, turn_of(rotary, places))
        weights = attention(query, key, np.concatenate([np.ones(count), sizes]) if proportional else None)
        x = attend(block, x, weights @ value)
        special, tokens = x[:count], x[count:]
        if goal < len(tokens):
            metric = key.mean(axis=0)[count:]
            groups = merging.match(metric, len(tokens) - goal, offset=count, in_order=count > 0)
            places = None if places is None else merging.merge(places, sizes, groups)[0]
            tokens, sizes = merging.merge(tokens, sizes, groups)
            steps.append(groups)
        x = feed_forward(block, np.concatenate([special, tokens]))
        special, tokens = x[:count], x[count:]
    return special, merging.unmerge(tokens, steps, full)


def staged_merging(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    *,
    keep: float,
    stages: Sequence[int],
    value: str,
    columns: int,
    rotary: Rotary | None = None,
) -> Result:
    steps, sizes, full, count = [], np.ones(len(tokens)), len(tokens), len(special)
    places = places_of(rotary)
    for index, block in enumerate(blocks_of(vit)):
        if index in stages:
            goal = round(full * keep ** (stages.index(index) + 1))
            _, key, _ = project(block, tokens, heads)
            metric = key.mean(axis=0) if value == "mean" else np.concatenate(list(key), axis=1)
            groups = merging.match(metric, len(tokens) - goal, columns=None if steps else columns)
            places = None if places is None else merging.merge(places, sizes, groups)[0]
            tokens, sizes = merging.merge(tokens, sizes, groups, value)
            steps.append(groups)
        counted = np.concatenate([np.ones(count), sizes])
        x = run_block(block, np.concatenate([special, tokens]), heads, counted, turn_of(rotary, places))
        special, tokens = x[:count], x[count:]
    return special, merging.unmerge(tokens, steps, full)


def evit(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    *,
    keep: float,
    stages: Sequence[int],
    fuse: bool,
    restore: str,
    neighbors: int,
    temperature: float,
    rotary: Rotary | None = None,
) -> Result:
    dropped_at, count, places = [], len(special), places_of(rotary)
    for index, block in enumerate(blocks_of(vit)):
        x = np.concatenate([special, tokens])
        query, key, value = project(block, x, heads, turn_of(rotary, places))
        weights = attention(query, key)
        x = attend(block, x, weights @ value)
        special, tokens = x[:count], x[count:]
        if index in stages:
            scores = weights[:, 0, count:].mean(axis=0)
            kept, dropped = highest(scores, ceil(keep * len(tokens)))
            dropped_at.append((tokens, kept, dropped))
            fused = [scores[dropped] @ tokens[dropped]] if fuse else []
            tokens = np.stack([*tokens[kept], *fused])
            if places is not None:
                middle = scores[dropped] @ places[dropped] / scores[dropped].sum()
                places = np.stack([*places[kept], *([middle] if fuse else [])])
        x = feed_forward(block, np.concatenate([special, tokens]))
        special, tokens = x[:count], x[count:]
    return special, bring_back(tokens, dropped_at, restore, neighbors, temperature)


def dynamic_vit(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    *,
    keep: float,
    stages: Sequence[int],
    neighbors: int,
    temperature: float,
) -> Result:
    dropped_at, full, count = [], len(tokens), len(special)
    for index, block in enumerate(blocks_of(vit)):
        if index in stages:
            scores = predict(part(block, "predictor"), tokens)
            kept, dropped = highest(scores, int(full * keep ** (len(dropped_at) + 1)))
            dropped_at.append((tokens, kept, dropped))
            tokens = tokens[kept]
        x = run_block(block, np.concatenate([special, tokens]), heads)
        special, tokens = x[:count], x[count:]
    return special, bring_back(tokens, dropped_at, "reconstruction", neighbors, temperature)


def predict(module: Parameters, tokens: Array) -> Array:
    """The log-probability that a token is kept."""
    x = gelu(linear(part(module, "embedding"), layer_norm(part(module, "norm"), tokens, epsilon=1e-5)))
    half = x.shape[1] // 2
    x = np.concatenate([x[:, :half], np.tile(x[:, half:].mean(axis=0), (len(x), 1))], axis=1)
    for name in ("hidden1", "hidden2"):
        x = gelu(linear(part(module, name), x))
    logits = linear(part(module, "classifier"), x)
    return logits[:, 0] - np.log(np.exp(logits).sum(axis=1))


def highest(scores: Array, count: int) -> tuple[list[int], list[int]]:
    """The places of the highest scores, and all others, both in order."""
    order = np.argsort(-scores)
    return sorted(order[:count]), sorted(order[count:])


def bring_back(
    tokens: Array,
    dropped_at: list[tuple[Array, list[int], list[int]]],
    restore: str,
    neighbors: int,
    temperature: float,
) -> Array:
    """The full grid from the tokens that are left, the last dropped ones first."""
    for before, kept, dropped in reversed(dropped_at):
        tokens = tokens[: len(kept)]
        if restore == "reuse":
            back = before[dropped]
        else:
            [back] = hourglass.reconstruct_tokens(
                tokens[None],
                tokens=before[None, dropped],
                clusters=before[None, kept],
                neighbors=neighbors,
                temperature=temperature,
            )
        restored = np.empty((len(before), tokens.shape[1]))
        restored[kept], restored[dropped] = tokens, back
        tokens = restored
    return tokens


def act(vit: Parameters, special: Array, tokens: Array, heads: int, groups) -> Result:
    """`groups` says for the queries of one head, [N, D], which belong together: [N]."""
    x, count = np.concatenate([special, tokens]), len(special)
    for block in blocks_of(vit):
        query, key, value = project(block, x, heads)
        shared = np.empty_like(query)
        for head in range(heads):
            numbers = groups(query[head])
            for number in set(numbers):
                members = [i for i in range(len(x)) if numbers[i] == number]
                shared[head, members] = query[head, members].mean(axis=0)
        x = feed_forward(block, attend(block, x, attention(shared, key) @ value))
    return x[:count], x[count:]


def hash_groups(query: Array, directions: Array, bias: Array, bucket: float, prototypes: int) -> list[int]:
    """The groups of one head's queries [N, D]: equal codes, in the order of the codes; too many share groups."""
    projected = directions @ (query / np.sqrt(query.shape[1])).T
    values = np.floor((projected + bias) / bucket).astype(int)
    values -= values.min(axis=1, keepdims=True)
    codes = [sum(int(value) << 2 * i for i, value in enumerate(column)) % 2**64 for column in values.T]
    number = {code: i for i, code in enumerate(sorted(set(codes)))}
    groups = [number[code] for code in codes]
    return [i * prototypes // len(number) for i in groups] if len(number) > prototypes else groups


def pooling(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    grid: hourglass.Grid,
    *,
    alpha: int,
    clusters,
    rotary: Rotary | None = None,
) -> Result:
    count, places = len(special), places_of(rotary)
    for index, block in enumerate(blocks_of(vit)):
        if index == alpha:
            tokens = hourglass.adaptive_average(tokens, grid, clusters)
            places = None if places is None else hourglass.adaptive_average(places, grid, clusters)
        x = run_block(block, np.concatenate([special, tokens]), heads, turn=turn_of(rotary, places))
        special, tokens = x[:count], x[count:]
    return special, hourglass.upsample_tokens(tokens[None], cluster_grid=clusters, token_grid=grid)[0]


def clustering(
    vit: Parameters,
    special: Array,
    tokens: Array,
    heads: int,
    grid: hourglass.Grid,
    *,
    alpha: int,
    clusters: hourglass.Grid,
    rotary: Rotary,
    neighbors: int,
    **options,
) -> Result:
    """The paper's hourglass on a transformer with rotary positions; `options` are those of the clustering."""
    count, places, z, s = len(special), rotary.places(), tokens, tokens
    for index, block in enumerate(blocks_of(vit)):
        if index == alpha:
            z = tokens
            [s] = hourglass.cluster_tokens(z[None], token_grid=grid, cluster_grid=clusters, **options)
            tokens, places = s, hourglass.adaptive_average(places, grid, clusters)
        x = run_block(block, np.concatenate([special, tokens]), heads, turn=rotary.turn(places))
        special, tokens = x[:count], x[count:]
    [restored] = hourglass.reconstruct_tokens(
        tokens[None], tokens=z[None], clusters=s[None], neighbors=neighbors, temperature=options["temperature"]
    )
    return special, restored
