"""The saliency decoder against plain NumPy, and the model's contract with plans and the `Predictor`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from hourglass_jax import Hourglass, expedite
from hourglass_jax.backbones.vit import ViTConfig
from hourglass_jax.imaging.windows import whole_view
from hourglass_jax.models.saliency import Saliency, SaliencyConfig, UpsamplingStage
from hourglass_jax.plans.hourglass import Tokens
from hourglass_jax.tasks import saliency as tasks

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIG = SaliencyConfig(
    ViTConfig(patch_size=4, width=16, heads=2, depth=1, position_grid=(3, 3), layer_scale=True),
    decoder_widths=(8, 4),
)
SIZE = (24, 20)
TASK = tasks.Saliency()
PLAN = Hourglass(0, (3, 2), iterations=0, temperature=1.0, neighbors=3, reconstruct="logits")


def randomized(model: nnx.Module) -> nnx.Module:
    """`model` with parameters of which none is trivially 0 or 1; variances stay positive."""
    rng = np.random.default_rng(0)
    for path, parameter in nnx.to_flat_state(nnx.state(model)):
        noise = rng.normal(size=parameter.shape) * 0.3
        if path[-1] == "var":
            noise = 0.5 + np.abs(noise)
        elif path[-1] in ("scale", "scale1", "scale2"):
            noise += 1
        parameter.set_value(jnp.asarray(noise, parameter.dtype))
    return model


def saliency(dtype: jnp.dtype = jnp.float32) -> Saliency:
    return randomized(nnx.eval_shape(lambda: Saliency(CONFIG, dtype=dtype, rngs=nnx.Rngs(0))))


@pytest.fixture(scope="module")
def model() -> Saliency:
    return saliency()


def random_images(batch: int = 2) -> jax.Array:
    return jnp.asarray(np.random.default_rng(1).normal(size=(batch, *SIZE, 3)), jnp.float32)


@nnx.jit
def run(model: Saliency, images: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The backbone's tokens (or clusters), the saliency, and the saliency decoded from the restored tokens."""
    features = model.backbone(images)
    full = features._replace(tokens=Tokens(features.tokens.restore(features.tokens.values)))
    return features.tokens.values, model.decode(features, SIZE), model.decode(full, SIZE)


def by_loops(stage: UpsamplingStage, x: np.ndarray) -> np.ndarray:
    """Transposed convolution (4 x 4, stride 2, padding 1), batch norm and ReLU; inputs add 4 x 4 patches."""
    kernel, bias, scale, shift, mean, var = (
        np.asarray(parameter[...], np.float64)
        for parameter in (
            *(stage.kernel, stage.bias),
            *(stage.norm.scale, stage.norm.bias, stage.norm.mean, stage.norm.var),
        )
    )
    batch, rows, columns, _ = x.shape
    padded = np.zeros((batch, 2 * rows + 2, 2 * columns + 2, len(bias)))
    for b in range(batch):
        for i in range(rows):
            for j in range(columns):
                for u in range(4):
                    for v in range(4):
                        padded[b, 2 * i + u, 2 * j + v] += x[b, i, j] @ kernel[u, v]
    convolved = padded[:, 1:-1, 1:-1] + bias
    return np.maximum((convolved - mean) / np.sqrt(var + 1e-5) * scale + shift, 0)


@pytest.mark.parametrize("grid", [(1, 1), (3, 5), (4, 2)])
def test_an_upsampling_stage_is_a_transposed_convolution_with_batch_norm_and_relu(grid: tuple[int, int]) -> None:
    stage = randomized(nnx.eval_shape(lambda: UpsamplingStage(6, 5, dtype=jnp.float32, rngs=nnx.Rngs(0))))
    x = np.random.default_rng(2).normal(size=(2, *grid, 6))
    upsampled = nnx.jit(lambda stage, x: stage(x))(stage, jnp.asarray(x, jnp.float32))
    assert upsampled.shape == (2, 2 * grid[0], 2 * grid[1], 5)
    np.testing.assert_allclose(upsampled, by_loops(stage, x), rtol=0, atol=2e-6)


@pytest.mark.parametrize("plan", [None, PLAN])
def test_the_output_is_a_probability_for_every_pixel(model: Saliency, plan: Hourglass | None) -> None:
    _, output, _ = run(expedite(model, plan), random_images())
    assert (output.shape, output.dtype) == ((2, *SIZE), jnp.float32)
    assert 0 <= output.min() < output.max() <= 1


def test_decoding_clusters_equals_decoding_the_restored_tokens(model: Saliency) -> None:
    clusters, output, expected = run(expedite(model, PLAN), random_images())
    assert clusters.shape == (2, 3 * 2, CONFIG.backbone.width)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-6)


def test_results_agree_where_both_are_at_least_one_half_or_neither() -> None:
    assert TASK.agreement(np.array([0.0, 0.49, 0.5, 1.0]), np.array([0.4, 0.5, 0.9, 0.2])) == 0.5


@pytest.mark.parametrize("size", [SIZE, (7, 61), (1, 1)])
def test_results_have_the_images_size(size: tuple[int, int]) -> None:
    output = np.random.default_rng(3).random(SIZE, np.float32)
    finished = TASK.postprocess(*whole_view(output), size)
    assert (finished.shape, finished.dtype) == (size, np.float32)
    assert finished.min() >= 0 and finished.max() <= 1


def test_a_result_of_the_models_size_is_its_output() -> None:
    output = np.random.default_rng(3).random(SIZE, np.float32)
    np.testing.assert_array_equal(TASK.postprocess(*whole_view(output), SIZE), output)
