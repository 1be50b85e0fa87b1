"""The hourglass's two layers composed from PyTorch's own operators, as the official repositories compute them.

Source: Expedit-Segmenter, mmseg/ops/cluster.py and mmseg/ops/reconstruction.py.
There the temperature is a multiplier. The hard labels that they compute besides, and do not use, are left out.
"""

import torch
from torch.nn import functional

Grid = tuple[int, int]
FAR = 1e16
"""Added to the squared distance of clusters that a token may not join."""


def torch_clusters(
    z: torch.Tensor, token_grid: Grid, cluster_grid: Grid, *, window: int, iterations: int, multiplier: float
) -> torch.Tensor:
    """Equations 2 and 3 with a dense mask of candidates: [B, H*W, C] to [B, h*w, C]."""
    image = z.transpose(1, 2).unflatten(2, token_grid)
    s = functional.adaptive_avg_pool2d(image, cluster_grid).flatten(2).transpose(1, 2)

    numbers = torch.arange(s.shape[1])
    numbers_as_image = numbers.reshape(1, 1, *cluster_grid).double()
    home = functional.interpolate(numbers_as_image, size=token_grid, mode="nearest").long().flatten()
    columns = cluster_grid[1]
    rows_apart = (home // columns - numbers[:, None] // columns).abs()
    columns_apart = (home % columns - numbers[:, None] % columns).abs()
    penalty = FAR * (torch.maximum(rows_apart, columns_apart) > window // 2)

    for _ in range(iterations):
        weights = (-multiplier * (squared_distances(s, z) + penalty)).softmax(dim=1)
        s = weights @ z / weights.sum(dim=2, keepdim=True).clamp(min=1e-16)
    return s


def torch_tokens(
    refined: torch.Tensor, z: torch.Tensor, s: torch.Tensor, *, neighbors: int, multiplier: float, norm: int
) -> torch.Tensor:
    """Equation 4 with weights of unit `norm` (2 there, 1 in the paper): [B, h*w, C] to [B, H*W, C]."""
    weights = (-multiplier * squared_distances(z, s)).exp()
    kth = torch.topk(weights, min(neighbors, s.shape[1]), dim=2).values[..., -1:]
    weights = functional.normalize(weights * (weights >= kth), p=norm, dim=2, eps=0)
    return weights @ refined


def squared_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """[B, M, C] and [B, N, C] to [B, M, N], by way of the products: small ones lose digits to large norms."""
    squares = (a * a).sum(dim=2)[:, :, None] + (b * b).sum(dim=2)[:, None]
    return squares - 2 * a @ b.transpose(1, 2)
