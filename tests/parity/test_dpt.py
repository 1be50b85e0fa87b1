"""DPT and Depth Anything V2 by way of their files, the official ones and those of transformers, against PyTorch."""

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from torch.nn import functional

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from tests.parity.dpts import Grid, Reduce, TorchDepthAnything, TorchDPT, timm_vit
from tests.parity.test_convert import original, originally_resized
from tests.parity.vits import channels_first, random_images, randomize
from tests.reference import hourglass as reference

timm = pytest.importorskip("timm")
transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 1e-4
"""On outputs of order one; another epsilon of the norms or another rule of resizing is farther away."""
SIDE = 64
SMALL = {"embed_dim": 64, "depth": 12, "num_heads": 1}
STEM = {"layers": (1, 2, 1), "channels": (128, 128, 256), "stem_chs": 32}
HOOKS, HYBRID_HOOKS = (2, 5, 8, 11), (8, 11)
WIDTHS, HYBRID_WIDTHS, FUSION_WIDTH = (8, 16, 24, 32), (128, 128, 24, 32), 16
SIZES = [(SIDE, SIDE), (64, 160)]
PLAN = hj.Hourglass(3, (3, 4), window=3, temperature=20.0, neighbors=4)
"""For a grid of 4 x 10 tokens, all three hooks of which three of four are inside the hourglass."""
INVERSIONS = {"dpt-kitti": (0.00006016, 0.00579), "dpt-nyu": (0.000305, 0.1378)}
"""Scale and shift of run_monodepth.py."""

Pair = Callable[..., tuple[torch.nn.Module, nnx.Module]]


@nnx.jit
def run(model: nnx.Module, images: jax.Array) -> jax.Array:
    return model(images)


def torch_run(model: torch.nn.Module, images: np.ndarray, **hourglass: object) -> np.ndarray:
    """Computed in float64; logits with their classes last."""
    with torch.inference_mode():
        found = deepcopy(model).double()(channels_first(images).double(), **hourglass)
    return (found.permute(0, 2, 3, 1) if found.ndim == 4 else found).numpy()


def numpy_hourglass(plan: hj.Hourglass) -> Reduce:
    """The layers of the NumPy reference, for PyTorch's blocks."""

    def reduce(z: torch.Tensor, grid: Grid):
        s = reference.cluster_tokens(
            z.numpy(),
            token_grid=grid,
            cluster_grid=plan.clusters,
            window=plan.window,
            iterations=plan.iterations,
            temperature=plan.temperature,
        )

        def restore(refined: torch.Tensor) -> torch.Tensor:
            restored = reference.reconstruct_tokens(
                refined.numpy(),
                tokens=z.numpy(),
                clusters=s,
                neighbors=plan.neighbors,
                temperature=plan.temperature,
            )
            return torch.from_numpy(restored)

        return torch.from_numpy(s), restore

    return reduce


def randomized(model: torch.nn.Module, last: torch.nn.Conv2d, side: int, *, scale: float = 1.0) -> torch.nn.Module:
    """Weights that hide nothing; a fifth of what a depth model's last convolution returns is negative.

    Args:
        model: for images of `side` pixels.
        last: its last convolution.
        side: of an image.
        scale: of the depth.
    """
    randomize(model)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=generator))
            if name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
        if last.out_channels == 1:
            last.weight.copy_(scale * last.weight.abs())
            seen = []
            hook = last.register_forward_hook(lambda module, inputs, output: seen.append(output - module.bias))
            model(channels_first(random_images(side, side)))
            hook.remove()
            last.bias.copy_(-seen[0].quantile(0.2))
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dpt")


@pytest.fixture(scope="module")
def pair(folder: Path) -> Pair:
    """An official DPT of PyTorch and ours, by way of its file."""

    @cache
    def build(family: str, *, hybrid: bool = False) -> tuple[TorchDPT, nnx.Module]:
        classes = 150 if "ade20k" in family else None
        vit = timm_vit(SIDE, hybrid=hybrid, norm_layer=None, **SMALL, **(STEM if hybrid else {}))
        shape = (HYBRID_HOOKS, HYBRID_WIDTHS) if hybrid else (HOOKS, WIDTHS)
        model = TorchDPT(vit, *shape, FUSION_WIDTH, classes)
        randomized(model, model.scratch.output_conv[4], SIDE, scale=100 if family in INVERSIONS else 1)
        source = folder / f"{family}-{hybrid}.pt"
        torch.save(model.state_dict(), source)
        named = None if classes or not hybrid else family
        summary = convert(source, folder / "converted.safetensors", family=named, heads=SMALL["num_heads"])
        assert summary.family == family
        return model, hj.load(summary.target)

    return build


@pytest.mark.parametrize("plan", [None, PLAN], ids=["original", "expedited"])
@pytest.mark.parametrize(
    ("family", "hybrid"), [("dpt", False), ("dpt", True), ("dpt-ade20k", False), ("dpt-ade20k", True)]
)
def test_official_dpt(family: str, hybrid: bool, plan: hj.Hourglass | None, pair: Pair) -> None:
    theirs, ours = pair(family, hybrid=hybrid)
    hourglass = {} if plan is None else {"alpha": plan.alpha, "reduce": numpy_hourglass(plan)}
    for size in SIZES if plan is None else SIZES[1:]:
        images = random_images(*size, batch=1)
        expected = torch_run(theirs, images, **hourglass)
        assert expected.std() > 0.1
        found = run(hj.expedite(ours, plan), images)
        np.testing.assert_allclose(found, expected, rtol=0, atol=ATOL * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("family", INVERSIONS)
def test_official_metric_dpt(family: str, pair: Pair) -> None:
    theirs, ours = pair(family, hybrid=True)
    images = random_images(*SIZES[1], batch=1)
    scale, shift = INVERSIONS[family]
    expected = 1 / (scale * torch_run(theirs, images) + shift)
    assert expected.max() / expected.min() > 1.2
    np.testing.assert_allclose(run(ours, images), expected, rtol=1e-4)


def test_photographs_are_prepared_and_depth_is_resized_as_officially(pair: Pair) -> None:
    theirs, ours = pair("dpt")
    photo = np.random.default_rng(0).integers(0, 256, (300, 420, 3), dtype=np.uint8)
    image = torch.from_numpy(photo / 255).permute(2, 0, 1)[None]
    size = (
        288,
        384,
    )  # the width changes less; 384 / 420 of 300 is 274, and 9 times 32 the multiple that is nearest
    small = hj.Predictor(ours, preprocessing=ours.config.preprocessing.at(64))(photo)
    prepared = functional.interpolate(image, size=size, mode="bicubic") * 2 - 1
    np.testing.assert_allclose(ours.config.preprocessing(photo), prepared[0].permute(1, 2, 0), rtol=0, atol=1e-5)
    prepared = functional.interpolate(image, size=(64, 96), mode="bicubic") * 2 - 1
    depth = torch_run(theirs, prepared[0].permute(1, 2, 0).float().numpy()[None])
    expected = functional.interpolate(torch.from_numpy(depth)[None], size=photo.shape[:2], mode="bicubic")
    np.testing.assert_allclose(small, expected[0, 0], rtol=0, atol=ATOL * max(1, depth.max()))


def test_labels_of_photographs_are_the_official_ones(pair: Pair) -> None:
    theirs, ours = pair("dpt-ade20k")
    photo = np.random.default_rng(0).integers(0, 256, (70, 100, 3), dtype=np.uint8)
    labels = hj.Predictor(ours, preprocessing=ours.config.preprocessing.at(64))(photo)
    image = torch.from_numpy(photo / 255).permute(2, 0, 1)[None]
    prepared = functional.interpolate(image, size=(64, 96), mode="bicubic") * 2 - 1
    logits = torch_run(theirs, prepared[0].permute(1, 2, 0).float().numpy()[None])
    shares = torch.from_numpy(logits).softmax(dim=3).permute(0, 3, 1, 2)
    expected = functional.interpolate(shares, size=photo.shape[:2], mode="bicubic").argmax(dim=1)[0]
    assert len(expected.unique()) >= 5
    assert np.mean(labels == expected.numpy()) >= 0.999


@pytest.mark.parametrize("plan", [None, PLAN], ids=["original", "expedited"])
def test_official_depth_anything(plan: hj.Hourglass | None, folder: Path) -> None:
    """At the grid of its position embeddings and at another, to which they are resized as DINOv2 does."""
    vit = timm_vit(56, 14, init_values=1.0, **SMALL)
    model = TorchDepthAnything(vit, HOOKS, WIDTHS, FUSION_WIDTH)
    randomized(model, model.depth_head.scratch.output_conv2[2], 56)
    others = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("pretrained.")}
    backbone = {f"pretrained.{name}": tensor for name, tensor in original(vit, is_gated=False).items()}
    torch.save(others | backbone, folder / "anything.pth")
    summary = convert(
        folder / "anything.pth",
        folder / "anything.safetensors",
        family="depth-anything-v2",
        heads=SMALL["num_heads"],
    )
    ours = hj.expedite(hj.load(summary.target), plan)
    hourglass = {} if plan is None else {"alpha": plan.alpha, "reduce": numpy_hourglass(plan)}
    own, positions = vit.pos_embed.detach().split([1, 16], dim=1)
    for grid in ((4, 4), (5, 9)) if plan is None else ((5, 9),):
        resized = originally_resized(positions, grid, registers=False) if grid != (4, 4) else positions
        vit.pos_embed = torch.nn.Parameter(torch.cat([own, resized], dim=1))
        images = random_images(14 * grid[0], 14 * grid[1], batch=1)
        expected = torch_run(model, images, **hourglass)
        assert expected.std() > 0.1
        np.testing.assert_allclose(run(ours, images), expected, rtol=0, atol=ATOL * max(1, expected.max()))


def transformers_dpt(name: str, *, hybrid: bool = False, **options: object) -> torch.nn.Module:
    bit = {
        "model_type": "bit",
        "global_padding": "same",
        "layer_type": "bottleneck",
        "depths": [1, 2, 1],
        "hidden_sizes": [128, 128, 256],
        "embedding_size": 32,
        "out_features": ["stage1", "stage2", "stage3"],
        "embedding_dynamic_padding": True,
    }
    config = transformers.DPTConfig(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        intermediate_size=96,
        image_size=SIDE,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=HYBRID_WIDTHS if hybrid else WIDTHS,
        fusion_hidden_size=FUSION_WIDTH,
        is_hybrid=hybrid,
        **({"backbone_config": bit, "backbone_featmap_shape": [1, 256, 4, 4]} if hybrid else {}),
        **options,
    )
    return getattr(transformers, name)(config)


def transformers_depth_anything(**options: object) -> torch.nn.Module:
    backbone = transformers.Dinov2Config(
        hidden_size=48,
        num_hidden_layers=4,
        num_attention_heads=3,
        image_size=56,
        patch_size=14,
        out_indices=[1, 2, 3, 4],
        reshape_hidden_states=False,
    )
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone,
        reassemble_hidden_size=48,
        neck_hidden_sizes=WIDTHS,
        fusion_hidden_size=FUSION_WIDTH,
        **options,
    )
    return transformers.DepthAnythingForDepthEstimation(config)


TRANSFORMERS = {
    "large": (lambda: transformers_dpt("DPTForDepthEstimation"), (128, 128)),
    "hybrid": (lambda: transformers_dpt("DPTForDepthEstimation", hybrid=True), (128, 128)),
    "segmentation": (
        lambda: transformers_dpt(
            "DPTForSemanticSegmentation", use_batch_norm_in_fusion_residual=True, num_labels=7
        ),
        (64, 64),
    ),
    "Depth Anything": (transformers_depth_anything, (70, 126)),
    "metric Depth Anything": (
        lambda: transformers_depth_anything(depth_estimation_type="metric", max_depth=20),
        (56, 98),
    ),
}
"""A model and the size of its images; those of DPT must be square in transformers."""


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_transformers(name: str, tmp_path: Path) -> None:
    """With heads 16 channels wide and other blocks, which only config.json says."""
    build, size = TRANSFORMERS[name]
    native = 56 if "Anything" in name else SIDE
    model = build()
    last = model.head.conv3 if "Anything" in name else model.head.head[4]
    randomized(model, last, native)
    model.save_pretrained(tmp_path)
    ours = hj.load(convert(tmp_path / "model.safetensors", tmp_path / "converted.safetensors").target)
    images = random_images(*size)
    if name == "hybrid":
        model.dpt.embeddings.image_size = size
    with torch.inference_mode():
        output = model(channels_first(images))
    expected = output.logits.permute(0, 2, 3, 1) if "segm" in name else output.predicted_depth
    assert expected.std() > 0.1
    np.testing.assert_allclose(run(ours, images), expected, rtol=0, atol=ATOL * max(1, expected.abs().max()))
