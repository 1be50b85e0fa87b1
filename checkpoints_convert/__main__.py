"""python -m checkpoints_convert SOURCE [-o TARGET]"""

import sys

import tyro

from checkpoints_convert.command import convert

if __name__ == "__main__":
    try:
        tyro.cli(convert, prog="python -m checkpoints_convert")
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
