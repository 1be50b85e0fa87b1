"""JAX computes rightly from the package's start on, whatever its version."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax._src import xla_bridge

from hourglass_jax.start import FUSIONS, prepare_jax

SET = f"{FUSIONS}=-reduce"
OTHER = "--xla_force_host_platform_device_count=2"

# jax-ml/jax issue 39103: jaxlib 0.10.2 on x86-64 prints 1065369600.0 or so where its flag is not set.
SUM = """
import jax, jax.numpy as jnp
numbers = jnp.arange(32769, dtype=jnp.float32)
rows = jnp.stack((numbers, jnp.zeros_like(numbers), jnp.zeros_like(numbers)), axis=1)
print(float(jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)[-1]))
"""

# jax-ml/jax issue 40412: jaxlib 0.10.2 on x86-64 dies of SIGSEGV where its flag is not set.
RANK_7 = """
import jax, jax.numpy as jnp, numpy as np
left, right = np.random.default_rng(0).normal(size=(2, 3, 1, 2, 2, 8, 8, 8)).astype(np.float32)
found = jax.jit(lambda left, right: jnp.sum(left * right, axis=3))(left, right)
np.testing.assert_allclose(found, (left * right).sum(axis=3), rtol=1e-5, atol=1e-6)
"""


def run(code: str) -> str:
    """What a new process prints, on the CPU and without flags of its own."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout


@pytest.mark.parametrize("start", ["hourglass_jax", "jax, hourglass_jax", "checkpoints_convert.convert"])
def test_a_sum_of_squares_of_many_rows_is_right(start: str) -> None:
    assert run(f"import {start}\n{SUM}").strip() == "1073741824.0"


def test_a_sum_of_products_of_seven_dimensions_is_right() -> None:
    run(f"import hourglass_jax\n{RANK_7}")


def test_the_process_of_the_tests_computes_rightly() -> None:
    rows = jnp.zeros((32769, 3)).at[:, 0].set(jnp.arange(32769.0))
    squares = jax.jit(jax.vmap(lambda row: jnp.sum((jnp.eye(3) @ row) ** 2)))(rows)
    assert squares[-1] == 32768.0**2


@pytest.fixture
def not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: False)


@pytest.mark.usefixtures("not_started")
@pytest.mark.parametrize("version", [(0, 10, 2), (0, 11, 0), (0, 11, 1), (0, 11, 2)])
def test_versions_that_reduce_wrongly_get_the_flag(version: tuple[int, ...]) -> None:
    prepare_jax(version)
    assert os.environ["XLA_FLAGS"] == SET
    prepare_jax(version)
    assert os.environ["XLA_FLAGS"] == SET


@pytest.mark.usefixtures("not_started")
@pytest.mark.parametrize("version", [(0, 10, 0), (0, 10, 1), (0, 12, 0), (0, 12, 0, 1), (1, 0, 0)])
def test_other_versions_change_nothing(version: tuple[int, ...]) -> None:
    prepare_jax(version)
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.usefixtures("not_started")
def test_flags_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", OTHER)
    prepare_jax((0, 10, 2))
    assert os.environ["XLA_FLAGS"].split() == [SET, OTHER]


@pytest.mark.usefixtures("not_started")
def test_flags_in_a_file_of_the_user_are_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "flags"
    file.write_text(f"{OTHER}\n")
    monkeypatch.setenv("XLA_FLAGS", str(file))
    prepare_jax((0, 10, 2))
    assert os.environ["XLA_FLAGS"].split() == [SET, OTHER]


@pytest.mark.usefixtures("not_started")
@pytest.mark.parametrize("own", [f"{FUSIONS}=", f"{OTHER} {FUSIONS}=individual_dot"])
def test_the_users_own_setting_of_the_flag_is_kept(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", own)
    prepare_jax((0, 10, 2))
    assert os.environ["XLA_FLAGS"] == own


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(xla_bridge, "backends_are_initialized", lambda: True)


@pytest.mark.usefixtures("started")
def test_one_warning_where_jax_runs_on_the_cpu_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xla_bridge, "default_backend", lambda: "cpu")
    with pytest.warns(
        RuntimeWarning, match=f"jaxlib 0.10.2 .* import hourglass_jax first, .* XLA_FLAGS={SET}"
    ) as seen:
        prepare_jax((0, 10, 2))
    assert len(seen) == 1
    assert "XLA_FLAGS" not in os.environ


@pytest.mark.usefixtures("started")
@pytest.mark.parametrize(
    ("version", "backend", "flags"), [((0, 10, 1), "cpu", ""), ((0, 10, 2), "gpu", ""), ((0, 10, 2), "cpu", SET)]
)
def test_no_warning_where_nothing_is_wrong(
    version: tuple[int, ...], backend: str, flags: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(xla_bridge, "default_backend", lambda: backend)
    monkeypatch.setenv("XLA_FLAGS", flags)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepare_jax(version)
