"""A thousand random files in every format, read in a process of its own: none does harm."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory and time are measured as Linux does")
def test_a_thousand_mutants_do_no_harm() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--count", "1000", "--seed", "16", "--cpu", "0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1000 mutants" in done.stdout
    assert all(
        f"{name} " in done.stdout
        for name in ("torch zip", "torch legacy", "plain pickle", "onnx", "yaml", "python")
    )
