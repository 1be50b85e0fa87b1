"""Thousands of random hostile and damaged files: `python -m tests.fuzz`."""
