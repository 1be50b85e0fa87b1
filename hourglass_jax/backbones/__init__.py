"""Backbones: Flax NNX modules that turn an image into features, with a plan for how many tokens they work on."""
