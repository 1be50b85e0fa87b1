"""The ResNet of detectors against transformers', under the names of all three codes."""

import numpy as np
import pytest
import torch
from flax import nnx

from checkpoints_convert import resnet
from checkpoints_convert.rules import Family, build_parameter, recipes
from hourglass_jax.backbones.detector_resnet import DetectorResNet, DetectorResNetConfig
from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.registry import fill, flat_parameters
from tests.parity.vits import channels_first, random_images

pytest.importorskip("transformers")

from tests.parity.resnets import Tensors, build, detectron2_names, torchvision_names

pytestmark = pytest.mark.usefixtures("quick_compilation")

NAMINGS = {
    "detectron2": (resnet.DETECTRON2, detectron2_names),
    "torchvision": (resnet.TORCHVISION, torchvision_names),
    "transformers": (resnet.TRANSFORMERS, lambda tensors: tensors),
}


@nnx.jit
def maps(backbone: DetectorResNet, images: np.ndarray) -> dict:
    return backbone(images).maps()


def converted(names: resnet.Names, tensors: Tensors, *, stride_first: bool) -> DetectorResNet:
    """The backbone that a table of rows makes of a checkpoint."""
    arrays = {name: tensor.numpy() for name, tensor in tensors.items()}
    config = DetectorResNetConfig(**names.config(arrays, stride_first=stride_first))
    model = nnx.eval_shape(lambda: Encoder(EncoderConfig(config, Preprocessing()), rngs=nnx.Rngs(0)))
    family = Family("resnet", "encoder", names.is_in, lambda tensors, given: {}, names.rows())
    found = recipes(family, arrays, flat_parameters(model))
    fill(model, {name: build_parameter(name, recipe, arrays) for name, recipe in found.items()}, "the test")
    return model.backbone


@pytest.mark.parametrize("stride_first", [False, True], ids=["stride in 3 x 3", "stride in 1 x 1"])
def test_the_maps_of_all_stages(stride_first: bool) -> None:
    """Sides that are odd on their way, two images."""
    theirs = build(stride_first=stride_first)
    ours = converted(resnet.TRANSFORMERS, theirs.state_dict(), stride_first=stride_first)
    images = random_images(78, 97)
    with torch.no_grad():
        expected = theirs(channels_first(images)).feature_maps
    for (name, found), wanted in zip(maps(ours, images).items(), expected, strict=True):
        assert wanted.abs().mean() > 0.05
        np.testing.assert_allclose(found.transpose(0, 3, 1, 2), wanted, rtol=0, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("naming", NAMINGS)
def test_every_naming_makes_the_same_parameters(naming: str) -> None:
    names, rename = NAMINGS[naming]
    tensors = build().state_dict()
    renamed = rename(tensors)
    assert names.is_in(renamed)
    found = flat_parameters(converted(names, renamed, stride_first=False))
    expected = flat_parameters(converted(resnet.TRANSFORMERS, tensors, stride_first=False))
    for name, parameter in expected.items():
        np.testing.assert_array_equal(found[name], parameter, err_msg=name)


def test_other_networks_are_named() -> None:
    arrays = {name: tensor.numpy() for name, tensor in torchvision_names(build().state_dict()).items()}
    grouped = arrays | {"layer1.0.conv2.weight": arrays["layer1.0.conv2.weight"][:, :2]}
    with pytest.raises(ValueError, match="a quarter of 16 channels in one group, got 4 channels that read 2 each"):
        resnet.TORCHVISION.config(grouped, stride_first=False)
    wide = arrays | {"layer2.0.conv3.weight": arrays["layer3.0.conv3.weight"]}
    with pytest.raises(ValueError, match=r"twice the channels of the last, got \[16, 64, 64, 128\]"):
        resnet.TORCHVISION.config(wide, stride_first=False)
    with pytest.raises(ValueError, match="variances must not be negative, got -1"):
        resnet.folded_bias(*(np.full(3, value, np.float32) for value in (1, 1, 1, -1)))
