"""Limits of the resources that reading a file may use, for all formats."""

from checkpoints_convert.errors import CheckpointError

LIMITS = {
    "steps": 5_000_000,
    "objects": 1_000_000,
    "levels of containers": 200,
    "tensors": 50_000,
    "keys that are tuples or no plain numbers": 10_000,
}
"""Resource -> its limit for one file."""

EXPANSION = 64
"""Maximum ratio of the unpacked, copied or written data to the size of the file."""

LONGEST_NAME = 1000
"""Maximum number of characters of a tensor's name."""

SMALL = 1 << 20
"""Bytes that any file may unpack to, however small."""


class Budget:
    """Counts the resources that a file uses, including nested files. Hashing is counted before it is done.

    Args:
        size: size of the file in bytes.
    """

    def __init__(self, size: int):
        self._left = {**LIMITS, "bytes": EXPANSION * size + SMALL}
        self._limits = dict(self._left)

    def spend(self, what: str, amount: int = 1) -> None:
        """Spends an amount of a resource of `LIMITS`, or of "bytes", which are unpacked and copied.

        Raises:
            CheckpointError: the budget is exceeded.
        """
        self._left[what] -= amount
        if self._left[what] < 0:
            raise exceeded(what, self._limits[what])

    def left(self, what: str) -> int:
        """The remaining amount of a resource."""
        return self._left[what]

    def check_depth(self, depth: int) -> None:
        """Checks the nesting depth of containers.

        Raises:
            CheckpointError: it is larger than in any real checkpoint.
        """
        if depth > self._limits["levels of containers"]:
            raise exceeded("levels of containers", self._limits["levels of containers"])


def exceeded(what: str, limit: int) -> CheckpointError:
    """Builds the error of a file that exceeds its budget."""
    return CheckpointError(f"expected a file within the limits of its reader, got more than {limit:,} {what}")
