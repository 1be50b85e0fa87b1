"""The count of multiply-accumulates, against closed forms and against XLA's own cost analysis."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import hourglass_jax as hj
from hourglass_jax.analysis.flops import count_function_macs, count_macs
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.models.saliency import Saliency, SaliencyConfig
from hourglass_jax.ops.targets import attention_form

SIZE = (224, 280)
PLAN = hj.Hourglass(1, (9, 11), iterations=3)
MEDOIDS = hj.Hourglass(1, (9, 11), beta=1, representative="medoid")


def saliency(width: int, depth: int) -> Saliency:
    backbone = ViTConfig(patch_size=14, width=width, heads=width // 64, depth=depth, position_grid=(4, 4))
    return nnx.eval_shape(lambda: Saliency(SaliencyConfig(backbone, decoder_widths=(64, 32)), rngs=nnx.Rngs(0)))


def unrolled_map(function, arrays):
    trips = len(jax.tree.leaves(arrays)[0])
    return jnp.stack([function(jax.tree.map(lambda array, i=i: array[i], arrays)) for i in range(trips)])


def unrolled_loop(start, stop, body, value):
    for index in range(start, stop):
        value = body(index, value)
    return value


@pytest.mark.parametrize("plan", [PLAN, *(pytest.param(plan, marks=pytest.mark.slow) for plan in (None, MEDOIDS))])
def test_the_count_is_half_of_xlas_within_three_percent(plan, monkeypatch) -> None:
    """XLA counts the body of a loop once, so the loops are unrolled for it: in a form that is traced anew."""
    model = hj.expedite(saliency(width=384, depth=3), plan)
    counted = count_macs(model, SIZE)["total"]
    monkeypatch.setattr(jax.lax, "map", unrolled_map)
    monkeypatch.setattr(jax.lax, "fori_loop", unrolled_loop)
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    with attention_form("loop"):
        compiled = jax.jit(lambda model, images: model(images)).lower(model, images).compile()
    assert 2 * counted == pytest.approx(compiled.cost_analysis()["flops"], rel=0.03)


def test_blocks_and_embedding_equal_their_closed_forms() -> None:
    model = saliency(width=128, depth=2)
    parts = count_macs(model, SIZE)
    tokens, width = 16 * 20, 128
    positions = 16 * 4 * 4 * width + 16 * 20 * 4 * width
    assert parts["embedding"] == tokens * 14 * 14 * 3 * width + positions
    assert parts["blocks"] == 2 * (12 * (tokens + 1) * width**2 + 2 * (tokens + 1) ** 2 * width)
    assert parts["clustering"] == parts["reconstruction"] == 0
    assert parts["total"] == sum(macs for part, macs in parts.items() if part != "total")
    assert "other" not in parts


def test_the_hourglass_saves_blocks_and_pays_for_its_own_layers() -> None:
    model = saliency(width=128, depth=4)
    parts, fast = count_macs(model, SIZE), count_macs(hj.expedite(model, PLAN), SIZE)

    def block(tokens: int) -> int:
        return 12 * (tokens + 1) * 128**2 + 2 * (tokens + 1) ** 2 * 128

    assert fast["blocks"] == block(16 * 20) + 3 * block(9 * 11)
    assert fast["reconstruction"] == 2 * (16 * 20) * (9 * 11) * 128
    assert fast["clustering"] > 0
    assert (fast["embedding"], fast["head"]) == (parts["embedding"], parts["head"])
    assert fast["total"] < parts["total"]


def test_the_count_is_linear_in_the_batch() -> None:
    fast = hj.expedite(saliency(width=64, depth=2), PLAN)
    one, three = count_macs(fast, SIZE), count_macs(fast, SIZE, batch=3)
    resized_once = {"embedding"}
    for part in one.keys() - resized_once - {"total"}:
        assert three[part] == 3 * one[part]


def test_loops_and_nested_functions_are_counted_as_often_as_they_run() -> None:
    def function(x: jax.Array) -> jax.Array:
        step = jax.jit(lambda x: jnp.tanh(x @ x))
        return jax.lax.fori_loop(0, 5, lambda _, x: step(x), x)

    assert count_function_macs(function, jnp.zeros((4, 4))) == {"other": 5 * 4**3}


def test_what_no_result_depends_on_is_not_counted() -> None:
    def function(x: jax.Array) -> jax.Array:
        x @ x @ x
        pair = jax.jit(lambda x: (x @ x, x @ x @ x))
        kept, _ = jax.lax.fori_loop(0, 5, lambda _, both: (both[0] @ both[0], both[1] @ both[1]), (x, x))
        return kept + pair(x)[0]

    assert count_function_macs(function, jnp.zeros((4, 4))) == {"other": 6 * 4**3}


def test_a_convolution_counts_its_kernel_for_every_output() -> None:
    def function(x: jax.Array) -> jax.Array:
        kernel = jnp.zeros((3, 3, 8, 16))
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    macs = count_function_macs(function, jnp.zeros((2, 10, 12, 8)))
    assert macs["other"] == 2 * 8 * 10 * 16 * 3 * 3 * 8


def test_a_size_that_does_not_fit_is_an_error() -> None:
    with pytest.raises(ValueError, match="multiples of 14 pixels, got 500 x 518"):
        count_macs(saliency(width=64, depth=2), (500, 518))
    with pytest.raises(ValueError, match="9 x 11 clusters for 5 x 5 tokens"):
        count_macs(hj.expedite(saliency(width=64, depth=2), PLAN), (70, 70))


@pytest.mark.slow
def test_counting_leaves_the_model_alone() -> None:
    model = Saliency(
        SaliencyConfig(ViTConfig(patch_size=14, width=64, heads=1, depth=1, position_grid=(2, 2))),
        rngs=nnx.Rngs(0),
    )
    before = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    count_macs(model, (28, 28))
    after = jax.tree.map(np.asarray, nnx.to_pure_dict(nnx.state(model)))
    jax.tree.map(np.testing.assert_array_equal, before, after)
