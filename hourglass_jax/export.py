"""A model under its plan as a file that runs without this library: StableHLO, or ONNX."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from hourglass_jax.imaging.images import Preprocessing
from hourglass_jax.imaging.padded_square import PaddedSquare
from hourglass_jax.io.files import replacing, write_json
from hourglass_jax.models.base import Model, PromptedVisionModel
from hourglass_jax.models.registry import flat_parameters, header
from hourglass_jax.ops.resize import resize
from hourglass_jax.ops.targets import attention_form
from hourglass_jax.plans.act import ACT
from hourglass_jax.plans.dynamic_vit import DynamicViT
from hourglass_jax.plans.files import plan_fields

PLATFORMS = ("cpu", "cuda", "tpu")
KERNELS = ("__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax")
"""cuDNN's attention: a name that cuDNN and XLA keep, and that JAX does not promise to keep."""
LARGEST = 2**31
"""Bytes that a file of either kind can hold."""
TOLERANCE = 1e-4
"""What ONNX Runtime's outputs may differ by from JAX's, in units of the largest."""

Outputs = dict[str, jax.Array]


@dataclass(frozen=True)
class Export:
    """A model as a function of images alone.

    Attributes:
        model: under any plan.
        size: (rows, columns) of the model's input.
        batch: number of images; None leaves it open.
        photo: (rows, columns) of photographs, uint8, where the file is to prepare them; None if the file takes
            images as the model does, float32 and normalised.
        preprocessing: how images are prepared; by default as the model's config says.

    Raises:
        ValueError: the batch is not positive, or photographs do not become as large as the model's input.
    """

    model: Model
    size: tuple[int, int]
    batch: int | None = 1
    photo: tuple[int, int] | None = None
    preprocessing: Preprocessing | None = None

    def __post_init__(self) -> None:
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"batch must be at least 1, got {self.batch}")
        if self.photo is not None and isinstance(self.prepared, PaddedSquare):
            raise ValueError(
                "this model's photographs are filled up to a square, which a file does not do: export it for "
                "images that are prepared"
            )
        if self.photo is not None and (target := self.prepared.target_size(*self.photo)) != self.size:
            raise ValueError(
                "photographs must become as large as the model's input, {} x {} pixels: those of {} x {} become "
                "{} x {}".format(*self.size, *self.photo, *target)
            )

    @property
    def prepared(self) -> Preprocessing:
        """How images are prepared."""
        return self.preprocessing or self.model.config.preprocessing

    @property
    def images(self) -> jax.ShapeDtypeStruct:
        """What the function takes."""
        size, dtype = (self.size, jnp.float32) if self.photo is None else (self.photo, jnp.uint8)
        if self.batch is None:
            return jax.ShapeDtypeStruct(jax.export.symbolic_shape(f"batch, {size[0]}, {size[1]}, 3"), dtype)
        return jax.ShapeDtypeStruct((self.batch, *size, 3), dtype)

    def __call__(self, images: jax.Array) -> Outputs:
        """Images -> the outputs by name: maps as large as the images, or what is encoded for prompts."""
        if self.photo is not None:
            images = prepare(images, self.prepared, self.size)
        takes_prompts = isinstance(self.model, PromptedVisionModel)
        found = self.model.features(images) if takes_prompts else self.model(images)
        leaves = jax.tree_util.tree_leaves_with_path(found)
        if len(leaves) == 1:
            return {next(iter(self.model.tasks)): leaves[0][1]}
        return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}

    def describe(self, platforms: Sequence[str]) -> dict[str, Any]:
        """What the file says of itself, as JSON keeps it."""
        outputs = jax.eval_shape(self, self.images)
        plan, task = self.model.backbone.plan, next(iter(self.model.tasks.values()))
        labels = getattr(task, "labels", None)
        preprocessing = self.prepared
        described = {
            "model": header(self.model)["model"],
            "plan": None if plan is None else plan_fields(plan),
            "platforms": list(platforms),
            "inputs": {"images": _described(self.images)},
            "outputs": {name: _described(each) for name, each in outputs.items()},
            "classes": None if labels is None else list(labels.names),
            "preprocessing": {
                "in the file": self.photo is not None,
                "mean": preprocessing.mean,
                "std": preprocessing.std,
                "channels": "RGB in 0..1 before the mean is subtracted",
            },
            "jax": jax.__version__,
            "licence": "that of the model's weights, which are in the file",
        }
        return json.loads(json.dumps(described))


def prepare(images: jax.Array, preprocessing: Preprocessing, size: tuple[int, int]) -> jax.Array:
    """What `Preprocessing` makes of photographs, to one of 255 steps.

    Args:
        images: uint8 [B, rows, columns, 3].
        preprocessing: how they are prepared.
        size: (rows, columns) that they become.

    Returns:
        float32 [B, *size, 3].
    """
    pixels, scaled = images.astype(jnp.float32), size
    if preprocessing.resize == "crop":
        rows, columns = images.shape[1:3]
        unit = min(rows, columns)
        scaled = preprocessing.shape[0] * rows // unit, preprocessing.shape[0] * columns // unit
    if preprocessing.interpolation == "cubic":
        pixels = resize(pixels, scaled, "bicubic")
    elif preprocessing.interpolation == "linear":
        pixels = jnp.rint(resize(pixels, scaled, "bilinear"))
    else:
        pixels = _resize_by_pillow(pixels, (pixels.shape[1], scaled[1]), preprocessing.interpolation)
        pixels = _resize_by_pillow(pixels, scaled, preprocessing.interpolation)
    top, left = (round((side - kept) / 2) for side, kept in zip(scaled, size, strict=True))
    pixels = pixels[:, top : top + size[0], left : left + size[1]]
    mean, std = (np.asarray(each, np.float32) for each in (preprocessing.mean, preprocessing.std))
    return (pixels / 255 - mean) / std


def _resize_by_pillow(pixels: jax.Array, size: tuple[int, int], interpolation: str) -> jax.Array:
    """One axis of images, rounded to 8 bits: Pillow resizes the columns first, and rounds after each axis."""
    if pixels.shape[1:3] == size:
        return pixels
    if interpolation == "bicubic":
        pixels = resize(pixels, size, "bicubic-antialias")
    else:
        pixels = jax.image.resize(pixels, (pixels.shape[0], *size, 3), "linear", antialias=True)
    return jnp.clip(jnp.floor(pixels + 0.5), 0, 255)


def write_stablehlo(
    export: Export, path: str | os.PathLike[str], platforms: Sequence[str] = PLATFORMS
) -> dict[str, Any]:
    """Writes a file that `jax.export.deserialize` reads, and beside it, as FILE.json, what it is.

    Args:
        export: the model.
        path: the target.
        platforms: of `PLATFORMS`. A file for one of them has its fused attention in it; one for several has XLA's.

    Returns:
        What the JSON file says.

    Raises:
        ValueError: a platform is unknown, or the parameters are too large.
    """
    unknown = [each for each in platforms if each not in PLATFORMS]
    if unknown or not platforms:
        raise ValueError(f"platforms must be of {', '.join(PLATFORMS)}, got {', '.join(unknown) or 'none'}")
    _check_bytes(export.model)
    checks = [jax.export.DisabledSafetyCheck.custom_call(name) for name in KERNELS]
    with attention_form("auto" if len(platforms) == 1 else "portable"):
        lower = jax.export.export(jax.jit(export.__call__), platforms=platforms, disabled_checks=checks)
        described = export.describe(platforms)
        with replacing(path) as temporary:
            temporary.write_bytes(lower(export.images).serialize())
    write_json(f"{path}.json", described)
    return described


def write_onnx(export: Export, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Writes an ONNX file whose metadata say what it is, if ONNX Runtime computes with it what JAX does.

    Args:
        export: the model.
        path: the target.

    Returns:
        The metadata.

    Raises:
        ValueError: jax2onnx or ONNX Runtime is not installed, the plan has no form in ONNX, or the outputs differ
            by more than `TOLERANCE`.
    """
    plan = export.model.backbone.plan
    if isinstance(plan, DynamicViT | ACT):
        raise ValueError(f"plans of {type(plan).__name__} have no form in ONNX: export to .stablehlo")
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]  in the extra "export" alone
        from jax2onnx import to_onnx  # pyright: ignore[reportMissingImports]  in the extra "export" alone
    except ImportError as problem:
        raise ValueError(
            f"writing .onnx needs {problem.name}: pip install 'hourglass-jax[export]', or export to .stablehlo"
        ) from None
    _check_bytes(export.model)
    described = export.describe(["onnx"])
    names = list(described["outputs"])
    with attention_form("xla"):
        images = ("batch", *export.images.shape[1:]) if export.batch is None else export.images
        proto = to_onnx(
            lambda images: tuple(export(images).values()), inputs=[images], model_name=described["model"]
        )
    _rename(proto, {each.name: name for each, name in zip(proto.graph.output, names, strict=True)})
    _rename(proto, {proto.graph.input[0].name: "images"})
    for key, value in described.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value if isinstance(value, str) else json.dumps(value)
    content = proto.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    _check_same(export, lambda images: session.run(names, {"images": images}))
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return described


def _rename(proto: Any, names: Mapping[str, str]) -> None:
    """Gives values of an ONNX graph other names, wherever they stand."""
    for value in (*proto.graph.input, *proto.graph.output):
        value.name = names.get(value.name, value.name)
    for node in proto.graph.node:
        for values in (node.input, node.output):
            values[:] = [names.get(each, each) for each in values]


def _check_same(export: Export, other: Callable[[np.ndarray], Sequence[Any]]) -> None:
    """Raises ValueError if another program does not compute a random image's outputs as JAX does."""
    shape = (export.batch or 2, *export.images.shape[1:])
    random = np.random.default_rng(0)
    if export.photo is None:
        images = random.standard_normal(shape, np.float32)
    else:
        images = random.integers(0, 256, shape, np.uint8)
    expected, found = jax.jit(export.__call__)(images), other(images)
    for (name, values), same in zip(expected.items(), found, strict=True):
        wanted = np.asarray(values, np.float32)
        error = np.abs(np.asarray(same, np.float32) - wanted).max() / np.abs(wanted).max()
        if not error <= TOLERANCE:
            raise ValueError(
                f"the ONNX file's output {name!r} differs from JAX's by {error:.1e} of its largest value, expected "
                f"at most {TOLERANCE:.0e}: nothing was written"
            )


def _check_bytes(model: Model) -> None:
    taken = sum(each.size * each.dtype.itemsize for each in flat_parameters(model).values())
    if taken >= LARGEST:
        raise ValueError(
            f"the parameters take {taken / 1e9:.1f} GB, and a file holds at most {LARGEST / 1e9:.1f} GB"
        )


def _described(array: jax.ShapeDtypeStruct) -> dict[str, object]:
    shape = [each if isinstance(each, int) else str(each) for each in array.shape]
    return {"shape": shape, "dtype": array.dtype.name}


def suffix_of(path: Path) -> str:
    """.onnx or .stablehlo; ValueError for another."""
    if path.suffix not in (".onnx", ".stablehlo"):
        raise ValueError(f"output must end in .onnx or .stablehlo, got {path.name}")
    return path.suffix
