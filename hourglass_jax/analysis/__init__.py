"""What a plan saves and what it costs: multiply-accumulates, latency, fidelity."""
