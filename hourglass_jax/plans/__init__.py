"""What a plan is, and every kind of plan."""
