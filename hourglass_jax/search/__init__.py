"""Search for plans: costs, ablations, the tuner."""
