"""SWAG from torchvision's and the official file to probabilities, against torchvision, with random weights."""

import re
from collections.abc import Callable
from copy import deepcopy
from functools import partial

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image

import hourglass_jax as hj
from checkpoints_convert.convert import convert
from hourglass_jax.models.swag import Swag
from tests.parity.vits import channels_first, random_images, randomize
from tests.reference import hourglass as reference

transformer = pytest.importorskip("torchvision.models.vision_transformer")
transforms = pytest.importorskip("torchvision.transforms.functional")

from tests.parity.swags import VisionTransformer, official_names, torch_logits  # noqa: E402

pytestmark = pytest.mark.usefixtures("quick_compilation")

ATOL = 2e-5
"""On logits of order one; another epsilon (1e-5 for 1e-6) of the norms, and other positions, are farther away."""
SIDE, PATCH, WIDTH, CLASSES = 40, 8, 128, 11
SIZES = [(40, 40), (72, 72), (24, 56)]
"""Of images: as in training, larger, and oblong."""
OBLONG = (56, 40)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PLAN = hj.Hourglass(1, (4, 3), window=3, iterations=3, temperature=0.15, neighbors=4)
"""At this temperature, a token is near to several of the twelve clusters."""

Pair = tuple[VisionTransformer, dict[str, Swag]]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """torchvision's model, and ours by way of both files."""
    model = VisionTransformer(SIDE, PATCH, 4, 2, WIDTH, 256, num_classes=CLASSES)
    randomize(model)
    with torch.no_grad():
        # What the blocks add to is small, for epsilons to show; attention is picky, for tokens to matter.
        for name, parameter in model.named_parameters():
            if re.search(r"conv_proj|class_token|pos_embedding|out_proj|mlp\.3", name):
                parameter *= 0.05
            elif "in_proj_weight" in name:
                parameter[: 2 * WIDTH] *= 3
    folder = tmp_path_factory.mktemp("swag")
    files = {"swag-torchvision": model.state_dict(), "swag": official_names(model.state_dict())}
    ours = {}
    for family, tensors in files.items():
        torch.save(tensors, folder / f"{family}.torch")
        summary = convert(folder / f"{family}.torch", heads=2)
        assert summary.family == family
        ours[family] = hj.load(summary.target)
    return model, ours


@nnx.jit
def logits(model: Swag, images: jax.Array) -> jax.Array:
    return model(images)


@torch.no_grad()
def expected(model: VisionTransformer, images: np.ndarray, **options: object) -> np.ndarray:
    """In float64."""
    return torch_logits(deepcopy(model).double(), channels_first(images).double(), **options).numpy()


@pytest.mark.parametrize("family", ["swag", "swag-torchvision"])
def test_native_images(family: str, pair: Pair) -> None:
    """By torchvision's own `forward`, in which images have one size."""
    theirs, ours = pair
    images = random_images(SIDE, SIDE)
    with torch.no_grad():
        wanted = deepcopy(theirs).double()(channels_first(images).double()).numpy()
    assert np.abs(wanted).max() > 0.5
    np.testing.assert_allclose(logits(ours[family], images), wanted, rtol=0, atol=ATOL)
    np.testing.assert_allclose(expected(theirs, images), wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_images_of_other_sizes(size: tuple[int, int], pair: Pair) -> None:
    theirs, ours = pair
    images = random_images(*size)
    wanted = expected(theirs, images)
    np.testing.assert_allclose(logits(ours["swag"], images), wanted, rtol=0, atol=ATOL)


@pytest.mark.parametrize("beta", [None, 2])
@pytest.mark.parametrize("size", [(SIDE, SIDE), OBLONG], ids=str)
def test_hourglass(beta: int | None, size: tuple[int, int], pair: Pair) -> None:
    """Of the NumPy reference, among torchvision's blocks."""
    theirs, ours = pair
    plan = hj.Hourglass(**{**vars(PLAN), "beta": beta})
    images = random_images(*size)
    wanted = expected(theirs, images, plan=plan, cluster=partial(cluster, plan=plan), reconstruct=_restore(plan))
    assert np.abs(wanted - expected(theirs, images)).max() > 100 * ATOL
    found = logits(hj.expedite(ours["swag"], plan), images)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=ATOL)


def cluster(tokens: torch.Tensor, grid: tuple[int, int], plan: hj.Hourglass) -> torch.Tensor:
    clusters = reference.cluster_tokens(
        tokens.numpy(),
        token_grid=grid,
        cluster_grid=plan.clusters,
        window=plan.window,
        iterations=plan.iterations,
        temperature=plan.temperature,
    )
    return torch.from_numpy(clusters)


def _restore(plan: hj.Hourglass) -> Callable[..., torch.Tensor]:
    def reconstruct(refined: torch.Tensor, **arrays: torch.Tensor) -> torch.Tensor:
        restored = reference.reconstruct_tokens(
            refined.numpy(),
            neighbors=plan.neighbors,
            temperature=plan.temperature,
            **{name: array.numpy() for name, array in arrays.items()},
        )
        return torch.from_numpy(restored)

    return reconstruct


@pytest.mark.parametrize("size", [(60, 47), (40, 40), (41, 130)], ids=str)
def test_photographs_are_prepared_and_classified_as_torchvision_does(size: tuple[int, int], pair: Pair) -> None:
    theirs, ours = pair
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    image = transforms.resize(Image.fromarray(photo), SIDE, transforms.InterpolationMode.BICUBIC)
    pixels = transforms.to_tensor(transforms.center_crop(image, [SIDE, SIDE]))
    with torch.no_grad():
        wanted = theirs(transforms.normalize(pixels, MEAN, STD)[None])[0].softmax(dim=0).numpy()
    found = hj.Predictor(ours["swag"])(photo)
    np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-5)
    assert ours["swag"].tasks["classification"].top(found)[0].label == wanted.argmax()
