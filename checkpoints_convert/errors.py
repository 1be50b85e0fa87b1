"""The one error of this package."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message is one sentence for its user."""
