"""Attention to some of the keys, which may be biased, against a loop over heads and queries in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from hourglass_jax.ops.masked_attention import masked_attention

BATCH, QUERIES, KEYS, HEADS, WIDTH = 2, 5, 7, 3, 4


def reference(query, key, value, allowed, key_bias) -> np.ndarray:
    mixed = np.zeros((BATCH, QUERIES, HEADS, WIDTH))
    for image, place, head in np.ndindex(BATCH, QUERIES, HEADS):
        read = allowed[image, place] if allowed[image, place].any() else np.ones(KEYS, bool)
        logits = key[image, read, head] @ query[image, place, head] / WIDTH**0.5 + key_bias[image, read]
        weights = np.exp(logits - logits.max())
        mixed[image, place, head] = weights @ value[image, read, head] / weights.sum()
    return mixed


@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_softmax_over_what_may_be_read(biased: bool) -> None:
    random = np.random.default_rng(0)
    query = random.normal(size=(BATCH, QUERIES, HEADS, WIDTH)).astype(np.float32)
    key, value = random.normal(size=(2, BATCH, KEYS, HEADS, WIDTH)).astype(np.float32)
    allowed = random.random((BATCH, QUERIES, KEYS)) < 0.5
    allowed[0, 2] = False
    bias = np.log(random.integers(1, 9, (BATCH, KEYS))).astype(np.float32)
    arrays = map(jnp.asarray, (query, key, value, allowed))
    found = masked_attention(*arrays, key_bias=jnp.asarray(bias) if biased else None)
    expected = reference(query, key, value, allowed, bias * biased)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
