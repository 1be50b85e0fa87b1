"""The command line, `hourglass`: every command in a file of its own."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from importlib import metadata

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
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that lacks a letter shows another one
    try:
        tyro.extras.subcommand_cli_from_dict(
            {function.__name__: function for function in _commands()},
            prog="hourglass",
            description="Trained vision transformers, faster with the same weights.",
            args=[FORMER.get(each, each) for each in (sys.argv[1:] if arguments is None else arguments)],
            config=(tyro.conf.DisallowNone,),
        )
        sys.stdout.flush()
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(1)
    except (ValueError, OSError) as problem:
        _fail(f"error: {problem}", 2)
    except Exception as problem:
        from hourglass_jax.predictor import is_out_of_memory

        if not is_out_of_memory(problem):
            raise
        reason = str(problem).strip().partition("\n")[0] or "an array could not be made"
        _fail(f"error: not enough memory, lower --size, --batch or the number of images at once: {reason}", 2)


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

    print(printable(" ".join(message.split())), file=sys.stderr)
    sys.exit(status)
