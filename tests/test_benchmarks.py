"""The benchmarks for devices run where there is none."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *options]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})


@pytest.mark.slow
def test_the_benchmark_of_a_gpu_runs_at_a_tiny_size_on_the_cpu() -> None:
    done = run("gpu.py", "--tiny", "--size", "64", "--batch", "1", "--repeats", "1", "--without-torch")
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("original", "StagedMerging", "of FLOP ratio", "by halving"))


def test_the_benchmark_of_a_gpu_says_that_there_is_none() -> None:
    done = run("gpu.py")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "this is for a GPU, and JAX finds none here: --tiny runs it on the CPU\n"
