"""Pure functions on arrays: clustering, reconstruction, pooling, resizing, attention. No Flax here."""
