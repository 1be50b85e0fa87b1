"""The documentation: it builds strictly, and every page, public name and command has its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import hourglass_jax as hj
from hourglass_jax.cli import FORMER, _commands

ROOT = Path(__file__).parents[1]


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load((ROOT / "mkdocs.yml").read_text("utf-8"))
    assert sorted(settings["nav"]) == sorted(path.name for path in (ROOT / "docs").glob("*.md"))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 100


def test_files_that_the_readme_and_the_pages_link_to_exist() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md"), ROOT / "colab/README.md"]
    for page in pages:
        for target in re.findall(r"\]\(([^)#]+)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"


def test_files_that_the_pages_name_exist() -> None:
    folders = "tests|benchmarks|examples|checkpoints_convert|hourglass_jax"
    for page in (ROOT / "docs").glob("*.md"):
        for path in re.findall(rf"`((?:{folders})/[\w/]+\.py)\b", page.read_text("utf-8")):
            assert (ROOT / path).is_file(), f"{page.name}: {path}"


def test_commands_on_the_pages_have_no_former_options() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        commands = [line for line in page.read_text("utf-8").splitlines() if line.startswith("    hourglass ")]
        assert not [line for line in commands if {*line.split()} & FORMER.keys()], page.name


@pytest.mark.slow
def test_the_documentation_builds_strictly(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", tmp_path / "site"],
        cwd=ROOT,
        check=True,
    )
    names = (tmp_path / "site/api/index.html").read_text("utf-8")
    assert all(f'id="hourglass_jax.{name}"' in names for name in hj.__all__)
    commands = (tmp_path / "site/cli/index.html").read_text("utf-8")
    assert all(f"hourglass {each.__name__}" in commands for each in _commands())
