"""A look inside the blocks of a Swin, against what its modules compute."""

import jax
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.inspection import entering_tokens, inspect_window_block
from hourglass_jax.backbones.layers import kernel_and_bias
from hourglass_jax.backbones.swin import Swin, SwinConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

GRID, WINDOW, WIDTH = (5, 7), 3, 8
COUNT = GRID[0] * GRID[1]
IMAGES = np.random.default_rng(0).normal(size=(1, 2 * GRID[0], 2 * GRID[1], 3)).astype(np.float32)
PLAN = hj.Hourglass(1, (2, 2), neighbors=3)


@pytest.fixture(scope="module", params=[1, 2], ids=["V1", "V2"])
def swin(request: pytest.FixtureRequest) -> Swin:
    """One head in its first stage, whose map of 5 x 7 tokens is filled up to 6 x 9."""
    config = SwinConfig(WIDTH, (3, 1), WIDTH, WINDOW, version=request.param, patch_size=2)
    module = nnx.eval_shape(lambda: Swin(config, rngs=nnx.Rngs(0)))
    random = np.random.default_rng(0)
    nnx.update(
        module, jax.tree.map(lambda each: random.normal(0, 0.4, each.shape).astype(np.float32), nnx.state(module))
    )
    return module


@pytest.mark.parametrize("block", [1, 2], ids=["shifted", "not shifted"])
def test_attention_mixes_what_the_block_mixes(swin: Swin, block: int) -> None:
    """Weights of all tokens and of the padding, whose values are the bias, and what the attention makes of them."""
    seen = inspect_window_block(swin, IMAGES, plan=None, block=block, last=block, positions=tuple(range(COUNT)))
    module, norm1 = swin.stages[0].blocks[block].attention, swin.stages[0].blocks[block].norm1
    x = seen.entering.reshape(1, *GRID, WIDTH)
    x = x if swin.config.version == 2 else norm1(x)
    kernel, bias = (np.asarray(each)[..., 2 * WIDTH :] for each in kernel_and_bias(module.qkv, np.float32))
    padding = 1 - seen.attention.sum(axis=1, keepdims=True)
    mixed = seen.attention @ (np.asarray(x).reshape(COUNT, WIDTH) @ kernel + bias) + padding * bias
    expected = module(x, WINDOW, swin.shift(block, WINDOW, GRID)).reshape(COUNT, WIDTH)
    np.testing.assert_allclose(module.projection(mixed), expected, rtol=0, atol=1e-4)
    assert 0 < float(padding.max()) < 1
    assert (np.asarray(seen.attention) > 0).sum(axis=1).max() <= WINDOW**2


def test_tokens_without_a_plan_are_those_of_the_blocks(swin: Swin) -> None:
    seen = inspect_window_block(swin, IMAGES, plan=None, block=1, last=2, positions=(0,))
    before, after = nnx.jit(lambda swin: swin(IMAGES, intermediates=(0, 2)).intermediates)(swin)
    for found, wanted in ((seen.entering, before), (seen.leaving, after), (seen.restored, after)):
        np.testing.assert_allclose(found, wanted.reshape(COUNT, WIDTH), rtol=0, atol=1e-5)
    windows = entering_tokens(swin, IMAGES, block=1)
    assert windows.shape == (2 * 3, WINDOW**2, WIDTH)
    np.testing.assert_allclose(windows[1, 0], before[0, 0, WINDOW], rtol=0, atol=1e-5)


def test_under_a_plan_it_is_that_of_the_nearest_cluster(swin: Swin) -> None:
    """Of the same window; a cluster attends to those of its window."""
    seen = inspect_window_block(swin, IMAGES, plan=PLAN, block=2, last=2, positions=tuple(range(COUNT)))
    [restored] = nnx.jit(lambda swin: swin(IMAGES, intermediates=(2,)).intermediates)(hj.expedite(swin, PLAN))
    np.testing.assert_allclose(seen.restored, restored.reshape(COUNT, WIDTH), rtol=0, atol=1e-5)
    assert seen.entering.shape == seen.leaving.shape == (4 * 6, WIDTH)
    attention = np.asarray(seen.attention).reshape(*GRID, 4, 6)
    np.testing.assert_allclose(attention.sum(axis=(2, 3)), 1, atol=1e-5)
    for row, column in np.ndindex(*GRID):
        above, left = 2 * (row // WINDOW), 2 * (column // WINDOW)
        np.testing.assert_allclose(attention[row, column, above : above + 2, left : left + 2].sum(), 1, atol=1e-5)


def test_blocks_that_are_none_are_refused(swin: Swin) -> None:
    with pytest.raises(ValueError, match="block must be one of the backbone's, 0 to 3, got 4"):
        inspect_window_block(swin, IMAGES, plan=None, block=4, last=4, positions=(0,))
    with pytest.raises(ValueError, match="last must be a block of the same stage, 1 to 2, got 3"):
        inspect_window_block(swin, IMAGES, plan=None, block=1, last=3, positions=(0,))
