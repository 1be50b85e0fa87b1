"""The command `python -m checkpoints_convert`, which is `hourglass convert` too."""

from pathlib import Path
from typing import Annotated, Literal

import tyro
from tqdm import tqdm

DELAY = 1
"""Seconds of writing after which a progress bar appears."""


def convert(
    source: tyro.conf.Positional[Path],
    target: Annotated[Path | None, tyro.conf.arg(name="output", aliases=["-o"])] = None,
    family: Annotated[str | None, tyro.conf.arg(name="model")] = None,
    settings: Annotated[Path | None, tyro.conf.arg(name="config")] = None,
    key: str | None = None,
    heads: int | None = None,
    grid: tuple[int, int] | None = None,
    dataset: Literal[
        "ade20k",
        "cityscapes",
        "pascal_context",
        "imagenet2012",
        "coco_panoptic",
        "coco_instance",
        "ade20k_instance",
        "cityscapes_instance",
        "mapillary_vistas",
    ]
    | None = None,
    allow_nonfinite: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    skip_objects: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> None:
    """Converts official weights to one safetensors file that hourglass_jax.load reads. No PyTorch is needed.

    Example: hourglass convert seg_large_mask_640/checkpoint.pth -o segmenter.safetensors

    Args:
        source: The checkpoint: a PyTorch, ONNX, safetensors or .npz file, or a folder or an index of shards.
        target: The file to write; by default beside the source, where only an earlier conversion of it is replaced.
        family: The family of the checkpoint, if its tensors fit several; the error message names them.
        settings: The settings file of the checkpoint (variant.yml, config.json); by default the one beside it.
        key: The entry of the checkpoint to convert, if it has several, such as model or teacher.
        heads: Number of attention heads of a ViT, if neither settings nor a published shape determine it.
        grid: Rows and columns of a ViT's position embedding, if it is not square and no settings give them.
        dataset: Data set of the model's classes, if the checkpoint does not name it.
        allow_nonfinite: Convert weights that are NaN or infinite, too.
        skip_objects: Skip objects of any class beside the weights; objects are never created. By default only those
            of known training frameworks are skipped, and others are an error.
        dtype: Data type of the written parameters.
    """
    from checkpoints_convert.convert import convert, describe

    with tqdm(desc="writing", unit="B", unit_scale=True, delay=DELAY, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        summary = convert(
            source,
            target,
            family=family,
            settings=settings,
            key=key,
            heads=heads,
            grid=grid,
            dataset=dataset,
            allow_nonfinite=allow_nonfinite,
            skip_objects=skip_objects,
            dtype=dtype,
            on_progress=show,
        )
    print(describe(summary))
