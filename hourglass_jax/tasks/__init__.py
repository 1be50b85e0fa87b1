"""Tasks: from a model's outputs to results and visualizations, on the host."""
