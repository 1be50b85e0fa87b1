"""EoMTs of transformers with random weights, their outputs under an hourglass, and their official names."""

import re
from types import SimpleNamespace

import numpy as np
import torch
import transformers

import hourglass_jax as hj
from tests.parity.hourglasses import torch_clusters, torch_tokens
from tests.parity.vits import channels_first, randomize

PATCH, WIDTH, HEADS, DEPTH, BLOCKS, QUERIES, CLASSES, REGISTERS = 16, 32, 2, 4, 2, 7, 5, 4
Grid = tuple[int, int]


def build(grid: Grid = (4, 4), *, masked: bool = False, gated: bool = False) -> torch.nn.Module:
    """A small one whose positions are those of a grid; every parameter is random.

    Their config has square images only: of another grid the number of positions counts.
    """
    side = round((grid[0] * grid[1]) ** 0.5)
    assert side * side == grid[0] * grid[1]
    config = transformers.EomtConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=side * PATCH,
        patch_size=PATCH,
        mlp_ratio=2,
        num_blocks=BLOCKS,
        num_queries=QUERIES,
        num_register_tokens=REGISTERS,
        use_swiglu_ffn=gated,
        num_labels=CLASSES,
    )
    model = randomize(transformers.EomtForUniversalSegmentation(config))
    model.attn_mask_probs.fill_(float(masked))
    model.grid_size = grid
    return model


@torch.no_grad()
def outputs(model: torch.nn.Module, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Class logits [B, Q, classes + 1] and mask logits [B, Q, H, W]."""
    found = model(channels_first(images))
    return found.class_queries_logits.numpy(), found.masks_queries_logits.numpy()


@torch.no_grad()
def expedited(model: torch.nn.Module, images: np.ndarray, plan: hj.Hourglass) -> tuple[np.ndarray, np.ndarray]:
    """The same under an hourglass to the last block; queries join as transformers has them, in front."""
    count, settings = model.grid_size[0] * model.grid_size[1], {"multiplier": 1 / plan.temperature}
    x = model.embeddings(channels_first(images))
    z = s = None
    for index, layer in enumerate(model.layers):
        if index == plan.alpha:
            before, z = x[:, :-count], x[:, -count:]
            options = {"window": plan.window, "iterations": plan.iterations, **settings}
            s = torch_clusters(z, model.grid_size, plan.clusters, **options)
            x = torch.cat([before, s], dim=1)
        if index == DEPTH - BLOCKS:
            x = torch.cat([model.query.weight.expand(len(x), -1, -1), x], dim=1)
        x = layer(x, None)
    first = QUERIES + 1 + REGISTERS
    whole = torch_tokens(x[:, first:], z, s, neighbors=plan.neighbors, norm=1, **settings)
    masks, classes = model.predict(model.layernorm(torch.cat([x[:, :first], whole], dim=1)))
    return classes.numpy(), masks.numpy()


NAMES = (
    (r"^embeddings\.patch_embeddings\.projection", "encoder.backbone.patch_embed.proj"),
    (r"^embeddings\.position_embeddings\.weight", "encoder.backbone.pos_embed"),
    (r"^embeddings\.register_tokens", "encoder.backbone.reg_token"),
    (r"^embeddings\.", "encoder.backbone."),
    (r"^layernorm", "encoder.backbone.norm"),
    (r"^layers\.", "encoder.backbone.blocks."),
    (r"attention\.out_proj", "attn.proj"),
    (r"layer_scale(\d)\.lambda1", r"ls\1.gamma"),
    (r"^query", "q"),
    (r"^class_predictor", "class_head"),
    (r"^upscale_block\.block", "upscale"),
    (r"layernorm2d", "norm"),
    (r"^mask_head\.fc1", "mask_head.0"),
    (r"^mask_head\.fc2", "mask_head.2"),
    (r"^mask_head\.fc3", "mask_head.4"),
)


def official_names(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights as the authors' training saves them."""
    found = {
        "network.encoder.pixel_mean": torch.tensor([0.485, 0.456, 0.406]).reshape(1, 3, 1, 1),
        "network.encoder.pixel_std": torch.tensor([0.229, 0.224, 0.225]).reshape(1, 3, 1, 1),
    }
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in model.state_dict().items():
        if name.startswith("criterion."):
            found[name] = tensor
            continue
        for theirs, official in NAMES:
            name = re.sub(theirs, official, name)
        split = re.fullmatch(r"(.*)attention\.([qkv])_proj\.(weight|bias)", name)
        if split:
            parts.setdefault(f"network.{split[1]}attn.qkv.{split[3]}", {})[split[2]] = tensor
        else:
            found[f"network.{name}"] = tensor[None] if name.endswith("pos_embed") else tensor
    return found | {name: torch.cat([three[each] for each in "qkv"]) for name, three in parts.items()}


def as_outputs(
    classes: np.ndarray, masks: np.ndarray, offsets: list[torch.Tensor] | None = None
) -> SimpleNamespace:
    """Logits as transformers' image processor takes them."""
    return SimpleNamespace(
        class_queries_logits=torch.from_numpy(classes),
        masks_queries_logits=torch.from_numpy(masks),
        patch_offsets=offsets,
    )
