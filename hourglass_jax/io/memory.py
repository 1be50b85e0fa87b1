"""How much memory is free, and whether a compiled function fits into it.

Linux promises an array that is too large, and kills the process when it is written: there is no error to be caught.
So the need is compared with what is free before the first run.
"""

from pathlib import Path
from typing import Any

import jax

PROC, GROUPS = Path("/proc"), Path("/sys/fs/cgroup")
_NAMES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""Version of control groups -> the files of limit and usage, and the line of what can be let go."""


def free_memory(proc: Path = PROC, groups: Path = GROUPS) -> int | None:
    """Bytes that this process may still take: memory and swap that are free, within the limits of its groups.

    Args:
        proc: where Linux tells of the machine and the process.
        groups: where it tells of control groups, which containers are.

    Returns:
        The number, or None where nothing says it.
    """
    try:
        lines = (proc / "meminfo").read_text().splitlines()
        found = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        free = 1024 * (found["MemAvailable"] + found.get("SwapFree", 0))
    except (OSError, ValueError, LookupError):
        return None
    return min([free, *_left_in_groups(proc, groups)])


def _left_in_groups(proc: Path, groups: Path) -> list[int]:
    """What is left of the limit of every control group that the process is in, of both versions."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            root, names = groups, _NAMES[2]
        elif "memory" in controllers.split(","):
            root, names = groups / "memory", _NAMES[1]
        else:
            continue
        own = root / path.lstrip("/")
        inside = [each for each in (own, *own.parents) if each == root or root in each.parents]
        found += [left for each in inside if (left := _left(each, *names)) is not None]
    return found


def _left(group: Path, limit: str, usage: str, cache: str) -> int | None:
    """What is left of a group's limit; files that it keeps in memory make room."""
    try:
        most, used = int((group / limit).read_text()), int((group / usage).read_text())
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, most - used + int(statistics.get(cache, 0)))
    except (OSError, ValueError):  # no such group here, or no limit
        return None


def check_memory(function: Any, model: Any, images: Any, *others: Any) -> None:
    """Compares what a compiled function needs with what is free. It is compiled here, and not again when it is run.

    Args:
        function: what `jax.jit` returned.
        model: its first argument, which is in memory already.
        images: its second one, [B, rows, columns, 3].
        others: further ones.

    Raises:
        MemoryError: it needs more than is free, and the system would kill the process. On other devices than the
            CPU nothing is checked: what cannot be allocated there is an error of its own.
    """
    if jax.default_backend() != "cpu":
        return
    analysis, free = function.lower(model, images, *others).compile().memory_analysis(), free_memory()
    if analysis is None or free is None:
        return
    need = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    if need > free:
        count, rows, columns = images.shape[:3]
        what = f"{count} images" if count > 1 else "an image"
        raise MemoryError(
            f"{what} of {rows} x {columns} pixels at once would take {need / 2**30:.2f} GiB, of which "
            f"{free / 2**30:.2f} GiB are free"
        )
