"""Checks of the operators' types, and a tiny random model, in memory and as a file, for tests of whole models."""

import os
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from jaxtyping import config as type_checks
from jaxtyping import install_import_hook

install_import_hook("hourglass_jax.ops", "beartype.beartype")  # before the operators are imported

import hourglass_jax as hj  # noqa: E402
from hourglass_jax.backbones.vit import ViTConfig  # noqa: E402
from hourglass_jax.imaging.images import Preprocessing  # noqa: E402
from hourglass_jax.models.saliency import Saliency, SaliencyConfig  # noqa: E402

os.environ["JAX_COMPILATION_CACHE_DIR"] = ""  # tests compile for themselves, and leave nothing in the user's cache


@pytest.fixture(scope="module")
def quick_compilation() -> Iterator[None]:
    """Compiles without most optimizations, three times as fast: for tests whose models are tiny."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def no_type_checks() -> Iterator[None]:
    """For tests of what the operators themselves say of bad input: they would not be reached."""
    type_checks.update("jaxtyping_disable", True)
    yield
    type_checks.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tiny_model() -> Saliency:
    """5 x 5 tokens at its own size of 70 pixels; every parameter is random, so outputs vary over an image."""
    config = SaliencyConfig(
        ViTConfig(patch_size=14, width=32, heads=2, depth=3, position_grid=(4, 4), layer_scale=True),
        decoder_widths=(8, 8),
        preprocessing=Preprocessing(size=70),
    )
    model = nnx.eval_shape(lambda: Saliency(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        model, jax.tree.map(lambda each: random.normal(0, 0.4, each.shape).astype(np.float32), nnx.state(model))
    )
    for stage in model.stages:
        stage.norm.var[...] = abs(stage.norm.var[...])
    return model


@pytest.fixture(scope="session")
def tiny_file(tiny_model: Saliency, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_model` as a converted file."""
    return hj.save(tiny_model, tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture(scope="session")
def tiny_plan() -> hj.Hourglass:
    """A plan that fits `tiny_model`."""
    return hj.Hourglass(1, (3, 3))
