"""What holds for every kind of backbone: one of `BACKBONES` needs a tiny config here."""

import dataclasses
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass, Plan, StagedMerging, expedite
from hourglass_jax.backbones.base import Backbone
from hourglass_jax.backbones.detector_resnet import DetectorResNetConfig
from hourglass_jax.backbones.registry import BACKBONES, BackboneConfig, build_backbone
from hourglass_jax.backbones.resnet import ResNetConfig
from hourglass_jax.backbones.swin import SwinConfig
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.backbones.windowed import Windows

pytestmark = pytest.mark.usefixtures("quick_compilation")


class Case(NamedTuple):
    """A config, images that are no square, and a plan, if any fits."""

    config: BackboneConfig
    size: tuple[int, int]
    plan: Plan | None


VIT = ViTConfig(patch_size=4, width=32, depth=3, heads=2, special_tokens=2, position_grid=(6, 5), layer_scale=True)
SWIN = SwinConfig(width=8, depths=(1, 3), head_width=4, window=3, patch_size=2)
ROTARY = dataclasses.replace(VIT, special_tokens=5, position_grid=None, rotary_base=100.0, mlp="swiglu")
WINDOWED = dataclasses.replace(
    VIT, special_tokens=0, layer_scale=False, windows=Windows(side=3, global_blocks=(1,))
)
STEM = ResNetConfig((1, 1), (128, 256), 32)
CASES = {
    "ViT": Case(VIT, (28, 12), Hourglass(1, (3, 2))),
    "hybrid ViT": Case(dataclasses.replace(VIT, patch_size=8, stem=STEM), (56, 24), Hourglass(1, (3, 2))),
    "rotary ViT": Case(ROTARY, (28, 12), StagedMerging(0.7, stages=(1,))),
    "ViT with windows": Case(WINDOWED, (28, 16), Hourglass(1, (2, 2))),
    "Swin V1": Case(SWIN, (25, 17), Hourglass(1, (2, 2), beta=2)),
    "Swin V2": Case(dataclasses.replace(SWIN, version=2), (25, 17), Hourglass(2, (2, 2))),
    "ResNet": Case(DetectorResNetConfig((1, 2, 1, 1), 16, 8), (41, 36), None),
    "ResNet, stride first": Case(DetectorResNetConfig((1, 1, 2, 1), 16, 8, stride_first=True), (41, 36), None),
}
PLANNED = {name: case for name, case in CASES.items() if case.plan is not None}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
every_case_with_a_plan = pytest.mark.parametrize("case", PLANNED.values(), ids=PLANNED)
every_case_with_and_without_plan = pytest.mark.parametrize(
    ("case", "plan"),
    [
        pytest.param(case, plan, id=f"{name}, {plan}")
        for name, case in CASES.items()
        for plan in dict.fromkeys((None, case.plan))
    ],
)


def random_backbone(config: BackboneConfig, dtype: jnp.dtype = jnp.float32) -> Backbone:
    """With parameters of which none is trivially 0 or 1."""
    backbone = nnx.eval_shape(lambda: build_backbone(config, dtype=dtype, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(backbone)):
        noise = random.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= np.prod(parameter.shape[:-1]) ** -0.5
        elif parameter.ndim == 1:
            noise = 0.3 * noise + (path[-1] == "scale")
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return backbone


def random_images(case: Case, batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *case.size, 3)), jnp.float32)


def outputs(backbone: Backbone, images: jax.Array) -> tuple[dict[str, jax.Array], tuple]:
    """The maps by name, and the features after the last block and the first."""
    features = backbone(images, intermediates=(backbone.depth - 1, 0))
    return features.maps(), features.intermediates


run = nnx.jit(outputs)


def test_every_kind_of_backbone_has_a_case() -> None:
    assert {type(case.config) for case in CASES.values()} == set(BACKBONES)


@every_case_with_and_without_plan
def test_channels_and_strides_are_those_of_the_maps(case: Case, plan: Plan | None) -> None:
    backbone = expedite(nnx.eval_shape(lambda: build_backbone(case.config, rngs=nnx.Rngs(0))), plan)
    assert type(backbone) is BACKBONES[type(case.config)]
    maps, _ = nnx.eval_shape(outputs, backbone, random_images(case))
    assert [*maps] == [*backbone.channels] == [*backbone.strides]
    for name, each in maps.items():
        sides = tuple(-(-side // backbone.strides[name]) for side in case.size)
        assert each.shape == (2, *sides, backbone.channels[name])


@every_case_with_and_without_plan
def test_intermediates_are_of_all_tokens_and_in_the_order_asked(case: Case, plan: Plan | None) -> None:
    backbone = expedite(nnx.eval_shape(lambda: build_backbone(case.config, rngs=nnx.Rngs(0))), plan)
    plain = expedite(backbone, None)
    every = range(plain.depth)

    def intermediates(backbone: Backbone, images: jax.Array, wanted: tuple[int, ...]) -> tuple:
        return backbone(images, intermediates=wanted).intermediates

    expected = nnx.eval_shape(lambda backbone, x: intermediates(backbone, x, every), plain, random_images(case))
    wanted = (*reversed(every), 0)
    found = nnx.eval_shape(lambda backbone, x: intermediates(backbone, x, wanted), backbone, random_images(case))
    assert found == tuple(expected[index] for index in wanted)


@every_case
@pytest.mark.parametrize("wrong", [-1, None])
def test_a_block_that_there_is_not_is_named(case: Case, wrong: int | None) -> None:
    backbone = nnx.eval_shape(lambda: build_backbone(case.config, rngs=nnx.Rngs(0)))
    wrong = backbone.depth if wrong is None else wrong
    message = rf"intermediates must be blocks 0 to {backbone.depth - 1}, got \(0, {wrong}\)"
    with pytest.raises(ValueError, match=message):
        backbone(random_images(case), intermediates=(0, wrong))


@every_case
@pytest.mark.parametrize("shape", [(24, 24, 3), (1, 3, 24, 24)])
def test_bad_images_are_named(case: Case, shape: tuple[int, ...]) -> None:
    backbone = nnx.eval_shape(lambda: build_backbone(case.config, rngs=nnx.Rngs(0)))
    shown = ", ".join(map(str, shape))
    with pytest.raises(ValueError, match=rf"\[batch, rows, columns, 3\], got \({shown}\)"):
        backbone(jnp.zeros(shape))


@every_case_with_a_plan
@pytest.mark.slow
def test_a_plan_shares_the_arrays_and_can_be_taken_off(case: Case) -> None:
    """And an image of a batch is what it is alone, without jit."""
    plain, images = random_backbone(case.config), random_images(case)
    fast = expedite(plain, case.plan)
    shared = zip(*(jax.tree.leaves(nnx.state(each, nnx.Param)) for each in (plain, fast)), strict=True)
    assert all(a is b for a, b in shared)
    assert fast.backbone is fast and fast is not plain
    assert (plain.plan, fast.plan) == (None, case.plan)
    expected = run(plain, images)
    chex.assert_trees_all_equal(run(expedite(fast, None), images), expected)
    found = run(fast, images)
    last = [*plain.channels][-1]
    assert np.abs(found[0][last] - expected[0][last]).max() > 1e-3
    alone = outputs(fast, images[1:])
    chex.assert_trees_all_close(alone, jax.tree.map(lambda each: each[1:], found), rtol=0, atol=1e-4)
    assert fast.token_counts(*case.size)[0] > fast.token_counts(*case.size)[1]


@every_case_with_and_without_plan
def test_bfloat16_is_finite_with_float32_parameters(case: Case, plan: Plan | None) -> None:
    backbone = expedite(random_backbone(case.config, jnp.bfloat16), plan)
    chex.assert_type(jax.tree.leaves(nnx.state(backbone)), jnp.float32)
    found = run(backbone, random_images(case, batch=1))
    chex.assert_type(jax.tree.leaves(found), jnp.bfloat16)
    chex.assert_tree_all_finite(found)
