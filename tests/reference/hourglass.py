"""Token clustering, token reconstruction (arXiv 2210.01035, equations 2 to 4) and the baselines, in float64.

One token, one cluster at a time, in the paper's symbols: z_p are the tokens of one image, s_i its clusters,
Q_pi the weight of cluster i for token p, tau the temperature. Arguments are those of the library, unchecked.
"""

import numpy as np
from numpy.typing import ArrayLike

Grid = tuple[int, int]
Array = np.ndarray
Temperature = float | str | ArrayLike


def cluster_tokens(
    tokens: ArrayLike,
    *,
    token_grid: Grid,
    cluster_grid: Grid,
    window: int = 5,
    iterations: int = 5,
    temperature: Temperature = 50.0,
    representative: str = "mean",
) -> Array:
    """Equations 2 and 3 for every image: [B, H*W, C] to [B, h*w, C]."""
    clusters = []
    for z, tau in zip(float64(tokens), temperatures(temperature, tokens, token_grid), strict=True):
        s = adaptive_average(z, token_grid, cluster_grid)
        candidates = candidates_of_tokens(token_grid, cluster_grid, window)
        for _ in range(iterations):
            s = clustering_step(z, s, candidates, tau)
        if representative == "medoid":
            s = medoids(z, s, candidates)
        clusters.append(s)
    return np.stack(clusters)


def clustering_step(z: Array, s: Array, candidates: list[list[int]], tau: float) -> Array:
    """One of the kappa iterations."""
    Q = np.zeros((len(z), len(s)))
    for p in range(len(z)):
        Q[p, candidates[p]] = softmax([-squared_distance(z[p], s[i]) / tau for i in candidates[p]])
    updated = np.zeros_like(s)
    for i in range(len(s)):
        for p in range(len(z)):
            updated[i] += Q[p, i] * z[p]
        updated[i] /= max(sum(Q[:, i]), 1e-16)
    return updated


def medoids(z: Array, s: Array, candidates: list[list[int]]) -> Array:
    """For every cluster the nearest token among those whose candidate it is, the first of equals."""
    nearest = s.copy()
    for i in range(len(s)):
        smallest = np.inf
        for p in range(len(z)):
            if i in candidates[p] and squared_distance(z[p], s[i]) < smallest:
                smallest = squared_distance(z[p], s[i])
                nearest[i] = z[p]
    return nearest


def candidates_of_tokens(token_grid: Grid, cluster_grid: Grid, window: int) -> list[list[int]]:
    """The clusters in the window around every token's home cell, without those beyond the border."""
    (H, W), (h, w) = token_grid, cluster_grid
    radius = (window - 1) // 2
    candidates = []
    for y in range(H):
        for x in range(W):
            home_row, home_column = home_cell(y, H, h), home_cell(x, W, w)
            candidates.append(
                [
                    row * w + column
                    for row in range(h)
                    for column in range(w)
                    if abs(row - home_row) <= radius and abs(column - home_column) <= radius
                ]
            )
    return candidates


def home_cell(position: int, size: int, cells: int) -> int:
    """PyTorch's nearest interpolation: the ratio and the product are rounded to float32."""
    return min(int(np.floor(np.float32(position) * np.float32(cells / size))), cells - 1)


def reconstruct_tokens(
    refined: ArrayLike,
    *,
    tokens: ArrayLike,
    clusters: ArrayLike,
    neighbors: int = 20,
    temperature: Temperature = 50.0,
    normalize: str = "sum",
    token_grid: Grid | None = None,
) -> Array:
    """Equation 4 for every image: clusters after the beta blocks [B, h*w, Cr] to tokens [B, H*W, Cr]."""
    images = zip(
        float64(refined),
        float64(tokens),
        float64(clusters),
        temperatures(temperature, tokens, token_grid),
        strict=True,
    )
    reconstructed = []
    for s_refined, z, s, tau in images:
        z_refined = np.zeros((len(z), s_refined.shape[1]))
        for p in range(len(z)):
            distances = [squared_distance(z[p], s_i) for s_i in s]
            kth = sorted(distances)[min(neighbors, len(s)) - 1]
            nearest = [i for i in range(len(s)) if distances[i] <= kth]
            weights = softmax([-distances[i] / tau for i in nearest])
            if normalize == "l2":
                weights = weights / np.sqrt(sum(weights**2))
            for weight, i in zip(weights, nearest, strict=True):
                z_refined[p] += weight * s_refined[i]
        reconstructed.append(z_refined)
    return np.stack(reconstructed)


def auto_temperature(tokens: ArrayLike, token_grid: Grid) -> Array:
    """0.05 of the mean squared distance between adjacent tokens, for every image: [B]."""
    H, W = token_grid
    found = []
    for z in float64(tokens):
        distances = []
        for y in range(H):
            for x in range(W):
                if x + 1 < W:
                    distances.append(squared_distance(z[y * W + x], z[y * W + x + 1]))
                if y + 1 < H:
                    distances.append(squared_distance(z[y * W + x], z[(y + 1) * W + x]))
        found.append(0.05 * np.mean(distances) if distances else 0.0)
    return np.array(found)


def pool_tokens(tokens: ArrayLike, *, token_grid: Grid, cluster_grid: Grid) -> Array:
    """Adaptive average pooling of every image."""
    return np.stack([adaptive_average(z, token_grid, cluster_grid) for z in float64(tokens)])


def adaptive_average(z: Array, token_grid: Grid, cluster_grid: Grid) -> Array:
    """Cell i of h covers the rows floor(i * H / h) to ceil((i + 1) * H / h) - 1, and so for columns."""
    (H, W), (h, w) = token_grid, cluster_grid
    s = []
    for i in range(h):
        for j in range(w):
            rows = range(i * H // h, ((i + 1) * H + h - 1) // h)
            columns = range(j * W // w, ((j + 1) * W + w - 1) // w)
            s.append(np.mean([z[y * W + x] for y in rows for x in columns], axis=0))
    return np.stack(s)


def upsample_tokens(clusters: ArrayLike, *, cluster_grid: Grid, token_grid: Grid) -> Array:
    """Bilinear interpolation of every image: half-pixel centres, clamped at the border, no antialiasing."""
    (h, w), (H, W) = cluster_grid, token_grid
    upsampled = []
    for s in float64(clusters):
        for y in range(H):
            for x in range(W):
                row, next_row, down = between(y, H, h)
                column, next_column, right = between(x, W, w)
                above = (1 - right) * s[row * w + column] + right * s[row * w + next_column]
                below = (1 - right) * s[next_row * w + column] + right * s[next_row * w + next_column]
                upsampled.append((1 - down) * above + down * below)
    return np.stack(upsampled).reshape(-1, H * W, np.shape(clusters)[2])


def between(position: int, size: int, cells: int) -> tuple[int, int, float]:
    """The two cells around the centre of a position, and how far it is on the way to the second."""
    centre = min(max((position + 0.5) * cells / size - 0.5, 0.0), cells - 1.0)
    first = int(centre)
    return first, min(first + 1, cells - 1), centre - first


def unpool_tokens(refined: ArrayLike, *, tokens: ArrayLike, clusters: ArrayLike) -> Array:
    """Every token takes the refined cluster of the nearest cluster, the first of equals."""
    images = zip(float64(refined), float64(tokens), float64(clusters), strict=True)
    return np.stack(
        [
            np.stack([s_refined[np.argmin([squared_distance(z_p, s_i) for s_i in s])] for z_p in z])
            for s_refined, z, s in images
        ]
    )


def temperatures(temperature: Temperature, tokens: ArrayLike, token_grid: Grid | None) -> list[float]:
    """tau of every image; "auto" finds 0 in a constant one, where every tau gives the same."""
    if isinstance(temperature, str):
        temperature = auto_temperature(tokens, token_grid)
    every = np.broadcast_to(np.asarray(temperature, np.float64), len(np.asarray(tokens)))
    return [float(tau) if tau > 0 else 1.0 for tau in every]


def softmax(logits: list[float]) -> Array:
    weights = np.array([np.exp(logit - max(logits)) for logit in logits])
    return weights / sum(weights)


def squared_distance(a: Array, b: Array) -> float:
    return float(np.sum((a - b) ** 2))


def float64(array: ArrayLike) -> Array:
    return np.asarray(array, np.float64)
