"""Official weights to one safetensors file that `hourglass_jax.load` reads."""
