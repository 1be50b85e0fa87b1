"""What the paper's equations say, in plain NumPy: the oracles of the tests."""
