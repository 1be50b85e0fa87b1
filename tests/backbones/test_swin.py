"""Swin V1 and V2 with and without an hourglass against the reference, and what does not fit."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass, expedite, load, save
from hourglass_jax.analysis.groups import find_groups
from hourglass_jax.backbones.swin import Swin, SwinConfig, SwinFeatures
from hourglass_jax.models.encoder import Encoder, EncoderConfig
from hourglass_jax.models.registry import flat_parameters
from hourglass_jax.plans.registry import TokenMerging
from tests.reference import swin as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = SwinConfig(width=8, depths=(1, 4), head_width=4, window=3, patch_size=2)
"""Five blocks: block 0, and blocks 1 to 4."""
WHOLE, PADDED = (24, 24), (25, 17)
"""Images whose second stage has 6 x 6 tokens, which are whole windows, and 7 x 5."""
PLAN = Hourglass(2, (2, 2), beta=2, window=3, iterations=2, temperature=20.0, neighbors=3)


def random_swin(config: SwinConfig = CONFIG, *, dtype: jnp.dtype = jnp.float32) -> Swin:
    """With parameters of which none is trivially 0 or 1."""
    swin = nnx.eval_shape(lambda: Swin(config, dtype=dtype, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(swin)):
        noise = rng.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= parameter.shape[0] ** -0.5
        elif parameter.ndim == 1:
            noise = 0.3 * noise + (path[-1] == "scale")
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return swin


@pytest.fixture(scope="module", params=[1, 2], ids=["V1", "V2"])
def swin(request: pytest.FixtureRequest) -> Swin:
    return random_swin(dataclasses.replace(CONFIG, version=request.param))


def random_images(size: tuple[int, int], batch: int = 2) -> np.ndarray:
    return np.random.default_rng(1).normal(size=(batch, *size, 3)).astype(np.float32)


@nnx.jit
def stages(swin: Swin, images: jax.Array) -> tuple[jax.Array, ...]:
    return swin(images).stages


def by_reference(swin: Swin, image: np.ndarray, plan: Hourglass | None) -> list[np.ndarray]:
    parameters = {name: np.asarray(each, np.float64) for name, each in flat_parameters(swin).items()}
    config = swin.config
    return reference.swin(
        image,
        parameters,
        depths=config.depths,
        heads=[config.width * 2**stage // config.head_width for stage in range(len(config.depths))],
        window=config.window,
        patch_size=config.patch_size,
        version=config.version,
        plan=plan,
    )


@pytest.mark.parametrize(
    ("size", "plan"),
    [
        (PADDED, None),
        (PADDED, PLAN),
        (WHOLE, Hourglass(1, (2, 2), window=3, iterations=1, representative="medoid")),
    ],
    ids=["padded, no plan", "padded", "whole, from the stage's first block to its last"],
)
def test_a_swin_is_the_reference(swin: Swin, size: tuple[int, int], plan: Hourglass | None) -> None:
    """For both images of a batch."""
    images = random_images(size)
    found = stages(expedite(swin, plan), images)
    for number, image in enumerate(images):
        for mine, theirs in zip(found, by_reference(swin, image, plan), strict=True):
            assert mine[number].shape == theirs.shape
            np.testing.assert_allclose(mine[number], theirs, rtol=0, atol=1e-4)


def test_the_position_bias_of_clusters_is_computed_once_per_plan(swin: Swin, tmp_path: Path) -> None:
    """Of blocks 2 and 3, which run on clusters: their calls do not read the parameters, and files hold no bias."""
    fast = expedite(swin, PLAN)
    blocks = [block.attention for stage in fast.stages for block in stage.blocks]
    for number, attention in enumerate(blocks):
        if number in (2, 3):
            np.testing.assert_array_equal(attention.cluster_bias[...], attention.position_bias(2))
            attention.position_bias = None
            assert attention.bias(2).shape == (attention.heads, 4, 4)
        else:
            assert attention.cluster_bias is None
    assert nnx.eval_shape(stages, fast, random_images(PADDED))

    again = expedite(expedite(swin, PLAN), None)
    assert all(block.attention.cluster_bias is None for stage in again.stages for block in stage.blocks)
    encoder = Encoder(EncoderConfig(swin.config), rngs=nnx.Rngs(0))
    path = save(expedite(encoder, PLAN), tmp_path / "encoder.safetensors")
    assert flat_parameters(load(path)).keys() == flat_parameters(encoder).keys()


def test_what_is_clustered(swin: Swin) -> None:
    """7 x 5 tokens in 3 x 2 windows: the clusters of a window are its own."""
    fast = expedite(swin, PLAN)
    assert fast.token_counts(*PADDED) == (7 * 5, 3 * 2 * 4)
    found = find_groups(swin, PLAN, random_images(PADDED, batch=1))
    assert found.shape == (7, 5)
    y, x = np.mgrid[:7, :5]
    np.testing.assert_array_equal(found // 4, y // 3 * 2 + x // 3)
    assert len(np.unique(found)) > 6


@pytest.mark.parametrize("clusters", [(2, 2), (3, 3)])
def test_intermediates_are_the_restored_maps(swin: Swin, clusters: tuple[int, int]) -> None:
    """The last block's is what the last stage's norm is given, also where it ran on clusters."""
    fast = expedite(swin, dataclasses.replace(PLAN, clusters=clusters, alpha=3))

    @nnx.jit
    def last(swin: Swin, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        features = swin(images, intermediates=(0, 4))
        first, final = features.intermediates
        assert first.shape == (2, 13, 9, 8)
        return swin.norms[-1](final), features.stages[-1]

    np.testing.assert_allclose(*last(fast, random_images(PADDED)), rtol=0, atol=1e-5)


def test_a_map_no_larger_than_a_window_may_be_one_window() -> None:
    """The last stage has 3 x 3 tokens: one window either way, but not shifted if windows shrink."""
    config = dataclasses.replace(CONFIG, depths=(1, 2), stage_norms=False)
    always, shrinking = (
        random_swin(dataclasses.replace(config, shrink_windows=shrinks)) for shrinks in (False, True)
    )
    images = random_images((12, 12), batch=1)
    differ = [np.abs(a - b).max() for a, b in zip(stages(always, images), stages(shrinking, images), strict=True)]
    assert differ[0] == 0 and differ[1] > 0.01
    fast = expedite(shrinking, Hourglass(2, (2, 2)))
    assert fast.token_counts(12, 12) == (9, 4)
    assert shrinking.token_counts(12, 12) == (9, 9)
    with pytest.raises(ValueError, match="got 2 x 2 for windows of 1 x 1 tokens"):
        fast(random_images((4, 4)))


def test_maps_are_named_as_detectors_do(swin: Swin) -> None:
    maps = nnx.eval_shape(lambda swin, images: swin(images).maps(), swin, random_images(PADDED))
    assert {name: each.shape[1:] for name, each in maps.items()} == {
        "res2": (13, 9, 8),
        "res3": (7, 5, 16),
    }
    assert swin.grids(*PADDED) == [(13, 9), (7, 5)]


def test_an_encoder_ends_with_the_last_stage(swin: Swin) -> None:
    encoder = nnx.eval_shape(lambda: Encoder(EncoderConfig(swin.config), rngs=nnx.Rngs(0)))
    assert type(encoder.backbone) is Swin
    features = SwinFeatures(tuple(jnp.full((1, 2, 2, 4), number, jnp.bfloat16) for number in range(2)))
    np.testing.assert_array_equal(encoder.decode(features, PADDED), np.ones((1, 2, 2, 4), np.float32))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Hourglass(5, (2, 2)), r"alpha must be less than the backbone's 5 blocks, got 5"),
        (
            Hourglass(0, (2, 2), beta=2),
            r"inside one stage: blocks 0 to 1 are not, with stages of 1, 4 blocks",
        ),
        (Hourglass(2, (4, 4)), r"k at most the window's side: got 4 x 4 for windows of 3 x 3 tokens"),
        (Hourglass(2, (2, 1)), r"clusters must be k x k .* got 2 x 1"),
        (Hourglass(2, (2, 2), reconstruct="logits"), r"only reconstruct='tokens', got 'logits'"),
        (TokenMerging(keep=0.5), r"a backbone with windows takes an Hourglass, .* got TokenMerging"),
    ],
)
def test_a_plan_that_does_not_fit_is_named(swin: Swin, plan: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expedite(swin, plan)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"version": 3}, "version must be 1 or 2, got 3"),
        ({"head_width": 3}, "width must be a multiple of head_width, got 8 and 3"),
        ({"pretrained_windows": (3, 3, 3)}, "a side for each stage: got 3 for 2 stages"),
    ],
)
def test_a_bad_config_is_named(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **fields)


def test_published_sizes() -> None:
    config = SwinConfig.sized("large", window=12)
    assert (config.width, config.depths, config.pretrained_windows) == (192, (2, 2, 18, 2), (12,) * 4)
