"""How well models label the pixels of published data sets: reading, counting, and runs that can be resumed."""
