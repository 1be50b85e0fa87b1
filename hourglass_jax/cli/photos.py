"""Finding the photographs of a command: files, folders and patterns."""

import glob
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from hourglass_jax.io.files import is_hidden

SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jpeg", ".jpg", ".pbm", ".pgm"),
    *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Suffixes of photographs in folders; a file that is given directly may have any suffix."""
WILDCARDS = re.compile(r"[*?\[]")


class Photo(NamedTuple):
    """A photograph: its path, and the base name of its output files (a path without suffix)."""

    path: Path
    name: str


def find_photos(sources: Sequence[Path], *, recursive: bool = False, without: Path | None = None) -> list[Photo]:
    """The photographs that a user names, in natural order within a folder (2 before 10).

    Args:
        sources: files, folders, and patterns such as "frames/*.jpg" that the shell did not replace.
        recursive: whether the folders in a folder count too.
        without: a folder inside those that are named whose files do not count: where results are written.

    Returns:
        Every photograph once. Names are relative to the folder or pattern; equal names are distinguished by their
        suffixes, or else by their folders.

    Raises:
        ValueError: there are no sources, a folder or pattern contains no photograph, or a source is a URL.
    """
    if not sources:
        raise ValueError("expected at least one image file or folder, got none")
    photos: dict[Path, Photo] = {}
    for source in sources:
        for photo in _photos_of(source, recursive, without):
            photos.setdefault(photo.path.absolute(), photo)
    return _told_apart(list(photos.values()))


def _photos_of(source: Path, recursive: bool, without: Path | None) -> list[Photo]:
    if re.match(r"https?:/", str(source)):
        raise ValueError(f"{source} is an address, and addresses are not read: download the photograph first")
    if source.is_dir():
        root, paths = source, source.rglob("*") if recursive else source.iterdir()
    elif WILDCARDS.search(str(source)) and not source.exists():
        root = _existing(source)
        pattern = os.path.join(glob.escape(str(root)), source.relative_to(root))
        paths = map(Path, glob.glob(pattern, recursive=True))
    else:
        return [Photo(source, source.stem)]
    found = [path for path in paths if _is_photo(path, root)]
    if without is not None and root.absolute() in without.absolute().parents:
        found = [path for path in found if without.absolute() not in path.absolute().parents]
    if not found:
        raise ValueError(f"{source} holds no photograph: expected files that end in {', '.join(SUFFIXES)}")
    found.sort(key=lambda path: _natural_key(path.relative_to(root)))
    return [Photo(path, path.relative_to(root).with_suffix("").as_posix()) for path in found]


def _existing(pattern: Path) -> Path:
    """The folder that a pattern begins with; one that is there may have brackets in its name."""
    folder = Path()
    for part in pattern.parts:
        if not (folder / part).is_dir():
            break
        folder /= part
    return folder


def _is_photo(path: Path, root: Path) -> bool:
    return (
        path.suffix.lower() in SUFFIXES and not any(map(is_hidden, path.relative_to(root).parts)) and path.is_file()
    )


def _natural_key(path: Path) -> list[list[tuple[bool, int, str]]]:
    """A sort key that orders numbers in names by their value."""
    return [
        [
            (not piece.isdecimal(), int(piece) if piece.isdecimal() else 0, piece)
            for piece in re.split(r"(\d+)", part)
        ]
        for part in path.parts
    ]


def _told_apart(photos: list[Photo]) -> list[Photo]:
    """Photographs of one name are named with their suffix too; then with their folders; then numbered."""
    for rename in (_with_suffix, _with_folders):
        by_name = _by_name(photos)
        photos = [
            photo if len(by_name[photo.name]) == 1 else rename(photo, by_name[photo.name]) for photo in photos
        ]
    taken: set[str] = set()
    for index, photo in enumerate(photos):
        names = (photo.name, *(f"{photo.name}_{number}" for number in range(2, len(photos) + 2)))
        photos[index] = photo._replace(name=next(name for name in names if name not in taken))
        taken.add(photos[index].name)
    return photos


def _by_name(photos: Iterable[Photo]) -> dict[str, list[Photo]]:
    groups = defaultdict(list)
    for photo in photos:
        groups[photo.name].append(photo)
    return groups


def _with_suffix(photo: Photo, others: Sequence[Photo]) -> Photo:
    return photo._replace(name=f"{photo.name}_{photo.path.suffix.removeprefix('.')}")


def _with_folders(photo: Photo, others: Sequence[Photo]) -> Photo:
    common = os.path.commonpath([other.path.absolute().parent for other in others])
    return photo._replace(name=(photo.path.absolute().parent.relative_to(common) / photo.name).as_posix())
