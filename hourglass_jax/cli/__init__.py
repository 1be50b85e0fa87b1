"""The command line, `hourglass`: every command in a file of its own."""

import _thread
import contextlib
import functools
import io
import os
import sys
import threading
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any

import tyro

FORMER = {"--gflops": "--share", "--budget": "--share", "--speedup": "--faster"}
"""Options of the last version that have another name now; they work until the next one."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `hourglass`.

    Errors are one line on stderr. The exit status is 2 for an error that the user can fix, 1 if only a part of the
    work was done or the output pipe was closed, and 130 after Ctrl-C.
    """
    if list(sys.argv[1:] if arguments is None else arguments) == ["--version"]:
        print(f"hourglass_jax {metadata.version('hourglass-jax')}")
        return
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started this
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows another one
    dropped = sys.unraisablehook
    sys.unraisablehook = functools.partial(_keep_interrupt, dropped)
    try:
        tyro.extras.subcommand_cli_from_dict(
            {function.__name__: function for function in _commands()},
            prog="hourglass",
            description="Trained vision transformers, faster with the same weights.",
            args=list(map(_renamed, sys.argv[1:] if arguments is None else arguments)),
            config=(tyro.conf.DisallowNone,),
        )
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        _let_go_of_stdout()
        sys.exit(1)
    except (ValueError, OSError) as problem:
        _fail(f"error: {problem}", 2)
    except Exception as problem:
        from hourglass_jax.predictor import is_out_of_memory, memory_sentence

        if not is_out_of_memory(problem):
            raise
        _fail(f"error: {memory_sentence(problem)}", 2)
    finally:
        sys.unraisablehook = dropped


def _keep_interrupt(others: Callable[[Any], object], dropped: Any) -> None:
    """Python drops what is raised in callbacks of its garbage collector: a Ctrl-C there is sent again."""
    if isinstance(dropped.exc_value, KeyboardInterrupt):
        threading.Timer(0.05, _thread.interrupt_main).start()
    else:
        others(dropped)


def _renamed(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return FORMER.get(name, name) + equals + value


def _commands() -> tuple[Callable[..., None], ...]:
    from checkpoints_convert.command import convert
    from hourglass_jax.cli.ablate import ablate
    from hourglass_jax.cli.bench import bench
    from hourglass_jax.cli.compare import compare
    from hourglass_jax.cli.demo import demo
    from hourglass_jax.cli.evaluate import eval
    from hourglass_jax.cli.export import export
    from hourglass_jax.cli.features import features
    from hourglass_jax.cli.flops import flops
    from hourglass_jax.cli.models import models
    from hourglass_jax.cli.predict import predict
    from hourglass_jax.cli.tune import tune
    from hourglass_jax.cli.visualize import visualize

    return models, predict, compare, features, flops, bench, tune, visualize, ablate, convert, eval, export, demo


def _fail(message: str, status: int) -> None:
    from hourglass_jax.io.text import printable

    try:
        sys.stdout.flush()
    except OSError:
        _let_go_of_stdout()
    with contextlib.suppress(OSError):
        print(printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)


def _let_go_of_stdout() -> None:
    """Python flushes once more at its end, which must not fail again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
