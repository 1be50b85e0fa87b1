"""Models: a backbone, a head and the preparation of images; one file per system."""
