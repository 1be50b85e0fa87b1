"""The packages' imports: they point one way, without a circle, also those that are only for types."""

import ast
from pathlib import Path

import networkx as nx
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("hourglass_jax", "checkpoints_convert")
BELOW = {
    "checks": set(),
    "io": set(),
    "ops": set(),
    "metrics": set(),
    "imaging": {"ops", "io", "checks"},
    "plans": {"ops", "io"},
    "backbones": {"ops", "plans", "checks"},
    "tasks": {"ops", "imaging", "metrics"},
    "models": {"ops", "imaging", "backbones", "tasks", "checks"},
    "checkpoints_convert": {"io", "ops", "imaging", "backbones", "models", "checks"},
    "hub": {"io", "models", "checkpoints_convert"},
    "predictor": {"io", "imaging", "plans", "models"},
    "prompt_predictor": {"io", "imaging", "tasks", "models"},
    "automatic_predictor": {"imaging", "metrics", "tasks", "models", "prompt_predictor"},
    "export": {"io", "ops", "imaging", "plans", "models"},
    "analysis": {"io", "ops", "imaging", "plans", "backbones", "tasks", "models"},
    "search": {"io", "ops", "imaging", "plans", "backbones", "models", "analysis"},
    "evaluation": {"io", "ops", "imaging", "metrics", "plans", "tasks", "models", "predictor"},
}
"""What each part may import; the command line may import all of them."""


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))}


def imported(module: str) -> set[str]:
    """The modules of both packages that a module names in its imports, inside functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: expected absolute imports"
            found |= {f"{node.module}.{each.name}" for each in node.names} | {node.module}
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {name for name in found if name in FILES and name != module}


GRAPH = nx.DiGraph([(module, other) for module in FILES for other in imported(module)])


def part(module: str) -> str:
    package, *names = module.split(".")
    return names[0] if package == "hourglass_jax" and names else package


def test_there_is_no_circle() -> None:
    assert list(nx.simple_cycles(GRAPH)) == []


@pytest.mark.parametrize("name", BELOW)
def test_imports_point_one_way(name: str) -> None:
    allowed = BELOW[name] | {name}
    wrong = [(a, b) for a, b in GRAPH.edges if part(a) == name and part(b) not in allowed]
    assert wrong == []


def test_the_operators_know_neither_flax_nor_files() -> None:
    for module, path in FILES.items():
        if part(module) == "ops":
            names = {
                node.module if isinstance(node, ast.ImportFrom) else node.names[0].name
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.Import | ast.ImportFrom)
            }
            assert not {name.split(".")[0] for name in names if name} & {"flax", "os", "pathlib", "PIL"}, module


def test_nothing_imports_torch() -> None:
    for path in FILES.values():
        assert "import torch" not in path.read_text("utf-8")


def test_every_part_is_known() -> None:
    assert {part(module) for module in FILES} - {"hourglass_jax", "cli", "start"} == set(BELOW)
