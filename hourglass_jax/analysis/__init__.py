"""What an hourglass saves and what it costs: multiply-accumulates, latency, fidelity."""
