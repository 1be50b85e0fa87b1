"""The public names, as users' tools see them."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import hourglass_jax as hj

ROOT = Path(__file__).parents[1]


def names_for_checkers() -> dict[str, str]:
    """Name -> module of the imports that only type checkers see; each must be exported, `from m import x as x`."""
    tree = ast.parse(Path(hj.__file__).read_text("utf-8"))
    [block] = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    ]
    found = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        for each in node.names:
            assert each.asname == each.name, each.name
            found[each.name] = node.module
    return found


def test_checkers_see_every_public_name_where_it_comes_from() -> None:
    checkers = names_for_checkers()
    assert sorted(checkers) == sorted(hj.__all__)
    for name, module in checkers.items():
        assert getattr(hj, name) is getattr(import_module(module), name)


def test_all_public_names_and_no_others_are_found_on_first_use() -> None:
    assert sorted(hj._PUBLIC) == sorted(hj.__all__)
    assert {f"hourglass_jax.{module}" for module in hj._PUBLIC.values()} == set(names_for_checkers().values())
    assert set(dir(hj)) == {*hj.__all__, "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'clusters'"):
        _ = hj.clusters


def test_the_version_is_that_of_the_package() -> None:
    assert hj.__version__ == version("hourglass-jax")


def test_the_package_says_what_it_is_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.13"} <= set(project["classifiers"])
    assert all(url.startswith("https://") for url in project["urls"].values()) and project["urls"]
    for package in ("hourglass_jax", "checkpoints_convert"):
        assert (ROOT / package / "py.typed").is_file()


def test_every_ignored_error_of_types_has_a_reason() -> None:
    for package in ("hourglass_jax", "checkpoints_convert"):
        for path in (ROOT / package).rglob("*.py"):
            for line in path.read_text("utf-8").splitlines():
                _, mark, rest = line.partition("# pyright:")
                assert not mark or re.fullmatch(r" ignore\[\w+\]  \S.*", rest), f"{path}: {line}"
                assert "type: ignore" not in line, f"{path}: {line}"


def test_the_import_is_immediate() -> None:
    code = (
        "import sys, hourglass_jax; print(sorted({'jax', 'flax', 'jaxtyping', 'numpy', 'PIL'} & set(sys.modules)))"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True, cwd=ROOT).strip() == "[]"


@pytest.mark.slow
def test_every_public_name_has_a_type(tmp_path: Path) -> None:
    lines = ["import hourglass_jax as hj", *(f"reveal_type(hj.{name})" for name in [*hj.__all__, "__version__"])]
    lines += ["model = hj.load('model.safetensors')", "reveal_type(hj.expedite(model, hj.Hourglass(4, (26, 26))))"]
    lines += [
        "reveal_type(hj.Predictor(model))",
        "hj.expedite(model, 4)",
        "hj.Hourglass(alpha='4', clusters=(2, 2))",
    ]
    file = tmp_path / "example.py"
    file.write_text("\n".join(lines) + "\n")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps({"extraPaths": [str(ROOT)]}))
    command = [sys.executable, "-m", "pyright", "--outputjson", "--pythonpath", sys.executable, "-p", str(tmp_path)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout)
    messages = found["generalDiagnostics"]
    types = [re.search('is "(.*)"$', each["message"])[1] for each in messages if each["severity"] == "information"]
    assert len(types) == len(hj.__all__) + 3
    assert not [each for each in types if each in ("Any", "object") or "Unknown" in each]
    assert [each["rule"] for each in messages if each["severity"] == "error"] == ["reportArgumentType"] * 2
