"""Plans: the base class, and every kind of plan."""
