"""The checkpoints of DPT and Depth Anything V1 and V2: the official ones, and those of transformers.

Source: isl-org/DPT, dpt/{models,blocks,vit}.py, run_monodepth.py and run_segmentation.py;
LiheYoung/Depth-Anything, depth_anything/dpt.py and run.py; DepthAnything/Depth-Anything-V2,
depth_anything_v2/dpt.py and metric_depth; huggingface/transformers, src/transformers/models/dpt and
src/transformers/models/depth_anything.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from reprlib import repr as short

import numpy as np

from checkpoints_convert.labels import class_fields
from checkpoints_convert.rules import (
    Family,
    Fields,
    Given,
    Row,
    Settings,
    Tensors,
    convolution,
    linear,
    pointwise,
    row,
    same,
    shape_of,
)
from checkpoints_convert.settings import Section, integers, require, section, text
from checkpoints_convert.settings import number as finite_number
from checkpoints_convert.vit import (
    HALF,
    IMAGENET_MEAN,
    IMAGENET_STD,
    Names,
    timm,
    transformers_dinov2,
    transformers_dpt,
    vit_sections,
)

MAPS = 4
STEM_STAGES = 3
STANDARDISATION_EPSILON = 1e-8
KITTI, NYU = (0.00006016, 0.00579), (0.000305, 0.1378)
"""Scale and shift of inverse depth, 1 / metre, in run_monodepth.py."""
BLOCKS = {12: (2, 5, 8, 11), 24: (5, 11, 17, 23)}
"""DPT's hooks by the number of blocks; of a hybrid's only the last two are blocks."""
V2_BLOCKS = {12: (2, 5, 8, 11), 24: (4, 11, 17, 23), 40: (9, 19, 29, 39)}
"""Depth Anything V2's hooks by the number of blocks; V1 has the same tensors, and reads the last four blocks."""
PREPROCESSING = {"multiple": 32, "resize": "minimal", "interpolation": "cubic", "mean": HALF, "std": HALF}
DINOV2_PREPROCESSING = {
    "size": 518,
    "multiple": 14,
    "resize": "shortest",
    "interpolation": "cubic",
    "mean": IMAGENET_MEAN,
    "std": IMAGENET_STD,
}
NO_COARSER_MAP = "of the coarsest map, which is added to nothing"


@dataclass(frozen=True)
class Head:
    """The names that a code base gives to the parts between the backbone and the output.

    Attributes:
        readout, projection, resize, convolution: of a map, by its number; the finest is 0.
        fusion: of a map likewise; `unit1`, `unit2` and `out` are parts of it.
        convolutions, norms: parts of a unit.
    """

    readout: Callable[[int], str]
    projection: Callable[[int], str]
    resize: Callable[[int], str]
    convolution: Callable[[int], str]
    fusion: Callable[[int], str]
    unit1: str
    unit2: str
    out: str
    convolutions: tuple[str, str]
    norms: tuple[str, str]

    def rows(
        self, reassembled: range = range(MAPS), *, batch_norm: bool = False, readout: bool = True
    ) -> list[Row]:
        """The rows of these parts.

        Args:
            reassembled: the numbers of the maps that come from blocks.
            batch_norm: whether there is one after every convolution of the residual units.
            readout: whether the class token is joined to the others.
        """
        rows = []
        for place, number in enumerate(reassembled):
            ours = f"reassemble.{place}."
            if readout:
                rows += [
                    row(f"{ours}readout.kernel", f"{self.readout(number)}.weight", linear),
                    row(f"{ours}readout.bias", f"{self.readout(number)}.bias", same),
                ]
            rows += [
                row(f"{ours}projection.kernel", f"{self.projection(number)}.weight", pointwise),
                row(f"{ours}projection.bias", f"{self.projection(number)}.bias", same),
                row(f"{ours}upsampling.kernel", f"{self.resize(number)}.weight", tiles),
                row(f"{ours}upsampling_bias", f"{self.resize(number)}.bias", same),
                row(f"{ours}downsampling.kernel", f"{self.resize(number)}.weight", convolution),
                row(f"{ours}downsampling.bias", f"{self.resize(number)}.bias", same),
            ]
        for number in range(MAPS):
            ours, theirs = f"fusions.{number}.", self.fusion(number)
            rows += [
                row(f"convolutions.{number}.kernel", f"{self.convolution(number)}.weight", convolution),
                row(f"{ours}projection.kernel", f"{theirs}.{self.out}.weight", pointwise),
                row(f"{ours}projection.bias", f"{theirs}.{self.out}.bias", same),
            ]
            for unit, name in (("unit1", self.unit1), ("unit2", self.unit2)):
                for i in range(2):
                    source = f"{theirs}.{name}."
                    target = f"{ours}{unit}.convolution{i + 1}"
                    rows.append(row(f"{target}.kernel", f"{source}{self.convolutions[i]}.weight", convolution))
                    if batch_norm:
                        rows += norm_rows(f"{ours}{unit}.norm{i + 1}", source + self.norms[i])
                    else:
                        rows.append(row(f"{target}.bias", f"{source}{self.convolutions[i]}.bias", same))
        return rows


def tiles(weight: np.ndarray) -> np.ndarray:
    """A transposed convolution [in, out, side, side] of this stride as a linear kernel [in, side * side * out]."""
    return weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)


def standardised(weight: np.ndarray) -> np.ndarray:
    """A convolution [out, in, rows, columns] with standardised weights, as [rows, columns, in, out]."""
    values = weight.astype(np.float64)
    axes = (1, 2, 3)
    deviation = np.sqrt(values.var(axis=axes, keepdims=True) + STANDARDISATION_EPSILON)
    return convolution(((values - values.mean(axis=axes, keepdims=True)) / deviation).astype(np.float32))


def norm_rows(target: str, source: str) -> list[Row]:
    """The rows of a batch norm."""
    names = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    return [row(f"{target}.{ours}", f"{source}.{theirs}", same) for ours, theirs in names.items()]


def stem_rows(first: str, first_norm: str, block: Callable[[int], str]) -> list[Row]:
    """The rows of a hybrid's stem; `block` names the bottlenecks of a stage, "*" being their number."""
    ours = "backbone.stem."
    rows = [row(f"{ours}convolution.kernel", f"{first}.weight", standardised)]
    norms = [(f"{ours}norm", first_norm)]
    for stage in range(STEM_STAGES):
        target, source = f"{ours}stages.{stage}.*.", block(stage)
        for i in (1, 2, 3):
            rows.append(row(f"{target}convolution{i}.kernel", f"{source}conv{i}.weight", standardised))
            norms.append((f"{target}norm{i}", f"{source}norm{i}"))
        rows.append(row(f"{target}shortcut.kernel", f"{source}downsample.conv.weight", standardised))
        norms.append((f"{target}shortcut_norm", f"{source}downsample.norm"))
    for target, source in norms:
        rows += [
            row(f"{target}.scale", f"{source}.weight", same),
            row(f"{target}.bias", f"{source}.bias", same),
        ]
    return rows


def depth_rows(names: tuple[str, str, str]) -> list[Row]:
    """The rows of the depth head, whose three convolutions have these names."""
    rows = []
    for target, source, build in zip(
        ("convolution1", "convolution2", "regression"), names, (convolution, convolution, pointwise), strict=True
    ):
        rows += [
            row(f"{target}.kernel", f"{source}.weight", build),
            row(f"{target}.bias", f"{source}.bias", same),
        ]
    return rows


def segmentation_rows(prefix: str) -> list[Row]:
    """The rows of the segmentation head."""
    return [
        row("convolution.kernel", f"{prefix}0.weight", convolution),
        *norm_rows("norm", f"{prefix}1"),
        row("classifier.kernel", f"{prefix}4.weight", pointwise),
        row("classifier.bias", f"{prefix}4.bias", same),
    ]


POSTPROCESS = "pretrained.act_postprocess"
SCRATCH = "scratch."
OFFICIAL = Head(
    readout=lambda i: f"{POSTPROCESS}{i + 1}.0.project.0",
    projection=lambda i: f"{POSTPROCESS}{i + 1}.3",
    resize=lambda i: f"{POSTPROCESS}{i + 1}.4",
    convolution=lambda i: f"{SCRATCH}layer{i + 1}_rn",
    fusion=lambda i: f"{SCRATCH}refinenet{i + 1}",
    unit1="resConfUnit1",
    unit2="resConfUnit2",
    out="out_conv",
    convolutions=("conv1", "conv2"),
    norms=("bn1", "bn2"),
)
DEPTH_ANYTHING = replace(
    OFFICIAL,
    projection=lambda i: f"depth_head.projects.{i}",
    resize=lambda i: f"depth_head.resize_layers.{i}",
    convolution=lambda i: f"depth_head.{SCRATCH}layer{i + 1}_rn",
    fusion=lambda i: f"depth_head.{SCRATCH}refinenet{i + 1}",
)
TRANSFORMERS = Head(
    readout=lambda i: f"neck.reassemble_stage.readout_projects.{i}.0",
    projection=lambda i: f"neck.reassemble_stage.layers.{i}.projection",
    resize=lambda i: f"neck.reassemble_stage.layers.{i}.resize",
    convolution=lambda i: f"neck.convs.{i}",
    fusion=lambda i: f"neck.fusion_stage.layers.{MAPS - 1 - i}",
    unit1="residual_layer1",
    unit2="residual_layer2",
    out="projection",
    convolutions=("convolution1", "convolution2"),
    norms=("batch_norm1", "batch_norm2"),
)

TIMM = timm("pretrained.model.")
TIMM_STEM = "pretrained.model.patch_embed.backbone."
BIT = "dpt.embeddings.backbone.bit."
STEMS = {
    f"{TIMM_STEM}stem.conv": (f"{TIMM_STEM}stem.norm", lambda i: f"{TIMM_STEM}stages.{i}.blocks.*."),
    f"{BIT}embedder.convolution": (f"{BIT}embedder.norm", lambda i: f"{BIT}encoder.stages.{i}.layers.*."),
}
"""Name of the first convolution -> of its norm, and of the bottlenecks of a stage."""
HYBRID_MAPS = range(2, MAPS)


def _backbone(tensors: Tensors, names: Names, given: Given) -> Fields:
    """A `ViTConfig` of DPT, with a stem if the checkpoint has one."""
    first = next((name for name in STEMS if f"{name}.weight" in tensors), None)
    stride = 1 if first is None else 4 * 2 ** (STEM_STAGES - 1)
    sections = vit_sections(given.settings)
    backbone = {**names.config(tensors, given, *sections, stride=stride), "position_resize": "bilinear"}
    if first is not None:
        _, block = STEMS[first]
        names_of = [block(stage).replace("*", "{}") + "conv3.weight" for stage in range(STEM_STAGES)]
        backbone["stem"] = {
            "depths": [_count(tensors, name) for name in names_of],
            "widths": [shape_of(tensors, name.format(0), axes=4)[0] for name in names_of],
            "stem_width": shape_of(tensors, f"{first}.weight", axes=4)[0],
        }
    return backbone


def _count(tensors: Tensors, name: str) -> int:
    """How many tensors there are of this name with a number in it, from 0."""
    count = 0
    while name.format(count) in tensors:
        count += 1
    return count


def _fused(tensors: Tensors, head: Head, backbone: Fields, hooks: tuple[int, ...]) -> Fields:
    """The fields of a `DPTConfig` that all have."""
    widths = [shape_of(tensors, f"{head.convolution(i)}.weight", axes=4) for i in range(MAPS)]
    return {
        "backbone": backbone,
        "hooks": hooks[2:] if "stem" in backbone else hooks,
        "widths": [width[1] for width in widths],
        "fusion_width": widths[0][0],
    }


def _hooks(backbone: Fields, known: dict[int, tuple[int, ...]]) -> tuple[int, ...]:
    depth = backbone["depth"]
    if depth not in known:
        blocks = " or ".join(map(str, known))
        raise ValueError(f"the blocks whose features are fused are known for {blocks} blocks, got {depth}")
    return known[depth]


def _last(backbone: Fields) -> tuple[int, ...]:
    """The last four blocks."""
    depth = backbone["depth"]
    if depth < MAPS:
        raise ValueError(f"the features of the last {MAPS} blocks are fused, but there are {depth}")
    return tuple(range(depth - MAPS, depth))


def _official(size: int | tuple[int, int], **fields: object) -> Callable[[Tensors, Given], Fields]:
    """How to configure an official DPT."""

    def configure(tensors: Tensors, given: Given) -> Fields:
        backbone = _backbone(tensors, TIMM, given)
        config = _fused(tensors, OFFICIAL, backbone, _hooks(backbone, BLOCKS))
        return {**config, **_classes(tensors, f"{SCRATCH}output_conv.4", given), **fields} | {
            "preprocessing": {**PREPROCESSING, "size": size}
        }

    return configure


def _classes(tensors: Tensors, classifier: str, given: Given) -> Fields:
    """The fields of a `DPTSegmentationConfig` for this classifier; none for a depth head, which has one output."""
    classes = shape_of(tensors, f"{classifier}.weight", axes=4)[0]
    return {} if classes == 1 else class_fields(classes, given)


NECK = {"readout_type": ("project",), "head_in_index": (-1,), "add_projection": (False,)}
"""What changes a DPT's results in transformers' settings: the values that the one here has."""
FACTORS = {"reassemble_factors": ([4, 2, 1, 0.5],), "neck_ignore_stages": ([], None, [0, 1])}
HYBRID_FACTORS = {"reassemble_factors": ([1, 1, 1, 0.5], [4, 2, 1, 0.5]), "neck_ignore_stages": ([0, 1],)}
"""A hybrid's first two maps come from its stem, and are not reassembled whatever the factors say."""
BIT_BACKBONE = {
    "hidden_act": ("relu",),
    "layer_type": ("bottleneck",),
    "global_padding": ("SAME",),
    "num_groups": (32,),
    "num_channels": (3,),
    "embedding_dynamic_padding": (True,),
    "width_factor": (1,),
}
"""What changes the results of transformers' BiT: the values that a hybrid's stem here has."""


def _transformers(tensors: Tensors, given: Given) -> Fields:
    settings, is_hybrid = given.settings, "dpt.embeddings.projection.weight" in tensors
    require(settings, NECK | (HYBRID_FACTORS if is_hybrid else FACTORS))
    backbone = _backbone(tensors, transformers_dpt(hybrid=is_hybrid), given)
    backbone.setdefault("norm_epsilon", 1e-12)
    if is_hybrid:
        _check_bit(section(settings, "backbone_config"), backbone["stem"]["depths"])
    hooks = integers(settings, "backbone_out_indices") or _hooks(backbone, BLOCKS)
    config = {**_fused(tensors, TRANSFORMERS, backbone, hooks), **_classes(tensors, "head.head.4", given)}
    return {**config, "preprocessing": {**PREPROCESSING, "size": 480 if "classes" in config else 384}}


def _check_bit(bit: Section, depths: list[int]) -> None:
    """Raises ValueError if the settings of a hybrid's BiT are of another one than the stem here."""
    require(bit, BIT_BACKBONE)
    said = integers(bit, "depths")
    if said not in (None, tuple(depths)):
        raise ValueError(f"the settings are of another model: they say depths {said}, the checkpoint has {depths}")


def _depth_anything(
    hooks: Callable[[Fields], tuple[int, ...]], max_depth: float | None = None
) -> Callable[[Tensors, Given], Fields]:
    """How to configure an official Depth Anything."""

    def configure(tensors: Tensors, given: Given) -> Fields:
        names = timm("pretrained.")
        backbone = {**names.config(tensors, given, *vit_sections(given.settings)), "position_offset": 0.1}
        config = _fused(tensors, DEPTH_ANYTHING, backbone, hooks(backbone))
        return {**config, **_of_dinov2(max_depth)}

    return configure


def _of_dinov2(max_depth: float | None) -> Fields:
    return {
        "readout": "ignore",
        "norm_features": True,
        "max_depth": max_depth,
        "resampling": "bilinear-align-corners",
        "preprocessing": DINOV2_PREPROCESSING,
    }


def _depth_anything_transformers(tensors: Tensors, given: Given) -> Fields:
    settings = given.settings
    vit, kind = section(settings, "backbone_config"), text(settings, "depth_estimation_type")
    if kind not in ("relative", "metric", None) or not vit:
        raise ValueError(
            "whether the depth is relative or metric stands in the config.json of a Depth Anything: "
            "put it beside the checkpoint, or name it with --config"
        )
    require(settings, {**NECK, **FACTORS, "head_hidden_size": (32,)})
    whole = {name: settings[name] for name in ("patch_size",) if name in settings}
    backbone = transformers_dinov2("backbone.").config(tensors, given, vit, whole)
    config = _fused(tensors, TRANSFORMERS, backbone, _stages(vit))
    require(vit, {"apply_layernorm": (True, False)})
    max_depth = (finite_number(settings, "max_depth") or 1.0) if kind == "metric" else None
    return {**config, **_of_dinov2(max_depth), "norm_features": vit.get("apply_layernorm", True)}


def _stages(vit: Section) -> tuple[int, ...]:
    """The 0-based blocks whose features are fused; transformers counts the patch embedding as stage 0.

    Raises:
        ValueError: the settings do not say them.
    """
    stages = integers(vit, "out_indices", least=1)
    features = vit.get("out_features")
    if stages is None and isinstance(features, list | tuple):
        names = [re.fullmatch(r"stage([1-9]\d{0,5})", str(each)) for each in features]
        stages = tuple(int(name.group(1)) for name in names if name) if all(names) else None
    if stages is None:
        raise ValueError(
            "the settings must say which blocks are fused, as backbone_config of config.json does in out_indices, "
            f"got {short(vit.get('out_indices'))} and out_features {short(features)}"
        )
    return tuple(stage - 1 for stage in stages)


def _fits(head: str, *, stem: str = "", is_hybrid: bool | None = None) -> Callable[[Tensors, Settings], bool]:
    """Whether a checkpoint has this tensor, and a stem that begins with that one or none."""

    def fits(tensors: Tensors, settings: Settings) -> bool:
        return head in tensors and is_hybrid in (None, f"{stem}.weight" in tensors)

    return fits


COUNTS = {r".*\.num_batches_tracked": "counts batches in training"}
OFFICIAL_IGNORED = {
    r"scratch\.refinenet4\.resConfUnit1\..*": NO_COARSER_MAP,
    r"pretrained\.model\.(head|head_dist|pre_logits)\..*": "head of the ImageNet classifier that it was trained as",
    r"auxlayer\..*": "second head, for training",
    **COUNTS,
}
TRANSFORMERS_IGNORED = {
    r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*": NO_COARSER_MAP,
    r"auxiliary_head\..*": "second head, for training",
    r"dpt\.pooler\..*": "pools the class token, which nothing uses",
    **COUNTS,
}
OFFICIAL_DEPTH = (f"{SCRATCH}output_conv.0", f"{SCRATCH}output_conv.2", f"{SCRATCH}output_conv.4")
OFFICIAL_STEM, BIT_STEM = STEMS


def _official_family(
    name: str, size: int | tuple[int, int], *, is_hybrid: bool, segments: bool = False, **fields: object
) -> Family:
    maps = HYBRID_MAPS if is_hybrid else range(MAPS)
    return Family(
        name=name,
        model="dpt-segmentation" if segments else "dpt-depth",
        fits=_fits(
            f"{SCRATCH}output_conv.{'1.running_mean' if segments else '2.weight'}",
            stem=OFFICIAL_STEM,
            is_hybrid=is_hybrid,
        ),
        configure=_official(size, **fields),
        table=(
            *TIMM.rows(),
            *(stem_rows(OFFICIAL_STEM, *STEMS[OFFICIAL_STEM]) if is_hybrid else ()),
            *OFFICIAL.rows(maps, batch_norm=segments),
            *(segmentation_rows(f"{SCRATCH}output_conv.") if segments else depth_rows(OFFICIAL_DEPTH)),
        ),
        ignored=OFFICIAL_IGNORED,
    )


def _transformers_family(*, is_hybrid: bool, segments: bool) -> Family:
    maps = HYBRID_MAPS if is_hybrid else range(MAPS)
    heads = ("head.head.0", "head.head.2", "head.head.4")
    return Family(
        name="dpt-transformers",
        model="dpt-segmentation" if segments else "dpt-depth",
        fits=_fits(f"head.head.{'1.running_mean' if segments else '2.weight'}", stem=BIT_STEM, is_hybrid=is_hybrid),
        configure=_transformers,
        table=(
            *transformers_dpt(hybrid=is_hybrid).rows(),
            *(stem_rows(BIT_STEM, *STEMS[BIT_STEM]) if is_hybrid else ()),
            *TRANSFORMERS.rows(maps, batch_norm=segments),
            *(segmentation_rows("head.head.") if segments else depth_rows(heads)),
        ),
        ignored=TRANSFORMERS_IGNORED,
        settings_files=("config.json",),
    )


def _depth_anything_family(name: str, configure: Callable[[Tensors, Given], Fields]) -> Family:
    output = f"depth_head.{SCRATCH}output_conv"
    return Family(
        name=name,
        model="dpt-depth",
        fits=_fits(f"{output}1.weight"),
        configure=configure,
        table=(
            *timm("pretrained.").rows(),
            *DEPTH_ANYTHING.rows(readout=False),
            *depth_rows((f"{output}1", f"{output}2.0", f"{output}2.2")),
        ),
        ignored={
            r"depth_head\.scratch\.refinenet4\.resConfUnit1\..*": NO_COARSER_MAP,
            r"pretrained\.mask_token": "stands for hidden patches in training",
        },
    )


FAMILIES = (
    _official_family("dpt", 384, is_hybrid=False),
    _official_family("dpt", 384, is_hybrid=True),
    _official_family("dpt-kitti", (352, 1216), is_hybrid=True, inversion=KITTI),
    _official_family("dpt-nyu", (480, 640), is_hybrid=True, inversion=NYU),
    *(_official_family("dpt-ade20k", 480, is_hybrid=each, segments=True) for each in (False, True)),
    *(
        _transformers_family(is_hybrid=each, segments=segments)
        for each in (False, True)
        for segments in (False, True)
    ),
    _depth_anything_family("depth-anything-v1", _depth_anything(_last)),
    *(
        _depth_anything_family(name, _depth_anything(lambda backbone: _hooks(backbone, V2_BLOCKS), max_depth))
        for name, max_depth in (
            ("depth-anything-v2", None),
            ("depth-anything-v2-indoor", 20.0),
            ("depth-anything-v2-outdoor", 80.0),
        )
    ),
    Family(
        name="depth-anything-transformers",
        model="dpt-depth",
        fits=_fits("head.conv3.weight"),
        configure=_depth_anything_transformers,
        table=(
            *transformers_dinov2("backbone.").rows(),
            *TRANSFORMERS.rows(readout=False),
            *depth_rows(("head.conv1", "head.conv2", "head.conv3")),
        ),
        ignored={
            r"neck\.fusion_stage\.layers\.0\.residual_layer1\..*": NO_COARSER_MAP,
            r"backbone\.embeddings\.mask_token": "stands for hidden patches in training",
        },
        settings_files=("config.json",),
    ),
)
"""Official hybrids have the same tensors whatever their depth is, and so have those of Depth Anything V1
and V2: which it is, only their user knows."""
