"""The examples in docstrings, in both packages."""

import ast
import doctest
from importlib import import_module
from pathlib import Path

import pytest

import hourglass_jax

pytestmark = pytest.mark.usefixtures("quick_compilation")

ROOT = Path(hourglass_jax.__file__).parents[1]
PACKAGES = ("hourglass_jax", "checkpoints_convert")


def find_examples() -> dict[str, tuple[str, str, int]]:
    """Name of what is documented -> its module, its docstring and the line where it begins.

    They are read from the sources: tests wrap the operators in checks of their types, where doctest finds nothing.
    """
    examples = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        source = path.read_text("utf-8")
        if ">>>" not in source:
            continue
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text = ast.get_docstring(node) or ""
                if ">>>" in text:
                    name = module if isinstance(node, ast.Module) else f"{module}.{node.name}"
                    examples[name] = (module, text, node.body[0].lineno)
    return examples


EXAMPLES = find_examples()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_true(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    module, text, line = EXAMPLES[name]
    test = doctest.DocTestParser().get_doctest(text, vars(import_module(module)).copy(), name, module, line)
    report: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(test, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


def test_the_central_functions_have_examples() -> None:
    names = {name.rpartition(".")[2] for name in EXAMPLES}
    assert names >= {"cluster_tokens", "reconstruct_tokens", "expedite", "load", "save_plan", "load_plan"}
