import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hourglass_jax.ops.merging import Matching, alternate, checkerboard, match_tokens, merge_tokens, take
from tests.reference import merging as reference

merge = jax.jit(merge_tokens, static_argnames="value")


def match(metric: np.ndarray, merged: int, *, offset: int = 0, in_order: bool = True) -> Matching:
    second = alternate(metric.shape[1], offset=offset)
    return jax.jit(lambda metric: match_tokens(metric, merged, second=second, in_order=in_order))(metric)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@settings(max_examples=4, deadline=None)
@given(st.integers(2, 19), st.integers(0, 3), st.booleans(), st.data())
def test_matching_and_merging_are_the_reference(
    count: int, offset: int, in_order: bool, data: st.DataObject
) -> None:
    merged = data.draw(st.integers(1, count // 2))
    metric, tokens = normal(2, count, 8), normal(2, count, 5, seed=1)
    sizes = np.random.default_rng(2).integers(1, 9, (2, count)).astype(np.float32)
    found = match(metric, merged, offset=offset, in_order=in_order)
    groups = [reference.match(each, merged, offset=offset, in_order=in_order) for each in metric]
    for value in ("mean", "medoid"):
        values, totals = merge(tokens, sizes, found, value=value)
        assert values.shape == (2, count - merged, 5)
        for image in range(2):
            expected, expected_totals = reference.merge(tokens[image], sizes[image], groups[image], value)
            np.testing.assert_allclose(values[image], expected, rtol=0, atol=1e-5)
            np.testing.assert_array_equal(totals[image], expected_totals)
    for image in range(2):
        place = [next(new for new, group in enumerate(groups[image]) if old in group) for old in range(count)]
        np.testing.assert_array_equal(found.place[image], place)


def test_restored_groups_hold_their_mean() -> None:
    tokens = normal(1, 12, 4)
    found = match(tokens, 4)
    values, sizes = merge(tokens, jnp.ones((1, 12)), found)
    np.testing.assert_allclose(take(values, found.place).sum(axis=1), tokens.sum(axis=1), rtol=0, atol=1e-5)
    assert float(sizes.sum()) == 12
    assert len(np.unique(found.place)) == 8


def test_a_medoid_is_a_token_and_of_twins_the_partner() -> None:
    """Two equal sizes are equally near to their mean; a token of size nine pulls the mean to itself."""
    tokens = normal(1, 2, 6)
    found = match(tokens, 1)
    [[equal]] = merge(tokens, jnp.ones((1, 2)), found, value="medoid")[0]
    np.testing.assert_array_equal(equal, tokens[0, 1])
    [[heavy]] = merge(tokens, jnp.array([[9.0, 1.0]]), found, value="medoid")[0]
    np.testing.assert_array_equal(heavy, tokens[0, 0])


@pytest.mark.parametrize("value", ["mean", "medoid"])
def test_bfloat16_is_compared_and_averaged_in_float32(value: str) -> None:
    tokens = jnp.asarray(normal(1, 40, 16), jnp.bfloat16)
    wide = tokens.astype(jnp.float32)
    found, expected = match(tokens, 15), match(wide, 15)
    np.testing.assert_array_equal(found.place, expected.place)
    values, _ = merge(tokens, jnp.full((1, 40), 3.0), found, value=value)
    assert values.dtype == jnp.bfloat16
    exact = merge(wide, jnp.full((1, 40), 3.0), expected, value=value)[0]
    np.testing.assert_array_equal(values, exact.astype(jnp.bfloat16))


def test_tokens_of_zeros_are_no_nan() -> None:
    found = match(jnp.zeros((1, 6, 4)), 3)
    assert np.isfinite(merge(jnp.zeros((1, 6, 4)), jnp.ones((1, 6)), found)[0]).all()


def test_neighbours_on_an_even_grid_are_of_different_halves() -> None:
    """Where every second token of the flattened grid makes whole columns."""
    second = checkerboard((4, 6)).reshape(4, 6)
    assert np.all(second[1:] != second[:-1]) and np.all(second[:, 1:] != second[:, :-1])
    assert not second[0, 0] and second.sum() == 12
    stripes = alternate(24).reshape(4, 6)
    assert np.all(stripes[1:] == stripes[:-1])


@pytest.mark.parametrize("grid", [(6, 5), (5, 7), (4, 1)])
def test_on_an_odd_number_of_columns_the_halves_alternate(grid: tuple[int, int]) -> None:
    np.testing.assert_array_equal(checkerboard(grid), alternate(grid[0] * grid[1]))


def test_halves_of_a_grid_are_matched_as_the_reference_does() -> None:
    metric = normal(2, 24, 8)
    found = match_tokens(jnp.asarray(metric), 7, second=checkerboard((4, 6)))
    for image in range(2):
        groups = reference.match(metric[image], 7, columns=6)
        place = [next(new for new, group in enumerate(groups) if old in group) for old in range(24)]
        np.testing.assert_array_equal(found.place[image], place)
