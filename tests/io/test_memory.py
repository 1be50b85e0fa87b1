"""How much memory is free, as Linux tells it, and what is refused because it would not fit."""

from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import hourglass_jax as hj
from hourglass_jax.io import memory
from hourglass_jax.io.memory import check_memory, free_memory
from hourglass_jax.models.saliency import Saliency
from hourglass_jax.predictor import run

MEMINFO = "MemTotal: 1000 kB\nMemFree: 1 kB\nMemAvailable:   400 kB\nSwapFree: 100 kB\nHugePages_Total: 0\n"


def machine(folder: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, groups = folder / "proc", folder / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "meminfo").write_text(MEMINFO)
    (proc / "self/cgroup").write_text(cgroup)
    for name, content in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(content)
    return proc, groups


def test_memory_and_swap_are_free(tmp_path: Path) -> None:
    assert free_memory(*machine(tmp_path, "0::/\n", {})) == 500 * 1024


@pytest.mark.parametrize(
    ("cgroup", "files", "left"),
    [
        (
            "0::/pod/app\n",
            {
                "pod/memory.max": "3000",
                "pod/memory.current": "2500",
                "pod/memory.stat": "anon 1\ninactive_file 200\n",
                "pod/app/memory.max": "max",
                "pod/app/memory.current": "10",
                "pod/app/memory.stat": "",
            },
            700,
        ),
        ("0::/unseen\n", {"memory.max": "90", "memory.current": "100", "memory.stat": ""}, 0),
        (
            "8:cpu:/\n4:memory:/app\n0::/\n",
            {
                "memory/app/memory.limit_in_bytes": "1000",
                "memory/app/memory.usage_in_bytes": "400",
                "memory/app/memory.stat": "total_inactive_file 50\ninactive_file 20\n",
                "memory/memory.limit_in_bytes": "9223372036854771712",
                "memory/memory.usage_in_bytes": "400",
                "memory/memory.stat": "",
            },
            650,
        ),
    ],
    ids=["version 2", "a container", "version 1"],
)
def test_the_limits_of_control_groups_count(tmp_path: Path, cgroup: str, files: dict[str, str], left: int) -> None:
    assert free_memory(*machine(tmp_path, cgroup, files)) == left


def test_where_nothing_says_it_nothing_is_known(tmp_path: Path) -> None:
    assert free_memory(tmp_path, tmp_path) is None


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Gains an item with every program that XLA compiles."""
    seen: list[str] = []

    def listen(event: str, _: float, **__: object) -> None:
        if event.endswith("backend_compile_duration"):
            seen.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)


def test_what_is_checked_is_not_compiled_twice(compilations: list[str]) -> None:
    function, images = jax.jit(lambda scale, images: scale * images), np.ones((2, 3, 4, 3), np.float32)
    check_memory(function, jnp.float32(2), images)
    before = len(compilations)
    assert before
    np.testing.assert_array_equal(function(jnp.float32(2), images), 2 * images)
    assert len(compilations) == before


def test_what_needs_more_than_is_free_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    function, images = jax.jit(lambda scale, images: scale * images), np.ones((2, 64, 64, 3), np.float32)
    monkeypatch.setattr(memory, "free_memory", lambda: images.nbytes + 1000)
    check_memory(function, jnp.float32(2), images)
    monkeypatch.setattr(memory, "free_memory", lambda: images.nbytes - 1000)
    with pytest.raises(
        MemoryError, match=r"2 images of 64 x 64 pixels at once would take .* GiB, of which .* free"
    ):
        check_memory(function, jnp.float32(2), images)
    monkeypatch.setattr(memory, "free_memory", lambda: None)
    check_memory(function, jnp.float32(2), images)
    monkeypatch.setattr(memory, "free_memory", lambda: 0)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    check_memory(function, jnp.float32(2), images)


@pytest.mark.usefixtures("quick_compilation")
def test_a_predictor_compiles_once_for_a_shape(tiny_model: Saliency, compilations: list[str]) -> None:
    """The check compiles what is run afterwards, and nothing else."""
    image = np.zeros((42, 70, 3), np.uint8)
    run.clear_cache()
    hj.Predictor(tiny_model)(image)
    checked = len(compilations)
    compilations.clear()
    run.clear_cache()
    run(tiny_model, np.zeros((1, 42, 70, 3), np.float32))
    assert checked == len(compilations) == 1
