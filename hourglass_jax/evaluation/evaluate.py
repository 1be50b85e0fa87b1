"""Evaluates a model on a data set, image by image, so that a run that was killed can be continued."""

import dataclasses
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from hourglass_jax.evaluation.datasets import Dataset
from hourglass_jax.evaluation.records import line_of, open_journal, read_journals
from hourglass_jax.metrics.base import Metric
from hourglass_jax.models.base import Model
from hourglass_jax.ops.grids import Grid
from hourglass_jax.plans.files import plan_fields
from hourglass_jax.predictor import Predictor, run
from hourglass_jax.tasks.base import Task


class SharingPredictor(Predictor):
    """A `Predictor` whose batches are shared out among the devices of this process."""

    def __init__(self, model: Model, **options: Any) -> None:
        super().__init__(model, **options)
        devices = jax.local_devices()
        mesh = Mesh(np.array(devices), ("batch",))
        self.model = jax.device_put(model, NamedSharding(mesh, PartitionSpec()))
        self._devices, self._shared = len(devices), NamedSharding(mesh, PartitionSpec("batch"))

    def _run(self, images: np.ndarray) -> Any:
        padding = [(0, -len(images) % self._devices), *[(0, 0)] * (images.ndim - 1)]
        shared = jax.device_put(np.pad(images, padding), self._shared)
        self._check_memory(self.model, shared)
        outputs = run(self.model, shared)
        return jax.tree.map(lambda leaf: leaf[: len(images)], outputs)


def evaluate(
    model: Model,
    dataset: Dataset,
    folder: str | os.PathLike[str],
    *,
    weights: str,
    size: int | Grid | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    on_progress: Callable[[int, str], None] = lambda images, running: None,
) -> Any:
    """Predicts the images of a data set and compares with the truth; goes on where an earlier run ended.

    The record of every image is journalled, and the figures come from the journals alone. With several processes
    (`jax.distributed`) each takes every n-th image and has its own journal in the folder they share.

    Args:
        model: a model for the data set's task, under any plan.
        dataset: with the model's classes.
        folder: for the journals of this evaluation.
        weights: what tells the model's weights from others: `files.file_hash` of its file.
        size: see `input_size`.
        limit: only so many images, the first ones.
        batch_size: images that are read, and views of them that are run, at once.
        on_progress: called with the number of images that were added, at first those of an earlier run, and what is
            shown of the figures so far, both of this process.

    Returns:
        The figures of all images, as the data set's metric has them.

    Raises:
        ValueError: the model is for another task or has other classes, an argument is out of range, the journals
            are of another evaluation, or an image cannot be read.
    """
    task = check_fit(model, dataset)
    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    preprocessing = model.config.preprocessing.at(input_size(model, dataset, size))
    predictor_class = SharingPredictor if jax.local_device_count() > 1 else Predictor
    predictor = predictor_class(model, preprocessing=preprocessing, batch_size=batch_size, task=task.name)

    folder, keys, metric = Path(folder), dataset.keys[:limit], task.metric(dataset.metric)
    header = _header(model, dataset, metric, weights, preprocessing.size)
    mine = range(len(keys))[jax.process_index() :: jax.process_count()]
    running = metric.empty()
    with open_journal(folder, jax.process_index(), header, metric) as journal, ThreadPoolExecutor() as readers:
        known = read_journals(folder, header, metric)
        earlier = [keys[index] for index in mine if keys[index] in known]
        for key in earlier:
            metric.add(running, known[key])
        on_progress(len(earlier), metric.progress(running))
        # A batch that was cut short is run again as it was: how images are batched may round them differently.
        for start in range(0, len(mine), batch_size):
            batch = mine[start : start + batch_size]
            if all(keys[index] in known for index in batch):
                continue
            _, images, truths = zip(*readers.map(dataset.__getitem__, batch), strict=True)
            added = {
                keys[index]: metric.record(result, truth)
                for index, result, truth in zip(batch, predictor(images), truths, strict=True)
                if keys[index] not in known
            }
            journal.append(line_of(key, record, metric) for key, record in added.items())
            for record in added.values():
                metric.add(running, record)
            on_progress(len(added), metric.progress(running))
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("all images are journalled")
    return metric.scores(_total(folder, header, keys, metric))


def check_fit(model: Model, dataset: Dataset) -> Task:
    """The model's task that a data set is of; ValueError unless it has one, with the data set's classes."""
    name = dataset.metric.task
    if name not in model.tasks:
        raise ValueError(f"{dataset.name} needs a model for {name}, got {type(model).__name__}")
    model.tasks[name].check_dataset(dataset.name, dataset.classes)
    return model.tasks[name]


def input_size(model: Model, dataset: Dataset, size: int | Grid | None = None) -> int | Grid:
    """What images are scaled to, as published figures have it.

    Args:
        model: a model for the data set's task.
        dataset: with the model's classes.
        size: something else that is wanted.

    Returns:
        What the model's preprocessing takes: pixels of the side that it scales, the shorter one for a model that
        sees windows: then by default the data set's, otherwise the model's own.
    """
    preprocessing = model.config.preprocessing
    if size is not None:
        return size
    return (dataset.size if preprocessing.resize == "none" else None) or preprocessing.size


def _header(model: Model, dataset: Dataset, metric: Metric, weights: str, size: int | Grid) -> dict[str, object]:
    """What is evaluated, as JSON keeps it."""
    plan = model.backbone.plan
    header = {
        "model": weights,
        "plan": None if plan is None else plan_fields(plan),
        "dataset": dataset.name,
        "source": dataset.source.kind,
        "split": dataset.split,
        "metric": dataclasses.asdict(metric),
        "images": len(dataset),
        "size": size,
    }
    return json.loads(json.dumps(header))


def _total(folder: Path, header: dict[str, object], keys: Sequence[str], metric: Metric) -> Any:
    known = read_journals(folder, header, metric)
    missing = [key for key in keys if key not in known]
    if missing:
        raise ValueError(
            f"the journals in {folder} must hold {len(keys)} images, and {len(missing)} are missing: "
            "do all processes write to this folder?"
        )
    total = metric.empty()
    for key in keys:
        metric.add(total, known[key])
    return total
