"""Zip archives: verified members, as views if they are stored uncompressed."""

import io
import struct
import zipfile
import zlib

from checkpoints_convert.budget import EXPANSION, LIMITS
from checkpoints_convert.errors import CheckpointError, check

_LARGEST_DIRECTORY = 1 << 23


class _File(io.RawIOBase):
    """Bytes in memory as a file whose reads are limited to the size of a directory: no large copy is made."""

    def __init__(self, data: memoryview):
        super().__init__()
        self._data, self._place = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        place = offset + (0, self._place, len(self._data))[whence]
        if place < 0:
            raise OSError("a place before the file")  # as zipfile expects it
        self._place = place
        return place

    def tell(self) -> int:
        return self._place

    def read(self, size: int | None = -1) -> bytes:
        rest = max(len(self._data) - self._place, 0)
        size = rest if size is None or size < 0 else min(size, rest)
        if size > _LARGEST_DIRECTORY:
            raise ValueError(f"a directory of {size} bytes")
        found = bytes(self._data[self._place : self._place + size])
        self._place += size
        return found


def zip_records(data: memoryview) -> dict[str, memoryview | bytes]:
    """Reads the members of a zip archive, uncompressed ones as views, and verifies their CRC-32.

    If all checksums are zero, the archive was saved with `torch.utils.serialization.config.save.compute_crc32` off.

    Raises:
        CheckpointError: the archive is truncated or damaged, its directory contradicts its members, two members
            have the same name, or it is too large when unpacked.
    """
    try:
        archive = zipfile.ZipFile(_File(data))
        members = archive.infolist()
        check(len(members) <= 2 * LIMITS["tensors"], "an archive of weights", f"{len(members)} members")
        for member in members:
            archive.open(member).close()  # compares the directory with the member's own header
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"expected a zip archive, got one cut short or damaged ({error})") from error
    end = data[len(data) - 22 - len(archive.comment) :]
    count, found = int.from_bytes(end[10:12], "little"), min(len(members), 0xFFFF)
    check(count == found, f"{count} members in the zip archive", f"{found}: it is damaged")
    total, has_checksums = sum(member.file_size for member in members), any(member.CRC for member in members)
    check(total <= EXPANSION * len(data), "an archive of weights", f"{total} bytes in {len(data)}")
    records: dict[str, memoryview | bytes] = {}
    for member in members:
        check(member.filename not in records, "members of different names", f"two called {member.filename!r}")
        name, lengths = f"the record {member.filename!r}", data[member.header_offset + 26 :][:4]
        start = member.header_offset + 30 + sum(struct.unpack("<HH", lengths))
        record: memoryview | bytes = data[start : start + member.compress_size]
        if member.compress_type == zipfile.ZIP_DEFLATED:
            record = zlib.decompressobj(-zlib.MAX_WBITS).decompress(record, member.file_size + 1)
        else:
            check(member.compress_type == zipfile.ZIP_STORED, f"{name} stored or deflated", "another method")
        size, crc = len(record), zlib.crc32(record) if has_checksums else member.CRC
        check(size == member.file_size, f"{member.file_size} bytes in {name}", f"{size}: it is damaged")
        check(crc == member.CRC, f"the CRC-32 {member.CRC:08x} of {name}", f"{crc:08x}: it is damaged")
        records[member.filename] = record
    return records
