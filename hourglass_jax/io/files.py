"""Atomic writing of files, and their hashes."""

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import stat
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # without such locks, files of killed processes are not removed
    fcntl = None

_TEMPORARY = re.compile(r"\.hourglass-[0-9a-f]{32}\.tmp")
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]
_written: set[Path] = set()
"""Temporary files of this process."""


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields the path of an empty temporary file beside `path`, which replaces `path` at the end.

    If the block fails or a signal ends the process, the temporary file is removed and an older `path` does not
    change. Temporary files of killed processes in the folder are removed. Missing folders are created.

    Raises:
        ValueError: `path` is a symbolic link, a device or another special file.
    """
    path = Path(path)
    check_target(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    try:
        temporary, lock = _locked(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        with _removed_by_signals(temporary):
            yield temporary
            check_target(path)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def write_json(path: str | os.PathLike[str], document: object) -> None:
    """Writes a JSON file atomically.

    Raises:
        ValueError: the file cannot be written.
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
    """Whether a file is hidden or the operating system's: neither a photograph nor the folder of a class."""
    return name.startswith(".") or name.casefold() in {"__macosx", "thumbs.db", "desktop.ini"}


def check_target(path: Path) -> None:
    """Refuses to replace what is no plain file; that a folder is none, the system says itself."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return
    if stat.S_ISLNK(mode):
        raise ValueError(f"{path} is a symbolic link, which would be replaced: name the file it stands for")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise ValueError(f"{path} is a device or a pipe, which would be replaced: name a plain file")


def _locked(folder: Path) -> tuple[Path, int]:
    """Creates a temporary file, and locks it until this process ends; returns its path and descriptor."""
    while True:
        path = folder / f".hourglass-{uuid.uuid4().hex}.tmp"
        lock = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        if _locks(lock) is not False and path.exists():  # otherwise another process has just removed it
            return path, lock
        os.close(lock)
        path.unlink(missing_ok=True)


def _locks(descriptor: int) -> bool | None:
    """Whether a file could be locked; None if the system has no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@functools.cache
def _sweep(folder: Path) -> None:
    """Removes temporary files in a folder that no process has locked, once per process."""
    with contextlib.suppress(OSError):
        for entry in os.scandir(folder):
            if _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                with contextlib.suppress(OSError):
                    _remove_unlocked(entry.path)


def _remove_unlocked(path: str) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        if _locks(descriptor):
            os.unlink(path)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _removed_by_signals(temporary: Path) -> Iterator[None]:
    """Removes temporary files when a signal ends the process."""

    def end(number: int, _: object) -> None:
        for path in [*_written]:
            path.unlink(missing_ok=True)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    taken = []
    if threading.current_thread() is threading.main_thread():
        taken = [number for number in _SIGNALS if signal.getsignal(number) is signal.SIG_DFL]
    _written.add(temporary)
    try:
        for number in taken:
            signal.signal(number, end)
        yield
    finally:
        for number in taken:
            signal.signal(number, signal.SIG_DFL)
        _written.discard(temporary)
