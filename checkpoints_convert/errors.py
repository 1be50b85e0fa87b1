"""The error of this package, and checks that raise it."""

import functools
import reprlib
from collections.abc import Callable
from typing import Any

from hourglass_jax.io.text import printable


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message is one printable sentence for its user."""

    def __init__(self, message: object = ""):
        super().__init__(printable(str(message)))


class _Brief(reprlib.Repr):
    """Short representations; that of bytes does not build the long one first."""

    def repr_bytes(self, value: bytes, level: int) -> str:
        return repr(value) if len(value) <= 20 else f"{value[:20]!r}..."

    def repr_ndarray(self, value: Any, level: int) -> str:
        return f"an array of shape {self.repr1(value.shape, level)}"


brief = _Brief().repr
"""A short representation of any value, for messages."""


def unexpected(expected: str, got: str) -> CheckpointError:
    """Builds the error that says what was expected and what was got."""
    return CheckpointError(f"expected {expected[:300]}, got {got[:300]}")


def check(holds: bool, expected: str, got: str) -> None:
    """Raises the error of `unexpected` unless `holds`."""
    if not holds:
        raise unexpected(expected, got)


def in_one_sentence(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorates a function so that any error about unexpected shapes or settings is a `CheckpointError`.

    The first argument of the function is the path of the file.
    """

    @functools.wraps(function)
    def wrapped(source: object, *args: Any, **options: Any) -> Any:
        try:
            return function(source, *args, **options)
        except CheckpointError:
            raise
        except ValueError as error:
            raise CheckpointError(str(error)) from error
        except (ArithmeticError, AttributeError, LookupError, TypeError, RecursionError) as error:
            expected = "expected shapes and settings that make a model, got others"
            raise CheckpointError(f"{source}: {expected} ({type(error).__name__}: {error})") from error

    return wrapped
