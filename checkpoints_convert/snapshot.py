"""A copy of a file in memory, independent of later changes of the file."""

import hashlib
import mmap
import os
import stat
from pathlib import Path
from typing import NamedTuple

from checkpoints_convert.errors import CheckpointError
from hourglass_jax.io.memory import free_memory

_CHUNK = 1 << 24


class Snapshot(NamedTuple):
    """The bytes of a file, read-only, and their SHA-256 in hexadecimal."""

    data: memoryview
    sha256: str


def snapshot(path: Path) -> Snapshot:
    """Reads a whole file.

    Raises:
        CheckpointError: it is no plain file, changes while it is read, or does not fit into memory.
        OSError: it cannot be opened or read.
    """
    with path.open("rb", buffering=0) as file:
        before = os.fstat(file.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise CheckpointError("expected a plain file, got a device, a pipe or a folder")
        digest = hashlib.sha256()
        if not before.st_size:
            return Snapshot(memoryview(b""), digest.hexdigest())
        free = free_memory()
        if free is not None and before.st_size > free:
            raise CheckpointError(
                f"the file's {before.st_size / 2**30:.1f} GiB do not fit into memory, of which "
                f"{free / 2**30:.1f} GiB are free: end other programs, or convert it on a larger machine"
            )
        try:
            data = memoryview(mmap.mmap(-1, before.st_size))
        except (OSError, OverflowError, MemoryError):
            raise CheckpointError(f"the file's {before.st_size:,} bytes do not fit into memory") from None
        place = 0
        while count := file.readinto(data[place : place + _CHUNK]):
            digest.update(data[place : place + count])
            place += count
        after = os.fstat(file.fileno())
        is_whole = place == before.st_size and not file.read(1)
    if not is_whole or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise CheckpointError("the file changed while it was read: convert it again when it is complete")
    return Snapshot(data.toreadonly(), digest.hexdigest())
