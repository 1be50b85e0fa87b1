import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass, expedite
from hourglass_jax.backbones.layers import Block
from hourglass_jax.backbones.vit import ViT, ViTConfig
from hourglass_jax.plans.base import Plan, Tokens
from tests.reference import hourglass as reference

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = ViTConfig(
    patch_size=4, width=32, depth=3, heads=2, special_tokens=2, position_grid=(6, 5), layer_scale=True
)
GRID = CONFIG.position_grid
SIDES = (24, 20)
ALL = (0, 1, 2)
PLAN = Hourglass(1, (3, 2), window=3, iterations=2, neighbors=3)


def random_vit(config: ViTConfig = CONFIG, *, dtype: jnp.dtype = jnp.float32) -> ViT:
    """With parameters of which none is trivially 0 or 1."""
    vit = nnx.eval_shape(lambda: ViT(config, dtype=dtype, rngs=nnx.Rngs(0)))
    rng = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(vit)):
        noise = rng.normal(size=parameter.shape)
        if path[-1] == "kernel":
            noise *= parameter.shape[0] ** -0.5
        elif parameter.ndim == 1:
            noise = 0.3 * noise + (path[-1] != "bias")
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return vit


@pytest.fixture(scope="module")
def vit() -> ViT:
    return random_vit()


def random_images(batch: int = 2, sides: tuple[int, int] = SIDES) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *sides, 3)), jnp.float32)


def arrays_of(vit: ViT, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, tuple[jax.Array, ...]]:
    """Special tokens, tokens, tokens restored to the full grid, and what every block returns."""
    found = vit(images, intermediates=ALL)
    values = found.tokens.values
    return found.special, values, found.tokens.restore(values), [each.tokens for each in found.intermediates]


features = nnx.jit(arrays_of)


@nnx.jit
def run_block(block: Block, x: jax.Array) -> jax.Array:
    return block(x)


def by_reference(vit: ViT, images: jax.Array, plan: Hourglass) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Special tokens, restored tokens and restored intermediates of the paper's Figure 2."""
    end = vit.depth if plan.beta is None else plan.alpha + plan.beta
    values = vit.patch_embedding(images) + vit.position_embedding[...].reshape(1, -1, CONFIG.width)
    special = np.repeat(np.asarray(vit.special_tokens[...])[None], len(images), axis=0)
    intermediates = []
    for index, block in enumerate(vit.blocks):
        if index == plan.alpha:
            z = values
            s = values = reference.cluster_tokens(
                z,
                token_grid=GRID,
                cluster_grid=plan.clusters,
                window=plan.window,
                iterations=plan.iterations,
                temperature=plan.temperature,
                representative=plan.representative,
            )
        x = run_block(block, jnp.concatenate([special, values], axis=1))
        special, values = x[:, : CONFIG.special_tokens], x[:, CONFIG.special_tokens :]
        restored = values
        if plan.alpha <= index < end:
            restored = reference.reconstruct_tokens(
                values,
                tokens=z,
                clusters=s,
                neighbors=plan.neighbors,
                temperature=plan.temperature,
                token_grid=GRID,
            )
        if index == end - 1:
            values = restored
        intermediates.append(restored)
    return vit.norm(special), vit.norm(values), intermediates


@pytest.mark.parametrize("plan", [None, PLAN])
@pytest.mark.parametrize(("special_tokens", "sides", "count"), [(0, SIDES, 30), (1, (12, 28), 21), (5, SIDES, 30)])
def test_shapes(plan: Hourglass | None, special_tokens: int, sides: tuple[int, int], count: int) -> None:
    vit = expedite(random_vit(dataclasses.replace(CONFIG, special_tokens=special_tokens)), plan)
    special, values, restored, intermediates = nnx.eval_shape(arrays_of, vit, random_images(2, sides))
    assert special.shape == (2, special_tokens, 32)
    chex.assert_shape([values, restored, *intermediates], (2, count, 32))
    assert vit.token_grid(*sides) == (sides[0] // 4, sides[1] // 4)


def test_logits_plan_leaves_the_clusters_to_the_head(vit: ViT) -> None:
    fast = expedite(vit, dataclasses.replace(PLAN, reconstruct="logits"))
    _, values, restored, intermediates = nnx.eval_shape(arrays_of, fast, random_images())
    assert values.shape == (2, 6, 32)
    chex.assert_shape([restored, *intermediates], (2, 30, 32))


@pytest.mark.parametrize("plan", [None, PLAN])
def test_computation_in_bfloat16_keeps_float32_parameters(plan: Hourglass | None) -> None:
    vit = expedite(random_vit(dtype=jnp.bfloat16), plan)
    chex.assert_type(jax.tree.leaves(nnx.state(vit)), jnp.float32)
    chex.assert_type(jax.tree.leaves(nnx.eval_shape(arrays_of, vit, random_images())), jnp.bfloat16)


class Segmenter(nnx.Module):
    def __init__(self, backbone: ViT) -> None:
        self.backbone = backbone
        self.head = nnx.Linear(32, 3, rngs=nnx.Rngs(0))


@pytest.mark.parametrize("wrap", [lambda vit: vit, Segmenter], ids=["backbone", "model"])
def test_expedite_shares_every_array_and_leaves_the_original(vit: ViT, wrap: type[Segmenter]) -> None:
    model = wrap(vit)
    arrays = [parameter.get_value() for _, parameter in nnx.to_flat_state(nnx.state(model))]
    fast = expedite(model, PLAN)
    shared = [parameter.get_value() for _, parameter in nnx.to_flat_state(nnx.state(fast))]
    assert type(fast) is type(model)
    assert fast is not model
    assert len(arrays) == len(shared) > 40
    assert all(ours is theirs for ours, theirs in zip(arrays, shared, strict=True))
    assert getattr(fast, "backbone", fast).plan is PLAN
    assert vit.plan is None


def test_without_a_plan_the_output_is_the_original(vit: ViT) -> None:
    images = random_images()
    expected = features(vit, images)
    fast = expedite(vit, PLAN)
    chex.assert_trees_all_equal(features(expedite(vit, None), images), expected)
    chex.assert_trees_all_equal(features(expedite(fast, None), images), expected)
    assert fast.plan is PLAN
    assert np.abs(features(fast, images)[1] - expected[1]).max() > 0.1


@pytest.mark.parametrize(
    "plan", [PLAN, dataclasses.replace(PLAN, alpha=0, beta=2, temperature=20.0, representative="medoid")]
)
def test_expedited_vit_is_figure_2(vit: ViT, plan: Hourglass) -> None:
    images = random_images()
    special, values, restored, intermediates = features(expedite(vit, plan), images)
    expected_special, expected, expected_intermediates = by_reference(vit, images, plan)
    np.testing.assert_allclose(special, expected_special, rtol=0, atol=1e-4)
    np.testing.assert_allclose(values, expected, rtol=0, atol=1e-4)
    np.testing.assert_array_equal(restored, values)
    for ours, theirs in zip(intermediates, expected_intermediates, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


def test_clusters_left_to_the_head_restore_to_the_reconstruction(vit: ViT) -> None:
    """The last block's intermediate is restored before the final norm, the head's tokens after it."""
    plan = dataclasses.replace(PLAN, temperature=20.0, reconstruct="logits")
    images = random_images()
    special, values, restored, intermediates = features(expedite(vit, plan), images)
    expected_special, _, expected_intermediates = by_reference(vit, images, plan)
    np.testing.assert_allclose(special, expected_special, rtol=0, atol=1e-4)
    for ours, theirs in zip(intermediates, expected_intermediates, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)

    z = intermediates[plan.alpha - 1]
    clusters = reference.cluster_tokens(
        z,
        token_grid=GRID,
        cluster_grid=plan.clusters,
        window=plan.window,
        iterations=plan.iterations,
        temperature=plan.temperature,
    )
    expected = reference.reconstruct_tokens(
        values, tokens=z, clusters=clusters, neighbors=plan.neighbors, temperature=plan.temperature
    )
    np.testing.assert_allclose(restored, expected, rtol=0, atol=1e-4)


def test_one_image_without_jit_is_its_part_of_the_jitted_batch(vit: ViT) -> None:
    fast = expedite(vit, PLAN)
    images = random_images()
    special, values, *_ = features(fast, images)
    alone = fast(images[1:])
    np.testing.assert_allclose(alone.special, special[1:], rtol=0, atol=1e-5)
    np.testing.assert_allclose(alone.tokens.values, values[1:], rtol=0, atol=1e-5)
    assert alone.token_grid == GRID


@dataclasses.dataclass(frozen=True)
class MergeTwins(Plan):
    """Keeps the first of the two equal halves of a grid, as tokens of size two."""

    with_sizes: bool

    def before_block(self, index: int, tokens: Tokens, *, depth: int, token_grid: tuple[int, int]) -> Tokens:
        if index == 0:
            half = tokens.values[:, : tokens.values.shape[1] // 2]
            sizes = jnp.full(half.shape[:2], 2.0) if self.with_sizes else None
            return Tokens(half, lambda values: jnp.tile(values, (1, 2, 1)), sizes)
        return Tokens(tokens.restore(tokens.values)) if index == depth else tokens


def test_a_token_of_size_two_counts_as_two_copies() -> None:
    vit = random_vit()
    upper = vit.position_embedding[:3]
    vit.position_embedding[...] = jnp.concatenate([upper, upper])
    images = jnp.tile(random_images(2, (12, 20)), (1, 2, 1, 1))
    expected = features(vit, images)
    chex.assert_trees_all_close(features(expedite(vit, MergeTwins(True)), images), expected, rtol=0, atol=1e-5)
    without_sizes = features(expedite(vit, MergeTwins(False)), images)
    assert np.abs(without_sizes[0] - expected[0]).max() > 0.01


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (Hourglass(3, (2, 2)), r"alpha must be less than .* 3 blocks, got 3"),
        (Hourglass(1, (2, 2), beta=3), r"alpha \+ beta must be at most .* 3 blocks, got 1 \+ 3"),
    ],
)
def test_plan_that_does_not_fit_the_blocks_is_named(vit: ViT, plan: Hourglass, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expedite(vit, plan)


def test_more_clusters_than_tokens_are_named(vit: ViT) -> None:
    fast = expedite(vit, Hourglass(1, (6, 6)))
    with pytest.raises(ValueError, match=r"must not outnumber .* 6 x 6 clusters for 6 x 5 tokens"):
        fast(random_images())


def test_model_without_a_backbone_is_named() -> None:
    with pytest.raises(ValueError, match="expected a model whose backbone takes a plan, got Linear"):
        expedite(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), PLAN)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 24, 22, 3), "multiples of 4 pixels, got 24 x 22"),
        ((1, 2, 20, 3), "multiples of 4 pixels, got 2 x 20"),
        ((1, 24, 0, 3), "multiples of 4 pixels, got 24 x 0"),
        ((24, 20, 3), r"\[batch, rows, columns, 3\], got \(24, 20, 3\)"),
        ((1, 3, 24, 20), r"\[batch, rows, columns, 3\], got \(1, 3, 24, 20\)"),
    ],
)
def test_bad_images_are_named(vit: ViT, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vit(jnp.zeros(shape))


@pytest.mark.parametrize("wrong", [3, -1])
def test_bad_intermediates_are_named(vit: ViT, wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"blocks 0 to 2, got \(0, {wrong}\)"):
        vit(random_images(), intermediates=(0, wrong))


def test_bad_heads_are_named() -> None:
    with pytest.raises(ValueError, match="multiple of heads, got width 32 and 5 heads"):
        ViTConfig(width=32, heads=5)


def test_plans_are_frozen_and_hashable() -> None:
    same = Hourglass(1, [3, 2], window=3, iterations=2, neighbors=3)
    assert same == PLAN
    assert hash(same) == hash(PLAN)
    assert len({PLAN, same, dataclasses.replace(PLAN, alpha=2)}) == 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        PLAN.alpha = 2


@pytest.mark.parametrize(
    ("field", "wrong"),
    [
        ("alpha", -1),
        ("alpha", 1.5),
        ("alpha", True),
        ("clusters", (3,)),
        ("clusters", (3, 0)),
        ("clusters", 9),
        ("beta", 0),
        ("beta", "all"),
        ("window", 4),
        ("window", -3),
        ("iterations", -1),
        ("iterations", 2.0),
        ("temperature", 0),
        ("temperature", -5.0),
        ("temperature", float("nan")),
        ("temperature", "warm"),
        ("temperature", None),
        ("neighbors", 0),
        ("representative", "median"),
        ("reconstruct", "masks"),
    ],
)
def test_bad_plan_fields_are_named(field: str, wrong: object) -> None:
    with pytest.raises(ValueError) as error:
        dataclasses.replace(PLAN, **{field: wrong})
    message = str(error.value)
    assert message.startswith(field)
    assert message.endswith(f"got {wrong!r}")


def test_logits_plan_with_beta_is_named() -> None:
    with pytest.raises(ValueError, match=r"needs beta=None: .* got beta=1"):
        dataclasses.replace(PLAN, beta=1, reconstruct="logits")


@pytest.mark.parametrize(
    ("plan", "counts"),
    [
        (PLAN, [30, 6, 6, 30]),
        (dataclasses.replace(PLAN, alpha=0, beta=2), [6, 6, 30, 30]),
        (dataclasses.replace(PLAN, reconstruct="logits"), [30, 6, 6, 6]),
    ],
)
def test_counts_of_tokens(plan: Hourglass, counts: list[int]) -> None:
    assert plan.counts(CONFIG.depth, GRID) == counts
