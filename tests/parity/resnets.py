"""ResNets of transformers with random weights, and their weights under the names of others."""

import re

import torch
import transformers

from tests.parity.vits import randomize

Tensors = dict[str, torch.Tensor]


def config(**fields: object) -> transformers.ResNetConfig:
    """A small one, of four stages."""
    stages = ["stage1", "stage2", "stage3", "stage4"]
    return transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=(16, 32, 64, 128), depths=(2, 1, 2, 1), out_features=stages, **fields
    )


def randomize_norms(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Gives every batch norm means and variances as after training, and its scale so that maps stay of one size."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            noise = torch.rand(3, module.num_features, generator=generator)
            module.running_mean.copy_(noise[0] - 0.5)
            module.running_var.copy_(0.3 + noise[1])
            module.weight.data.copy_(0.4 + 0.4 * noise[2])
    return model


def build(*, stride_first: bool = False) -> torch.nn.Module:
    """Its parameters are random, those of norms too."""
    model = transformers.AutoBackbone.from_config(config(downsample_in_bottleneck=stride_first))
    return randomize_norms(randomize(model, 0))


def detectron2_names(tensors: Tensors, prefix: str = "") -> Tensors:
    """transformers' weights as detectron2 has them."""
    return _renamed(
        tensors,
        (r"^embedder\.embedder\.convolution", f"{prefix}stem.conv1"),
        (r"^embedder\.embedder\.normalization", f"{prefix}stem.conv1.norm"),
        *[(rf"^encoder\.stages\.{stage}\.layers", f"{prefix}res{stage + 2}") for stage in range(4)],
        *[(rf"layer\.{place}\.convolution", f"conv{place + 1}") for place in range(3)],
        *[(rf"layer\.{place}\.normalization", f"conv{place + 1}.norm") for place in range(3)],
        (r"shortcut\.convolution", "shortcut"),
        (r"shortcut\.normalization", "shortcut.norm"),
    )


def torchvision_names(tensors: Tensors) -> Tensors:
    """transformers' weights as torchvision and mmdetection have them."""
    return _renamed(
        tensors,
        (r"^embedder\.embedder\.convolution", "conv1"),
        (r"^embedder\.embedder\.normalization", "bn1"),
        *[(rf"^encoder\.stages\.{stage}\.layers", f"layer{stage + 1}") for stage in range(4)],
        *[(rf"layer\.{place}\.convolution", f"conv{place + 1}") for place in range(3)],
        *[(rf"layer\.{place}\.normalization", f"bn{place + 1}") for place in range(3)],
        (r"shortcut\.convolution", "downsample.0"),
        (r"shortcut\.normalization", "downsample.1"),
    )


def _renamed(tensors: Tensors, *names: tuple[str, str]) -> Tensors:
    found = {}
    for name, tensor in tensors.items():
        for theirs, other in names:
            name = re.sub(theirs, other, name)
        found[name] = tensor
    return found
