"""The command `hourglass predict`."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

import hourglass_jax as hj
from hourglass_jax.cli.batches import finish, process
from hourglass_jax.cli.options import (
    ModelOptions,
    Models,
    Output,
    Photos,
    PlanOptions,
    Plans,
    Reading,
    ReadingOptions,
    check_folder,
    check_no_photo,
    load_model,
    photos_of,
    weights_of,
)
from hourglass_jax.cli.photos import Photo
from hourglass_jax.cli.prompts import Asker, PromptOptions, Prompts
from hourglass_jax.io.journal import Journal, Line
from hourglass_jax.plans.files import plan_fields

if TYPE_CHECKING:
    import numpy as np

    from hourglass_jax.tasks.base import Task

Row = dict[str, Any]
"""What is reported of a photograph: "photo", "files" by kind, the task's records, lines and units; and "stamp"."""


def predict(
    photos: Photos,
    output: Output = Path("out"),
    model: Models = ModelOptions(),
    plan: Plans = PlanOptions(),
    reading: Reading = ReadingOptions(),
    whole: tyro.conf.FlagCreatePairsOff[bool] = False,
    task: str | None = None,
    prompts: Prompts = PromptOptions(),
    batch: int | None = None,
    threshold: float | None = None,
    resume: tyro.conf.FlagCreatePairsOff[bool] = False,
    distributed: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Predicts photographs and writes what the model says of each; without a plan unless one is given.

    Labels, saliency and features are PNG files. Depth is a PNG in 16 bits, a .npy file in the unit that its name
    tells (metres, or relative inverse depth), and a PNG in colours with a bar that tells them.

    Panoptic maps are PNG files of numbers with a JSON file that says what these are, as COCO has them; instances
    are a JSON file of COCO's results with run lengths. Both have a picture of the photograph with what was found.

    A model that answers prompts, such as Segment Anything, is asked with --point and --box, or for --everything:
    every mask is a PNG file, all of them are a JSON file with COCO's run lengths, and a picture shows them and the
    prompts on the photograph.

    What a classifier says is printed, too: the five most probable classes.

    A photograph that cannot be predicted does not stop the others: it is named on stderr, and the exit status
    is 1.

    Example: hourglass predict photo.jpg -o out/ --preset dinov2-vits14-saliency

    Example: hourglass predict photo.jpg -o out/ --method StagedMerging --keep 0.87

    Example: hourglass predict photo.jpg -o out/ --model sam.safetensors --point 320 240 --box 100 80 400 300

    Example: hourglass predict photos/ --recursive -o out/ --resume

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write to; it mirrors the folders of the photographs.
        whole: Run on whole images, even if the model is one that sees windows.
        task: Which of a model's tasks, if it has several.
        prompts: What a model that answers prompts is asked.
        batch: Photographs at once, shared among all devices; by default one for each device.
        threshold: Least score of the instances that are drawn and printed, by default 0.5; the JSON has them all.
        resume: Leave out what an earlier run of the same command wrote, of photographs that did not change.
        distributed: Share the photographs with the other processes that Slurm, Open MPI or a TPU pod started.
    """
    import jax

    from hourglass_jax.models.base import PromptedVisionModel, find_task
    from hourglass_jax.predictor import BATCH_SIZE, Predictor

    own = found = photos_of(photos, reading, output)
    check_folder(output)
    if distributed:
        jax.distributed.initialize()
        own = found[jax.process_index() :: jax.process_count()]
    batch = jax.local_device_count() if batch is None else batch
    if batch < 1:
        raise ValueError(f"batch must be at least 1, got {batch}")
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    expedited, asked = hj.expedite(loaded, chosen), {}
    together: Callable[..., Sequence[Callable[[], Row]]] | None = None
    if prompts.are_given or isinstance(loaded, PromptedVisionModel):
        find_task(loaded, task)
        if threshold is not None or whole:
            raise ValueError(f"a {type(loaded).__name__} takes prompts: expected no --threshold and no --whole")
        predictor = Asker(expedited, preprocessing, prompts)
        render, asked = predictor.render, {"prompts": predictor.asked}
    else:
        predictor = batched = Predictor(
            expedited,
            preprocessing=preprocessing,
            whole=whole,
            batch_size=max(batch, BATCH_SIZE),
            task=task,
            strict_plan=plan.strict_plan,
        )
        if threshold is not None:
            predictor.task = _with_threshold(predictor.task, threshold)
        render = predictor.task.render

        def predict_together(taken: "Sequence[tuple[Photo, np.ndarray]]") -> Sequence[Callable[[], Row]]:
            results = batched([image for _, image in taken])
            return [functools.partial(write, *each, result) for each, result in zip(taken, results, strict=True)]

        together = predict_together
    header = {
        "model": weights_of(model),
        "plan": None if chosen is None else plan_fields(chosen),
        "size": preprocessing.size,
        "whole": whole,
        "task": predictor.task.name,
        **({} if threshold is None else {"threshold": threshold}),
        **asked,
    }

    stamps = {photo.path: _stamp(photo.path) for photo in own}

    def write(photo: Photo, image: "np.ndarray", result: Any) -> Row:
        return _write(photo, render(image, result), output, found) | {"stamp": stamps[photo.path]}

    def work(photo: Photo, image: "np.ndarray") -> Callable[[], Row]:
        return functools.partial(write, photo, image, predictor(image))

    def note(_: Photo, row: Row) -> None:
        if journal is not None:
            journal.append([row])

    with _journal(output, header, own, resume, jax.process_index() if distributed else None) as journal:
        known = {} if journal is None else {row["photo"]: row for row in journal.entries if _is_there(row)}
        left = [photo for photo in own if str(photo.path) not in known]
        rows, status = process(left, work, together=together, batch=batch, on_row=note)
    known |= {row["photo"]: row for row in rows}
    rows = [known[str(photo.path)] for photo in own if str(photo.path) in known]
    images = [{"photo": row["photo"], "files": row["files"], **row["records"]} for row in rows]
    # No task has more than one picture with units so far.
    units = [unit for row in rows for unit in row["units"].values()]
    finish(images, _lines(rows), status, as_json=model.json, **({"units": units[0]} if units else {}))


def _with_threshold(task: "Task", threshold: float) -> "Task":
    """The task, which shows only what has at least this score."""
    from hourglass_jax.tasks.instances import Instances

    if not isinstance(task, Instances):
        raise ValueError(f"--threshold is of instances, and the task is {task.name}")
    if not 0 <= threshold <= 1:
        raise ValueError(f"--threshold must lie in 0..1, got {threshold}")
    return dataclasses.replace(task, shown=threshold)


def _write(photo: Photo, rendering: Any, output: Path, photos: Sequence[Photo]) -> Row:
    from hourglass_jax.imaging.images import write_array, write_image
    from hourglass_jax.io.files import write_json

    files = {
        **{kind: str(output / f"{photo.name}_{kind}.png") for kind in rendering.pictures},
        **{f"{kind}_npy": str(output / f"{photo.name}_{kind}.npy") for kind in rendering.arrays},
        **{f"{kind}_json": str(output / f"{photo.name}_{kind}.json") for kind in rendering.documents},
    }
    check_no_photo(files.values(), (each.path for each in photos))
    for kind, picture in rendering.pictures.items():
        write_image(files[kind], picture)
    for kind, values in rendering.arrays.items():
        write_array(files[f"{kind}_npy"], values)
    for kind, document in rendering.documents.items():
        write_json(files[f"{kind}_json"], document(photo.name))
    return {
        "photo": str(photo.path),
        "files": files,
        "records": rendering.records,
        "text": rendering.text,
        "units": rendering.units,
    }


def _journal(
    output: Path, header: Line, photos: Sequence[Photo], resume: bool, process: int | None
) -> contextlib.AbstractContextManager[Journal[Row] | None]:
    """The journal of a run over several photographs, a new one unless it is resumed."""
    if len(photos) < 2:
        return contextlib.nullcontext()
    path = output / ("predict.jsonl" if process is None else f"predict-{process}.jsonl")
    if not resume:
        path.unlink(missing_ok=True)
    return Journal(path, header, lambda line: line | {"files": dict(line["files"])}, "the journal of another run")


def _is_there(row: Row) -> bool:
    """Whether what was written is there, of the photograph as it still is."""
    is_same = row.get("stamp") == _stamp(Path(row["photo"]))
    return is_same and all(Path(file).is_file() for file in row["files"].values())


def _stamp(path: Path) -> list[int]:
    """Size of a file and time of its last change, by which it is known again."""
    try:
        status = path.stat()
    except OSError:
        return []
    return [status.st_size, status.st_mtime_ns]


def _lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    units: dict[str, str] = {}
    for row in rows:
        yield f"{row['photo']}: {', '.join(row['files'].values())}"
        yield from (f"  {line}" for line in row["text"])
        units |= row["units"]
    yield from (f"_{kind}.png: {unit}" for kind, unit in units.items())
