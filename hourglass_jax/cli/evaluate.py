"""The command `hourglass eval`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro
from rich.table import Table
from tqdm import tqdm

import hourglass_jax as hj
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    PlanOptions,
    Plans,
    check_folder,
    console,
    describe,
    format_size,
    hide_progress,
    interruptible,
    load_model,
    print_json,
    weights_of,
)
from hourglass_jax.io.files import replacing
from hourglass_jax.plans.files import plan_fields

if TYPE_CHECKING:
    from hourglass_jax.models.base import Model
    from hourglass_jax.ops.grids import Grid
    from hourglass_jax.plans.base import Plan


def eval(
    dataset: Literal[
        "ade20k",
        "cityscapes",
        "pascal_context",
        "imagenet2012",
        "kitti",
        "nyu_depth_v2",
        "coco_panoptic",
        "ade20k_panoptic",
        "cityscapes_panoptic",
        "coco_instance",
    ],
    data_dir: Path,
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    split: Literal["val", "train"] = "val",
    original: bool = True,
    hourglass: bool = True,
    limit: int | None = None,
    batch: int = 8,
    crop: Literal["garg", "eigen", "none"] | None = None,
    cap: float | None = None,
    output: Output = Path("out"),
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Measures the accuracy of a model on a data set, without a plan and, if one is given, with it.

    Unless --size is given, images are scaled as for published figures: their shorter side to 1024 pixels for
    Cityscapes, 520 for PASCAL-Context and the model's own for the others. What is counted is kept: a run that was
    ended goes on when the same command is given again. Relative inverse depth gets the scale and shift that fit the
    truth of each image best. Panoptic maps have PQ, instances the AP of their masks, and a detector's that of its
    boxes, too; pycocotools computes it.

    Example: hourglass eval --model seg.safetensors --dataset ade20k --data-dir data/ --alpha 10 --clusters 28 28

    Args:
        dataset: Whose labels.
        data_dir: Folder of the published files, or the data_dir of tensorflow-datasets, built as array_record. For
            ImageNet, it holds a folder for each class, or val/ and train/ with those, named by the class's WordNet
            id (n01440764), number (0) or name (tench). For depth, images/ and depth/ with files of the same names
            (16-bit PNG, 256 steps to a metre for kitti, 1000 for nyu_depth_v2), or KITTI's own folders and
            eigen_test_files_with_gt.txt.
        split: Part of the data set.
        original: Evaluate the model without the hourglass.
        hourglass: Evaluate it with the hourglass, if a plan is given.
        limit: Only so many images, the first ones.
        batch: Images at once.
        crop: Which part of a depth map counts; by default Garg's of KITTI and Eigen's of NYUv2.
        cap: Metres up to which depth counts; by default 80 for KITTI and 10 for NYUv2.
        output: Folder of the journals and of result.json.
        distributed: Share the images with the other processes that Slurm, Open MPI or a TPU pod started.
    """
    import jax

    from hourglass_jax.evaluation.datasets import open_dataset, restrict_depth
    from hourglass_jax.evaluation.evaluate import check_fit, evaluate, input_size

    check_folder(output)
    data = restrict_depth(open_dataset(dataset, data_dir, split), crop, cap)
    if distributed:
        jax.distributed.initialize()
    loaded, _, chosen = load_model(model, plan, default_preset=False)
    check_fit(loaded, data)
    plans: dict[str, Plan | None] = {"original": None} if original else {}
    if hourglass and chosen is not None:
        plans["expedited"] = chosen
    if not plans:
        raise ValueError(
            "nothing is left to evaluate: expected a plan (--plan, --method, or --alpha and --clusters), got none"
        )
    models = {name: hj.expedite(loaded, chosen) for name, chosen in plans.items()}
    size = input_size(loaded, data, model.size)
    if hourglass and chosen is not None:
        _check_grid(loaded, chosen, size)
    weights = weights_of(model)
    images = len(data.keys[:limit])
    mine = len(range(images)[jax.process_index() :: jax.process_count()])
    scores = {}
    with interruptible(output, "counted"):
        for name, expedited in models.items():
            with tqdm(total=mine, desc=name, unit="image", disable=hide_progress()) as bar:

                def show(added, running, bar=bar):
                    bar.update(added)
                    bar.set_postfix_str(running)

                scores[name] = evaluate(
                    expedited,
                    data,
                    output / name,
                    weights=weights,
                    size=model.size,
                    limit=limit,
                    batch_size=batch,
                    on_progress=show,
                )
    if jax.process_index() > 0:
        return
    result = {
        "model": model.model,
        "dataset": dataset,
        "split": split,
        "images": images,
        "size": size,
        "plan": None if chosen is None else plan_fields(chosen),
        **{name: _figures(figures, data.labels.names) for name, figures in scores.items()},
    }
    with replacing(output / "result.json") as file:
        file.write_text(json.dumps(result, indent=2) + "\n")
    if model.json:
        print_json(result)
        return
    rows = {name: data.metric.shown(figures) for name, figures in scores.items()}
    table = Table(
        "",
        *next(iter(rows.values())),
        title=f"{dataset} {split}, {images} images, size {size if isinstance(size, int) else format_size(size)}",
    )
    for name, texts in rows.items():
        own = plans[name]
        table.add_row(name if own is None else f"{name}: {describe(own)}", *texts.values())
    console().print(table)
    console().print(f"All figures: {output / 'result.json'}")


def _check_grid(model: "Model", plan: "Plan", size: "int | Grid") -> None:
    """Finds a plan with more clusters than tokens before the long work, where all inputs are of one shape."""
    window, side = model.window, model.backbone.stride
    if window is not None:
        size = window.size
    if window is not None or model.config.preprocessing.resize in ("square", "crop"):
        rows, columns = (size, size) if isinstance(size, int) else size
        plan.check(model.backbone.depth, (-(-rows // side), -(-columns // side)))


def _figures(scores, names: Sequence[str]) -> dict[str, object]:
    """Scores as JSON has them: there is no NaN."""
    import numpy as np

    values = {
        field: dict(zip(names, value.tolist(), strict=True)) if isinstance(value, np.ndarray) else value
        for field, value in scores._asdict().items()
    }
    return json.loads(json.dumps(values), parse_constant=lambda name: None)
