"""The command line, `hourglass`: every command in a file of its own."""

import sys
from collections.abc import Sequence

import tyro


def main(arguments: Sequence[str] | None = None) -> None:
    """The entry point of `hourglass`: errors are one line on stderr and exit status 2."""
    from checkpoints_convert.command import convert
    from hourglass_jax.cli.ablate import ablate
    from hourglass_jax.cli.bench import bench
    from hourglass_jax.cli.compare import compare, demo
    from hourglass_jax.cli.evaluate import eval
    from hourglass_jax.cli.features import features
    from hourglass_jax.cli.flops import flops
    from hourglass_jax.cli.models import models
    from hourglass_jax.cli.predict import predict
    from hourglass_jax.cli.tune import tune
    from hourglass_jax.cli.visualize import visualize

    functions = (
        *(models, predict, compare, features, flops, bench, tune),
        *(visualize, ablate, convert, eval, demo),
    )
    commands = {each.__name__: each for each in functions}
    try:
        tyro.extras.subcommand_cli_from_dict(
            commands,
            prog="hourglass",
            description="Trained vision transformers, faster with the same weights.",
            args=arguments,
            config=(tyro.conf.DisallowNone,),
        )
    except (ValueError, OSError) as problem:
        print("error:", " ".join(str(problem).split()), file=sys.stderr)
        sys.exit(2)
