"""NumPy's .npz archives, without NumPy's reader, which evaluates headers and unpickles objects."""

import re

import numpy as np

from checkpoints_convert.archive import zip_records
from checkpoints_convert.errors import check, unexpected

_HEADER = re.compile(
    r"\{\s*'descr'\s*:\s*(?P<dtype>[^{}]{1,200}?)\s*,\s*'fortran_order'\s*:\s*(?P<fortran>True|False)\s*,"
    r"\s*'shape'\s*:\s*\((?P<shape>[0-9, L]{0,1000})\)\s*,?\s*\}\s*"
)
_MAGIC = b"\x93NUMPY"


def read_npz(data: memoryview) -> dict[str, np.ndarray]:
    """The arrays of an archive, as views where they are not compressed.

    Raises:
        CheckpointError: the archive or an array in it is damaged, two have one name, or one is not of numbers.
    """
    found: dict[str, np.ndarray] = {}
    for member, record in zip_records(data).items():
        name = member.removesuffix(".npy")
        check(name not in found, "one array by each name", f"two called {name!r}")
        found[name] = _npy(member, record)
    return found


def _npy(name: str, record: memoryview | bytes) -> np.ndarray:
    """The array of one .npy file (NumPy, `numpy/lib/format.py`, versions 1 to 3)."""
    version = bytes(record[6:7])
    is_known = bytes(record[:6]) == _MAGIC and version in (b"\1", b"\2", b"\3")
    check(is_known, f"the NumPy array {name!r}", "a damaged one")
    width = 2 if version == b"\1" else 4
    start = 8 + width + int.from_bytes(record[8 : 8 + width], "little")
    check(start - 8 - width <= 10_000, f"the NumPy array {name!r}", "a damaged one, with an overlong header")
    header = _HEADER.fullmatch(bytes(record[8 + width : start]).decode("latin1"))
    if header is None:
        raise unexpected(f"the NumPy array {name!r}", "a damaged one, with another header")
    code = re.fullmatch(r"'([<>=|]?[biufc]\d{1,2})'", header["dtype"])
    if code is None:
        raise unexpected("arrays of numbers", f"{name!r} of dtype {header['dtype']}")
    dtype = np.dtype(code[1])
    shape = tuple(int(number.strip().removesuffix("L")) for number in header["shape"].split(",") if number.strip())
    array = np.ndarray(shape, dtype, record, start, order="F" if header["fortran"] == "True" else "C")
    rest = len(record) - start
    check(array.nbytes == rest, f"{array.nbytes} bytes in {name!r}", f"{rest}")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))
