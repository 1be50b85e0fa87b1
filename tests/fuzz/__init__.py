"""Hostile and damaged files, drawn by the thousand: `python -m tests.fuzz`."""
