"""The notebooks in colab/: one first cell, small outputs, and they run from top to bottom."""

import os
import sys
from pathlib import Path

import nbformat
import pytest

FOLDER = Path(__file__).parents[1] / "colab"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def code(path: Path) -> list[nbformat.NotebookNode]:
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def test_there_are_five() -> None:
    expected = {"quickstart", "segmentation_and_depth", "your_model", "inside_the_hourglass", "convert"}
    assert {path.stem for path in NOTEBOOKS} == expected


def test_all_install_alike_and_from_one_address() -> None:
    assert len({code(path)[0].source for path in NOTEBOOKS}) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_stored_small_and_without_errors(path: Path) -> None:
    assert path.stat().st_size < 1_500_000
    outputs = [output for cell in code(path) for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_run_from_top_to_bottom(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nbclient import NotebookClient

    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    notebook = read(path)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(notebook, timeout=None, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert any(cell.outputs for cell in notebook.cells if cell.cell_type == "code")
