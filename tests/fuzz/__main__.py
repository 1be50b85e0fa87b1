"""Reads drawn mutants of every container and says what became of them; exit status 1 if one did harm.

    python -m tests.fuzz [--count N] [--seed S] [--minutes M] [--cpu SECONDS]

Harm is any of: code that is compiled, executed or imported, a process, a connection or a file opened for writing
while a mutant is read (an audit hook watches); another error than a refusal; a refusal that no terminal can show
or that is long; more memory than `MEMORY`; more CPU time than --cpu; other values where checksums could tell. The
mutant is then kept in a new folder.
"""

import argparse
import codecs
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from checkpoints_convert.dialects import in_timms_words
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.files import read
from checkpoints_convert.settings import read_settings
from tests.fuzz.mutants import BUILDERS, SUFFIXES, Mutant, mutant, sound

MEMORY = 2 << 30
"""Bytes of address space beyond those of the process before it reads."""

LONGEST = 2000
"""Characters of a refusal."""

_FORBIDDEN = (
    "compile", "exec", "import", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
    "os.remove", "os.rename", "os.putenv", "pty.", "socket.", "ctypes.", "marshal.", "pickle.", "code.", "shutil.",
    "urllib.", "webbrowser.", "cpython.",
)  # fmt: skip


class _Slow(BaseException):
    """A mutant took too much CPU time."""


class Watch:
    """Notes what Python does while a mutant is read."""

    def __init__(self) -> None:
        self.is_on, self.seen = False, []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self.is_on:
            return
        writes = event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        is_parsing = event == "compile" and arguments[1] == "<config>"  # into a tree, of which nothing is run
        if writes or (event.startswith(_FORBIDDEN) and not is_parsing):
            self.seen.append(f"{event} {arguments!r:.200}")

    @contextmanager
    def __call__(self) -> Iterator[None]:
        self.seen, self.is_on = [], True
        try:
            yield
        finally:
            self.is_on = False


def harm(path: Path, each: Mutant, watch: Watch) -> tuple[str, str]:
    """("read", "refused" or "harm", what) of one mutant, whose file is at `path`."""
    verdict, what = "read", ""
    try:
        with watch():
            if each.suffix:
                _read_settings(path)
            else:
                found = read(path, skip_objects=len(each.content) % 2 == 0)
                if each.expected is not None and not _same(found, each.expected):
                    verdict, what = "harm", "other values than were written, and checksums could tell"
    except CheckpointError as error:
        verdict, message = "refused", str(error)
        causes = (error.__cause__, getattr(error.__cause__, "__cause__", None))
        if not message.isprintable() or len(message) > LONGEST:
            verdict, what = "harm", f"a refusal of {len(message)} characters: {message[:100]!r}"
        elif any(isinstance(cause, MemoryError) for cause in causes):
            verdict, what = "harm", "too much memory"
    except _Slow:
        verdict, what = "harm", "too much CPU time"
    except BaseException as error:
        verdict, what = "harm", f"{type(error).__name__}: {error}"
    return ("harm", f"watched: {watch.seen[0]}") if watch.seen else (verdict, what)


def _read_settings(path: Path) -> None:
    settings = read_settings(path)
    try:
        in_timms_words(settings)
    except ValueError as error:
        raise CheckpointError(str(error)) from None


def _same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape, found[name].tobytes()) == (array.dtype, array.shape, array.tobytes())
        for name, array in expected.items()
    )


def _too_slow(*_: object) -> None:
    raise _Slow


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000_000, help="mutants to read")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="to go on for")
    parser.add_argument("--cpu", type=float, default=20, help="seconds of CPU time for one mutant; 0: any")
    options = parser.parse_args()

    watch, results, slowest, harmed = Watch(), Counter(), (0.0, 0), []
    with tempfile.TemporaryDirectory() as folder:
        for codec in ("latin_1", "raw_unicode_escape", "unicode_escape", "utf_8"):
            codecs.lookup(codec)
        for container in BUILDERS:  # what is imported on first use is imported before anything is watched
            path = Path(folder) / f"sound{SUFFIXES.get(container, '')}"
            path.write_bytes(sound(container))
            _read_settings(path) if path.suffix else read(path)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        signal.signal(signal.SIGPROF, _too_slow)
        end = time.monotonic() + 60 * options.minutes
        for number in range(options.count):
            if time.monotonic() > end:
                break
            each = mutant(options.seed, number)
            path = Path(folder) / f"mutant{each.suffix}"
            path.write_bytes(each.content)
            before = time.process_time()
            signal.setitimer(signal.ITIMER_PROF, options.cpu)
            verdict, what = harm(path, each, watch)
            signal.setitimer(signal.ITIMER_PROF, 0)
            slowest = max(slowest, (time.process_time() - before, number))
            results[each.container, verdict] += 1
            if verdict == "harm":
                kept = Path(tempfile.mkdtemp(prefix="fuzz-")) / f"{number}{each.suffix}"
                kept.write_bytes(each.content)
                harmed.append(kept)
                print(f"harm by mutant {number} ({each.container}): {what}; kept as {kept}", flush=True)
    for container in BUILDERS:
        counts = {verdict: results[container, verdict] for verdict in ("read", "refused", "harm")}
        print(f"{container:12} " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{results.total()} mutants, slowest {slowest[0]:.2f} s of CPU (mutant {slowest[1]}), peak {peak} MiB")
    sys.stdout.flush()
    os._exit(bool(harmed))


if __name__ == "__main__":
    main()
