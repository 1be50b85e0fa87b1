"""The command `hourglass export`."""

from typing import Annotated, Literal

import tyro

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    PlanOptions,
    Plans,
    Size,
    print_json,
    select_plan,
)


def _batch(arguments: list[str]) -> int | None:
    return None if arguments[0] == "dynamic" else int(arguments[0])


Batch = Annotated[
    int | None,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="N|dynamic",
        instance_from_str=_batch,
        is_instance=lambda value: value is None or isinstance(value, int),
        str_from_instance=lambda value: ["dynamic" if value is None else str(value)],
    ),
]


def export(
    output: Output,
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    batch: Batch = 1,
    dtype: Literal["float32", "bfloat16"] = "float32",
    platforms: tuple[Literal["cpu", "cuda", "tpu"], ...] = ("cpu", "cuda", "tpu"),
    with_preprocessing: tyro.conf.FlagCreatePairsOff[bool] = False,
    photo_size: Size = None,
) -> None:
    """Writes a model as one file that runs without this library; without a plan unless one is given.

    FILE.stablehlo is read by jax.export.deserialize, wherever JAX is; FILE.stablehlo.json says what goes in and
    comes out. FILE.onnx is for ONNX Runtime and the like, and needs the extra "export" to be written; it is checked
    against JAX before. The images of one file are of one size.

    Example: hourglass export -o saliency.stablehlo --size 518 --method StagedMerging --keep 0.87

    Args:
        output: The file, .stablehlo or .onnx.
        batch: Images at once, or dynamic.
        dtype: Of the computation.
        platforms: What a .stablehlo file is for. One for a single platform has its fused attention in it (NVIDIA's
            in bfloat16), one for several has not.
        with_preprocessing: The file takes photographs, uint8 in 0..255, and normalises them.
        photo_size: Pixels, or rows and columns, of photographs that the file scales, too; by default they are of
            the model's input size.
    """
    import jax.numpy as jnp

    from hourglass_jax.export import Export, suffix_of, write_onnx, write_stablehlo
    from hourglass_jax.plans.expedite import fit_plan

    suffix = suffix_of(output)
    if photo_size is not None and not with_preprocessing:
        raise ValueError("--photo-size needs --with-preprocessing: only then does the file take photographs")
    loaded = hj.load(model.model, dtype=jnp.dtype(dtype))
    preprocessing = loaded.config.preprocessing
    if isinstance(model.size, int) or (model.size and preprocessing.resize in ("minimal", "square")):
        preprocessing = preprocessing.at(model.size)
    size = model.size if isinstance(model.size, tuple) else preprocessing.shape
    photo = None
    if with_preprocessing:
        photo = photo_size or size
        photo = (photo, photo) if isinstance(photo, int) else photo
        size = size if isinstance(model.size, tuple) else preprocessing.target_size(*photo)
    fast = hj.expedite(loaded, select_plan(plan, loaded, preprocessing.shape))
    if not plan.strict_plan:
        fast = fit_plan(fast, size, preprocessing.shape)
    made = Export(fast, size, batch, photo, preprocessing)
    described = write_onnx(made, output) if suffix == ".onnx" else write_stablehlo(made, output, platforms)
    if model.json:
        print_json({"file": str(output), **described})
        return
    print(f"{output}: {', '.join(described['outputs'])} of images {described['inputs']['images']['shape']}")
