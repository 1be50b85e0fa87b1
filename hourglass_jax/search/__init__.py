"""Looking for plans: costs, ablations, the tuner."""
