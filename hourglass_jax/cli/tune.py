"""The command `hourglass tune`."""

import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from tqdm import tqdm

from hourglass_jax.analysis.plots import PlotPoint, check_matplotlib, pareto_plot
from hourglass_jax.cli.options import (
    Methods,
    ModelOptions,
    Models,
    Output,
    PlanOptions,
    check_folder,
    console,
    describe,
    format_size,
    hide_progress,
    interruptible,
    load_model,
    print_json,
    printable,
    weights_of,
)
from hourglass_jax.cli.photos import find_photos
from hourglass_jax.plans.files import plan_fields, save_plan
from hourglass_jax.plans.registry import all_methods, find_method

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.search.tune import Candidate, Kind, Target, Tuned


def tune(
    images: Path | None = None,
    output: Output = Path("tuned"),
    model: Models = ModelOptions(),
    share: float | None = None,
    faster: float | None = None,
    min_cosine: float | None = None,
    methods: Methods = (),
    limit: int = 16,
) -> None:
    """Searches the best plan for a model on images of your own; no labels are needed.

    Plans are ranked by the fidelity of the final features to those of the original model, on the largest centred
    square of each image. Half of the images are used for tuning, the others are held out for the final figure. The
    weights never change. Measurements are kept: the same command resumes an interrupted run. If no plan meets the
    target, none is written and the exit status is 1.

    Example: hourglass tune --images photos/ --share 0.6 -o tuned/

    Example: hourglass predict photo.jpg --plan tuned/plan.json

    Args:
        images: Folder of photographs; by default those of `hourglass demo`.
        output: Folder of plan.json, of tune.png and of tune.jsonl, which is appended to.
        share: At most this share of the encoder's multiply-accumulates, at the best fidelity; 0.6 if no target is
            given.
        faster: At least so many times as fast, measured on this machine with one image, at the best fidelity.
        min_cosine: At least this mean cosine, at the least multiply-accumulates.
        methods: A method to search; may be given several times. By default all methods.
        limit: Maximum number of images, evenly spread over the folder.
    """
    from hourglass_jax.imaging.images import read_image, write_image
    from hourglass_jax.search.tune import NoPlan, Tuner

    check_matplotlib()
    check_folder(output)
    names = [find_method(name).__name__ for name in methods or all_methods()]
    target = _target(share, faster, min_cosine)
    if limit < 2:
        raise ValueError(f"limit must be at least 2, as some images are held out; got {limit}")
    photographs = {name: read_image(path) for name, path in _files(images, limit).items()}
    loaded, preprocessing, _ = load_model(model, PlanOptions(), default_preset=False)
    with (
        interruptible(output, "measured"),
        tqdm(desc="plans", unit="plan", disable=hide_progress()) as bar,
        Tuner(
            loaded,
            photographs,
            output / "tune.jsonl",
            weights=weights_of(model),
            preprocessing=preprocessing,
            on_plan=lambda plan: (bar.update(), bar.set_postfix_str(type(plan).__name__)),
        ) as tuner,
    ):
        try:
            tuned = tuner.tune(target, names)
        except NoPlan as problem:
            print(printable(f"error: {problem}"), file=sys.stderr)
            sys.exit(1)
        finally:
            if tuner.candidates:
                write_image(output / "tune.png", _plot(list(tuner.candidates.values()), None))
    path = save_plan(tuned.best.plan, output / "plan.json")
    write_image(output / "tune.png", _plot(list(tuner.candidates.values()), tuned.best))
    result = {
        "model": model.model,
        "size": (tuner.size, tuner.size),
        "target": {target.kind: target.value},
        "plan": plan_fields(tuned.best.plan),
        **_figures(tuned.best),
        "tuned_on": tuned.best.cosines,
        "held_out": tuned.held_out,
        "held_out_cosine": sum(tuned.held_out.values()) / len(tuned.held_out),
        "finalists": [{"plan": plan_fields(finalist.plan), **_figures(finalist)} for finalist in tuned.finalists],
        "warnings": tuned.warnings,
        "files": [str(path), str(output / "tune.png")],
    }
    if model.json:
        print_json(result)
    else:
        _print(tuned, target, result)
    for warning in tuned.warnings:
        print(printable(f"warning: {warning}"), file=sys.stderr)


def _target(share: float | None, faster: float | None, min_cosine: float | None) -> "Target":
    from hourglass_jax.search.tune import Target

    options: dict[Kind, float | None] = {"share": share, "speedup": faster, "cosine": min_cosine}
    given: dict[Kind, float] = {kind: value for kind, value in options.items() if value is not None}
    given = given or {"share": 0.6}
    if len(given) > 1:
        raise ValueError("expected one target, got several of --share, --faster and --min-cosine")
    [(kind, value)] = given.items()
    return Target(kind, value)


def _files(folder: Path | None, limit: int) -> dict[str, Path]:
    """Name -> path of the images, evenly spread if there are more than the limit."""
    from hourglass_jax.imaging.photographs import photographs

    if folder is None:
        paths = photographs()
    elif folder.is_dir():
        paths = {photo.path.name: photo.path for photo in find_photos([folder])}
    else:
        raise ValueError(f"{folder} must be a folder of images, and is none")
    if len(paths) < 2:
        raise ValueError(f"expected at least 2 images in {folder}, as some are held out; got {len(paths)}")
    names = list(paths)
    count = min(limit, len(names))
    return {name: paths[name] for name in (names[index * len(names) // count] for index in range(count))}


def _figures(candidate: "Candidate") -> dict[str, object]:
    return {
        "share": candidate.share,
        "speedup": candidate.speedup,
        "cosine": candidate.cosine,
        "worst": candidate.worst,
    }


def _print(tuned: "Tuned", target: "Target", result: dict[str, Any]) -> None:
    count = len(tuned.best.cosines)
    images = f"{count} images at {format_size(result['size'])}"
    table = Table(
        *("method", "encoder", "speed-up", "cosine", "worst"),
        title=f"{target.kind} {target.value:g}: the best of each method, {images}",
    )

    def row(name: str, candidate: "Candidate", cosines: list[float]) -> None:
        speedup = "" if candidate.speedup is None else f"{candidate.speedup:.2f}"
        mean = sum(cosines) / len(cosines)
        table.add_row(name, f"{candidate.share:.3f}", speedup, f"{mean:.4f}", f"{min(cosines):.4f}")

    for finalist in tuned.finalists:
        row(finalist.method, finalist, list(finalist.cosines.values()))
    held_out = list(tuned.held_out.values())
    table.add_section()
    row(f"{tuned.best.method}, {len(held_out)} images held out", tuned.best, held_out)
    console().print(table)
    console().print(f"The plan: {describe(tuned.best.plan)}")
    console().print(f"Use it with --plan {result['files'][0]}; plot: {result['files'][1]}")


def _plot(candidates: "list[Candidate]", best: "Candidate | None") -> "np.ndarray":
    """Plots every measured plan, each on the images that it was measured on."""
    axis = "multiply-accumulates of the encoder, share"
    series = defaultdict(list)
    for candidate in candidates:
        series[candidate.method].append(PlotPoint(candidate.share, candidate.cosine, candidate.worst))
    marked = None if best is None else {axis: PlotPoint(best.share, best.cosine, best.worst)}
    return pareto_plot({axis: series}, marked)
