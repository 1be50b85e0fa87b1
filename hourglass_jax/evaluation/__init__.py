"""How well models do on published data sets: reading, counting, and runs that can be resumed."""
