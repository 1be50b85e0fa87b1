"""Attention with decomposed relative positions against plain NumPy, pair by pair."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops import relative_position
from hourglass_jax.ops.relative_position import grid_attention, resized_table
from tests.reference.sam import resized_table as reference_table

BATCH, HEADS, WIDTH = 2, 3, 4


def arrays(grid: tuple[int, int], seed: int = 0) -> list[np.ndarray]:
    """Query, key and value."""
    random = np.random.default_rng(seed)
    return [random.normal(size=(BATCH, HEADS, WIDTH, grid[0] * grid[1])).astype(np.float32) for _ in range(3)]


def plain(query, key, value, grid, rows, columns) -> np.ndarray:
    """Over a whole map, [B, heads, D, N] -> [B, N, heads, D]."""
    height, width = grid
    rows, columns = reference_table(rows, height), reference_table(columns, width)
    mixed = np.zeros((len(query), grid[0] * grid[1], query.shape[1], query.shape[2]))
    for place in np.ndindex(query.shape[0], query.shape[1]):
        q, k, v = (each[place].astype(np.float64) for each in (query, key, value))
        for p in range(height * width):
            logits = q[:, p] @ k / np.sqrt(len(q))
            for other in range(height * width):
                down, across = p // width - other // width, p % width - other % width
                logits[other] += q[:, p] @ rows[down + height - 1] + q[:, p] @ columns[across + width - 1]
            weights = np.exp(logits - logits.max())
            mixed[place[0], p, place[1]] = v @ (weights / weights.sum())
    return mixed


def tables(height: int, width: int) -> list[np.ndarray]:
    random = np.random.default_rng(5)
    return [random.normal(size=(2 * side - 1, WIDTH)).astype(np.float32) for side in (height, width)]


@pytest.mark.parametrize(("grid", "trained"), [((3, 5), (3, 5)), ((5, 2), (3, 4))])
@pytest.mark.parametrize("chunk", [4, 512])
def test_attention_over_a_map(grid, trained, chunk, monkeypatch) -> None:
    """In chunks of a row or all at once, with tables of this size or another."""
    monkeypatch.setattr(relative_position, "QUERY_CHUNK", chunk)
    query, key, value = arrays(grid)
    rows, columns = tables(*trained)
    found = jax.jit(lambda *x: grid_attention(*x[:3], grid=grid, rows=x[3], columns=x[4]))(
        query, key, value, rows, columns
    )
    np.testing.assert_allclose(found, plain(query, key, value, grid, rows, columns), rtol=0, atol=1e-5)


@pytest.mark.parametrize("grid", [(4, 6), (3, 5), (1, 1)])
def test_windows_are_small_maps_filled_up_with_the_padding(grid) -> None:
    window, (query, key, value) = 2, arrays(grid)
    rows, columns = tables(window, window)
    padding = np.random.default_rng(7).normal(size=(3, HEADS, WIDTH)).astype(np.float32)
    found = grid_attention(
        *map(jnp.asarray, (query, key, value)),
        grid=grid,
        rows=jnp.asarray(rows),
        columns=jnp.asarray(columns),
        window=window,
        padding=jnp.asarray(padding),
    )
    expected = np.zeros((BATCH, *grid, HEADS, WIDTH))
    for top in range(0, grid[0], window):
        for left in range(0, grid[1], window):
            parts = []
            for each, fill in zip((query, key, value), padding, strict=True):
                part = np.broadcast_to(fill[None, :, :, None, None], (BATCH, HEADS, WIDTH, window, window)).copy()
                inside = each.reshape(BATCH, HEADS, WIDTH, *grid)[..., top : top + window, left : left + window]
                part[..., : inside.shape[-2], : inside.shape[-1]] = inside
                parts.append(part.reshape(BATCH, HEADS, WIDTH, -1))
            mixed = plain(*parts, (window, window), rows, columns).reshape(BATCH, window, window, HEADS, WIDTH)
            target = expected[:, top : top + window, left : left + window]
            target[...] = mixed[:, : target.shape[1], : target.shape[2]]
    np.testing.assert_allclose(found, expected.reshape(BATCH, -1, HEADS, WIDTH), rtol=0, atol=1e-5)


def test_no_array_holds_a_number_for_each_pair_and_head() -> None:
    """The largest array of a map of 24 x 24 tokens is smaller than the logits of one head are."""
    grid = (24, 24)
    query, key, value = (jax.ShapeDtypeStruct((1, 4, 8, 576), jnp.float32) for _ in range(3))
    table = jax.ShapeDtypeStruct((47, 8), jnp.float32)

    def run(query, key, value, table):
        return grid_attention(query, key, value, grid=grid, rows=table, columns=table)

    sizes = [shape.size for shape in shapes(jax.make_jaxpr(run)(query, key, value, table).jaxpr)]
    assert max(sizes) < 576**2


def shapes(jaxpr) -> list:
    found = [each.aval for equation in jaxpr.eqns for each in equation.outvars]
    for equation in jaxpr.eqns:
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            found += shapes(inner)
    return found


def test_tables_are_resized_linearly() -> None:
    table = np.random.default_rng(0).normal(size=(27, 5)).astype(np.float32)
    np.testing.assert_allclose(resized_table(jnp.asarray(table), 9), reference_table(table, 9), rtol=0, atol=1e-6)
    np.testing.assert_array_equal(resized_table(jnp.asarray(table), 14), table)
