"""Evaluation of models on published data sets: reading, counting, resumable runs."""
