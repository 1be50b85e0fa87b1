"""The workflow and the hooks, which nobody runs here: valid by their schemas, and their commands exist."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"
HOOKS = ROOT / ".pre-commit-config.yaml"
SCHEMAS = ("vendor.github-workflows", "custom.github-workflows-require-timeout")
"""Come with check-jsonschema: no network is needed."""

TEXTS = {"type": "array", "items": {"type": "string"}}
HOOK = {
    "type": "object",
    "required": ["id"],
    "additionalProperties": False,
    "properties": {"id": {"type": "string"}, "args": TEXTS, "files": {"type": "string"}, "stages": TEXTS},
}
HOOKS_SCHEMA = {
    "type": "object",
    "required": ["repos"],
    "additionalProperties": False,
    "properties": {
        "repos": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["repo", "rev", "hooks"],
                "additionalProperties": False,
                "properties": {
                    "repo": {"type": "string", "pattern": "^https://"},
                    "rev": {"type": "string", "pattern": r"^v\d+(\.\d+)+$"},
                    "hooks": {"type": "array", "minItems": 1, "items": HOOK},
                },
            },
        }
    },
}
"""The part of pre-commit's configuration that is used (https://pre-commit.com)."""


def check(path: Path, *schema: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", *schema, str(path)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("schema", SCHEMAS)
def test_the_workflow_is_valid(schema: str) -> None:
    result = check(WORKFLOW, "--builtin-schema", schema)
    assert result.returncode == 0, result.stdout


def test_a_misspelt_workflow_is_not(tmp_path: Path) -> None:
    path = tmp_path / "ci.yml"
    path.write_text(WORKFLOW.read_text("utf-8").replace("runs-on", "run-on"))
    assert check(path, "--builtin-schema", SCHEMAS[0]).returncode == 1


def test_the_hooks_are_valid(tmp_path: Path) -> None:
    schema, misspelt = tmp_path / "schema.json", tmp_path / "hooks.yaml"
    schema.write_text(json.dumps(HOOKS_SCHEMA))
    result = check(HOOKS, "--schemafile", str(schema))
    assert result.returncode == 0, result.stdout
    misspelt.write_text(HOOKS.read_text("utf-8").replace("hooks:", "hook:"))
    assert check(misspelt, "--schemafile", str(schema)).returncode == 1


def test_the_workflow_makes_what_the_makefile_has() -> None:
    targets = set(re.findall(r"^([\w./]+)(?: [\w./]+)*:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    jobs = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
    commands = [step["run"] for job in jobs.values() for step in job["steps"] if "run" in step]
    goals = {target for command in commands for target in re.findall(r"\bmake ([\w./]+)", command)}
    assert {"test", "parity", "slow"} <= goals <= targets


def test_the_workflow_has_both_ends_of_python_and_jax() -> None:
    matrix = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]["test"]["strategy"]["matrix"]["include"]
    oldest = re.search(r'"jax>=(\S+)"', (ROOT / "pyproject.toml").read_text("utf-8"))
    assert oldest is not None
    versions = {(entry["python"], entry["jax"].startswith(f"jax=={oldest[1]}")) for entry in matrix}
    assert versions == {(python, is_oldest) for python in ("3.11", "3.13") for is_oldest in (True, False)}
