"""Files that are whole or not there, and what tells one from another."""

import contextlib
import hashlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives the name of a file to write instead of `path`, beside it, which becomes `path` at the end.

    If the block fails, nothing is left of it, and an older `path` stays as it was. Missing folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike[str], document: object) -> None:
    """Writes a file of JSON, whole or not at all.

    Raises:
        ValueError: the file system refuses.
    """
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(document) + "\n", "utf-8")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror or error}") from error


def file_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_hidden(name: str) -> bool:
    """Whether a name in a folder is hidden, or is what a system leaves there: nobody's photograph or class."""
    return name.startswith(".") or name.casefold() in {"__macosx", "thumbs.db", "desktop.ini"}
