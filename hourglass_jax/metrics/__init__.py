"""How well results agree with the ground truth, in NumPy."""
