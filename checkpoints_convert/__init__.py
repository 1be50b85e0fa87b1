"""Conversion of official weights to a safetensors file that `hourglass_jax.load` reads."""
