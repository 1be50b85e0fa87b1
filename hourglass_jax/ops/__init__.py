"""Pure functions on arrays: clustering, reconstruction, pooling, resizing, attention; without Flax."""
