"""Finding photographs by files, folders and patterns, and the names of their results."""

import os
from pathlib import Path

import pytest

from hourglass_jax.cli.photos import find_photos


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in (
        *("frame10.jpg", "frame2.jpg", "frame1.PNG", "notes.txt", ".hidden.jpg", "Thumbs.db", "._frame2.jpg"),
        *("deep/frame1.jpg", "deep/er/frame3.webp", "__MACOSX/frame4.jpg", ".git/frame5.jpg"),
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*sources: str, recursive: bool = False) -> list[str]:
    return [photo.name for photo in find_photos([Path(source) for source in sources], recursive=recursive)]


def test_a_folder_is_its_photographs_in_natural_order(folder: Path) -> None:
    assert names(".") == ["frame1", "frame2", "frame10"]


def test_folders_in_a_folder_are_mirrored_if_asked_for(folder: Path) -> None:
    assert names(".", recursive=True) == ["deep/er/frame3", "deep/frame1", "frame1", "frame2", "frame10"]


def test_a_pattern_is_what_it_matches(folder: Path) -> None:
    assert names("frame?.*") == ["frame1", "frame2"]
    assert names("deep/*.jpg") == ["frame1"]
    assert names("**/frame1.*") == ["deep/frame1", "frame1"]


def test_a_file_may_have_any_name(folder: Path) -> None:
    assert names("notes.txt", ".hidden.jpg") == ["notes", ".hidden"]
    Path("odd[1].jpg").write_bytes(b"")
    assert names("odd[1].jpg") == ["odd[1]"]


def test_no_photograph_comes_twice(folder: Path) -> None:
    assert names("frame2.jpg", "frame2.jpg", os.path.abspath("frame2.jpg"), ".") == ["frame2", "frame1", "frame10"]


def test_equal_names_are_told_apart(folder: Path) -> None:
    Path("frame1.jpg").write_bytes(b"")
    assert names("frame1.jpg", "frame1.PNG", "frame2.jpg") == ["frame1_jpg", "frame1_PNG", "frame2"]
    assert names("frame1.jpg", "deep/frame1.jpg") == ["frame1_jpg", "deep/frame1_jpg"]


def test_digits_that_are_no_decimal_numbers_are_letters(folder: Path) -> None:
    for name in ("m1²2.jpg", "m1²10.jpg"):
        Path(name).write_bytes(b"")
    assert names("m*.jpg") == ["m1²2", "m1²10"]


def test_no_two_photographs_share_a_name(folder: Path) -> None:
    """The suffix that tells two apart may make the name of a third."""
    for name in ("a.jpg", "a.png", "a_jpg.png", "b/a.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    found = names("a.jpg", "a.png", "a_jpg.png")
    assert sorted(found) == ["a_jpg", "a_jpg_2", "a_png"]
    assert len(set(names("a.jpg", "b/a.jpg", "a_jpg.png", "a.png"))) == 4


def test_a_folder_may_have_brackets_in_its_name(folder: Path) -> None:
    for name in ("[2019] trip/a.jpg", "[2019] trip/b.png", "2/c.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_bytes(b"")
    assert names("[2019] trip/*.jpg") == ["a"]
    assert names("[2019] trip") == ["a", "b"]
    assert names(str(folder / "[2019] trip" / "?.png")) == ["b"]
    assert names("[12]/*.jpg") == ["2/c"]


def test_what_is_written_into_a_folder_of_photographs_is_left_out(folder: Path) -> None:
    def found(source: str, output: str) -> list[str]:
        return [photo.name for photo in find_photos([Path(source)], recursive=True, without=Path(output))]

    assert found(".", "deep") == ["frame1", "frame2", "frame10"]
    assert found("deep", "deep") == ["er/frame3", "frame1"]
    assert found("deep/er", "deep") == ["frame3"]
    assert found(".", "deep/er") == ["deep/frame1", "frame1", "frame2", "frame10"]


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([], "expected at least one image file or folder, got none"),
        (["__MACOSX"], r"^__MACOSX holds no photograph"),
        (["*.tiff"], r"\*.tiff holds no photograph: expected files that end in .avif"),
        (["http:/example.com/a.jpg"], "is an address, and addresses are not read"),
    ],
)
def test_what_names_no_photograph_is_an_error(folder: Path, sources: list[str], message: str) -> None:
    if sources == ["__MACOSX"]:
        Path("__MACOSX/frame4.jpg").unlink()
    with pytest.raises(ValueError, match=message):
        names(*sources)
