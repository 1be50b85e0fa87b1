"""DynamicViT's prediction module, trained to score the importance of tokens."""

import jax
import jax.numpy as jnp
from flax import nnx

NORM_EPSILON = 1e-5


class PredictionModule(nnx.Module):
    """Tokens to the log-probability of keeping each one.

    One half of a token's features is local, the other half is the mean over all tokens.

    Source: raoyongming/DynamicViT, vit.py (`PredictorLG`).
    """

    def __init__(self, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> None:
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, dtype=dtype, rngs=rngs)
        self.embedding = nnx.Linear(width, width, dtype=dtype, rngs=rngs)
        self.hidden1 = nnx.Linear(width, width // 2, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(width // 2, width // 4, dtype=dtype, rngs=rngs)
        self.classifier = nnx.Linear(width // 4, 2, dtype=dtype, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """[B, M, C] -> [B, M], float32."""
        x = _gelu(self.embedding(self.norm(tokens)))
        own, others = jnp.split(x, 2, axis=-1)
        x = jnp.concatenate([own, jnp.broadcast_to(others.mean(axis=1, keepdims=True), others.shape)], axis=-1)
        x = self.classifier(_gelu(self.hidden2(_gelu(self.hidden1(x)))))
        return jax.nn.log_softmax(x.astype(jnp.float32), axis=-1)[..., 0]


def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=False)
