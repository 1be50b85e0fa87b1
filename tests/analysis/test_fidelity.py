"""Cosine similarities against NumPy, and where an expedited backbone starts to differ."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass, expedite
from hourglass_jax.analysis.fidelity import cosine_by_block, cosine_similarity
from hourglass_jax.backbones.vit import ViT, ViTConfig

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = ViTConfig(patch_size=4, width=16, heads=2, depth=2, position_grid=(4, 3))
PLAN = Hourglass(1, (2, 2), iterations=0, temperature=1.0, neighbors=2)


def random_vit() -> ViT:
    vit = nnx.eval_shape(lambda: ViT(CONFIG, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    nnx.update(vit, jax.tree.map(lambda each: jnp.asarray(rng.normal(0, 0.5, each.shape)), nnx.state(vit)))
    return vit


def test_the_cosine_is_the_mean_over_tokens() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 3, 7, 5))
    cosines = np.einsum("bnc,bnc->bn", a, b) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(
        cosine_similarity(jnp.asarray(a), jnp.asarray(b)), cosines.mean(-1), rtol=0, atol=1e-6
    )


def test_the_cosine_of_equal_scaled_and_opposite_features() -> None:
    a = jax.random.normal(jax.random.key(0), (2, 7, 5))
    for scale in (1, 100, -0.01):
        np.testing.assert_allclose(cosine_similarity(scale * a, a), np.sign(scale), rtol=0, atol=1e-6)


def test_a_zero_vector_counts_as_zero() -> None:
    a = jnp.ones((1, 4, 5))
    np.testing.assert_allclose(cosine_similarity(a.at[0, 0].set(0), a), 0.75, atol=1e-6)
    np.testing.assert_array_equal(cosine_similarity(0 * a, 0 * a), 0)


def test_the_cosine_is_taken_in_float32() -> None:
    a = jax.random.normal(jax.random.key(0), (1, 7, 300), jnp.bfloat16)
    similarity = cosine_similarity(a, a)
    assert similarity.dtype == jnp.float32
    np.testing.assert_allclose(similarity, 1, atol=1e-6)


def test_features_differ_from_the_first_block_on_clusters_to_the_final_ones() -> None:
    original = random_vit()
    fast = expedite(original, PLAN)
    images = jax.random.normal(jax.random.key(1), (2, 16, 12, 3))
    by_block = cosine_by_block(fast, original, images)
    assert by_block.shape == (CONFIG.depth, 2)
    np.testing.assert_allclose(by_block[: PLAN.alpha], 1, atol=1e-6)
    assert (by_block[PLAN.alpha :] < 0.999).all()

    @nnx.jit
    def last(vit: ViT) -> tuple[jax.Array, jax.Array, jax.Array]:
        features = vit(images, intermediates=[CONFIG.depth - 1])
        unnormed = features.intermediates[0].tokens
        return unnormed, vit.norm(unnormed), features.tokens.values

    (found, normed, final), (expected, *_) = last(fast), last(original)
    np.testing.assert_allclose(by_block[-1], cosine_similarity(found, expected), atol=1e-6)
    np.testing.assert_allclose(normed, final, atol=1e-6)
