"""What a file may ask of its reader, whatever its format: one budget, and one sentence when it is spent."""

from checkpoints_convert.errors import CheckpointError

LIMITS = {
    "steps": 5_000_000,
    "objects": 1_000_000,
    "levels of containers": 200,
    "tensors": 50_000,
    "keys that are tuples or no plain numbers": 10_000,
}
"""What is counted in a file, and how much of it is read."""

EXPANSION = 64
"""How many times its own size a file may become when it is unpacked, copied or written out."""

LONGEST_NAME = 1000
"""Characters of a tensor's name."""

SMALL = 1 << 20
"""Bytes that the smallest file may become."""


class Budget:
    """Counts what one file, with everything inside it, asks for. Hashes are never computed of what was not counted.

    Args:
        size: of the file, in bytes.
    """

    def __init__(self, size: int):
        self._left = {**LIMITS, "bytes": EXPANSION * size + SMALL}
        self._limits = dict(self._left)

    def spend(self, what: str, amount: int = 1) -> None:
        """Takes an amount of one of `LIMITS`, or of the "bytes" that are unpacked and copied.

        Raises:
            CheckpointError: there is not so much of it left.
        """
        self._left[what] -= amount
        if self._left[what] < 0:
            raise exceeded(what, self._limits[what])

    def left(self, what: str) -> int:
        """How much of it is left."""
        return self._left[what]

    def check_depth(self, depth: int) -> None:
        """Refuses containers in containers that are nested deeper than any checkpoint's.

        Raises:
            CheckpointError: they are.
        """
        if depth > self._limits["levels of containers"]:
            raise exceeded("levels of containers", self._limits["levels of containers"])


def exceeded(what: str, limit: int) -> CheckpointError:
    """The error of a file that asks for more than its budget."""
    return CheckpointError(f"expected a file within the limits of its reader, got more than {limit:,} {what}")
