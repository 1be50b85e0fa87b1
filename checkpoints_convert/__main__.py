"""python -m checkpoints_convert SOURCE [-o TARGET]"""

import sys
from pathlib import Path
from typing import Annotated

import tyro


def main(
    source: tyro.conf.Positional[Path],
    target: Annotated[Path | None, tyro.conf.arg(name="output", aliases=["-o"])] = None,
) -> None:
    """Converts official weights to one safetensors file that hourglass_jax.load reads. No PyTorch is needed.

    Example: python -m checkpoints_convert vit_s_focus.onnx -o saliency.safetensors

    Args:
        source: the checkpoint: an ONNX file, or one that PyTorch wrote (.pth, .pt, .bin, .ckpt, .pkl).
        target: where to write; by default beside the source.
    """
    from checkpoints_convert.convert import convert, describe

    print(describe(convert(source, target)))


if __name__ == "__main__":
    try:
        tyro.cli(main, prog="python -m checkpoints_convert")
    except (ValueError, OSError) as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
