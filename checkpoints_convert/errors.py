"""The one error of this package, and the check that raises it."""

LONGEST = 1500
"""Characters of a message."""


def printable(text: str, longest: int = LONGEST) -> str:
    """A text as a terminal can show it: what is not printable is escaped, what is too long is cut in its middle."""
    if len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message is one printable sentence for its user."""

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


def check(holds: bool, expected: str, got: str) -> None:
    """Raises a `CheckpointError` that says what was expected and what was got, unless `holds`."""
    if not holds:
        raise CheckpointError(f"expected {expected[:300]}, got {got[:300]}")
