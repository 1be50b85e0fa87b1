"""Text from files of unknown origin, for terminals and messages."""

LONGEST = 1500
"""Maximum number of characters of a message."""


def printable(text: str, longest: int = LONGEST) -> str:
    r"""Makes a text safe to print: escapes what is not printable, and cuts the middle of a long text.

    Args:
        text: any text, such as a file name or a name in a checkpoint.
        longest: maximum number of characters before escaping.

    Returns:
        One line.

    >>> print(printable("red: \x1b[31m, and a\nline"))
    red: \x1b[31m, and a\nline
    >>> printable("0123456789abcdef", longest=11)
    '012 ... def'
    """
    if len(text) > longest:
        half = (longest - 5) // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
