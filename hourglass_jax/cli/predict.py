"""The command `hourglass predict`."""

import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tyro

import hourglass_jax as hj
from hourglass_jax.cli.batches import process
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
    print_json,
    printable,
    weights_of,
)
from hourglass_jax.cli.photos import Photo
from hourglass_jax.io.journal import Journal, Line
from hourglass_jax.plans.files import plan_fields

if TYPE_CHECKING:
    import numpy as np

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
    resume: tyro.conf.FlagCreatePairsOff[bool] = False,
) -> None:
    """Predicts photographs and writes what the model says of each; without a plan unless one is given.

    Labels, saliency and features are PNG files. Depth is a PNG in 16 bits, a .npy file in the unit that its name
    tells (metres, or relative inverse depth), and a PNG in colours with a bar that tells them.

    Panoptic maps are PNG files of numbers with a JSON file that says what these are, as COCO has them; instances
    are a JSON file of COCO's results with run lengths. Both have a picture of the photograph with what was found.

    What a classifier says is printed, too: the five most probable classes.

    A photograph that cannot be predicted does not stop the others: it is named on stderr, and the exit status
    is 1.

    Example: hourglass predict photo.jpg -o out/ --preset dinov2-vits14-saliency

    Example: hourglass predict photo.jpg -o out/ --method StagedMerging --keep 0.87

    Example: hourglass predict photos/ --recursive -o out/ --resume

    Args:
        photos: Image files, folders of them, and patterns in quotes.
        output: Folder to write to; it mirrors the folders of the photographs.
        whole: Run on whole images, even if the model is one that sees windows.
        task: Which of a model's tasks, if it has several.
        resume: Leave out what an earlier run of the same command wrote, of photographs that did not change.
    """
    from hourglass_jax.predictor import Predictor

    found = photos_of(photos, reading, output)
    check_folder(output)
    loaded, preprocessing, chosen = load_model(model, plan, default_preset=False)
    predictor = Predictor(
        hj.expedite(loaded, chosen),
        preprocessing=preprocessing,
        whole=whole,
        task=task,
        strict_plan=plan.strict_plan,
    )
    header = {
        "model": weights_of(model),
        "plan": None if chosen is None else plan_fields(chosen),
        "size": preprocessing.size,
        "whole": whole,
        "task": predictor.task.name,
    }

    def work(photo: Photo, image: "np.ndarray") -> Callable[[], Row]:
        stamp = _stamp(photo.path)
        result = predictor(image)
        return lambda: _write(photo, predictor.task.render(image, result), output, found) | {"stamp": stamp}

    with _journal(output, header, found, resume) as journal:
        known = {} if journal is None else {row["photo"]: row for row in journal.entries if _is_there(row)}
        left = [photo for photo in found if str(photo.path) not in known]
        rows, status = process(left, work, on_row=lambda _, row: None if journal is None else journal.append([row]))
    known |= {row["photo"]: row for row in rows}
    _report([known[str(photo.path)] for photo in found if str(photo.path) in known], model.json)
    if status:
        sys.exit(status)


def _write(photo: Photo, rendering: Any, output: Path, photos: Sequence[Photo]) -> Row:
    from hourglass_jax.imaging.images import write_array, write_image
    from hourglass_jax.io.files import write_json

    files = {
        **{kind: str(output / f"{photo.name}_{kind}.png") for kind in rendering.pictures},
        **{f"{kind}_npy": str(output / f"{photo.name}_{kind}.npy") for kind in rendering.arrays},
        **{f"{kind}_json": str(output / f"{photo.name}_{kind}.json") for kind in rendering.documents},
    }
    check_no_photo(files.values(), photos)
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
    output: Path, header: Line, photos: Sequence[Photo], resume: bool
) -> contextlib.AbstractContextManager[Journal[Row] | None]:
    """The journal of a run over several photographs, a new one unless it is resumed."""
    if len(photos) < 2:
        return contextlib.nullcontext()
    path = output / "predict.jsonl"
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


def _report(rows: Sequence[Mapping[str, Any]], as_json: bool) -> None:
    units: dict[str, str] = {}
    for row in rows:
        units |= row["units"]
    if as_json:
        # No task has more than one such picture so far.
        images = [{"photo": row["photo"], "files": row["files"], **row["records"]} for row in rows]
        print_json({"images": images, **({"units": next(iter(units.values()))} if units else {})})
        return
    for row in rows:
        print(printable(f"{row['photo']}: {', '.join(row['files'].values())}"))
        for line in row["text"]:
            print(printable(f"  {line}"))
    for kind, unit in units.items():
        print(f"_{kind}.png: {unit}")
