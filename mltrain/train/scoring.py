"""A trained model over a whole split, in this process."""

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pyarrow as pa
import torch
from torch import nn

from mltrain.collectives import LocalCollectives
from mltrain.data import Dataset, Loader
from mltrain.errors import NotFoundError
from mltrain.evaluate import evaluate, tasks
from mltrain.evaluate.tasks import Task, outputs_by_task

if TYPE_CHECKING:
    from mltrain.data import Batch


def evaluate_model(model: nn.Module, dataset: Dataset, split: str, rows: int) -> dict[str, float]:
    """Metrics of ``model`` on a split, by ``<split>/<name>``."""
    of = tasks(dataset.schema)
    found = evaluate(model, of, _batches(dataset, split, rows), LocalCollectives(), autocast=contextlib.nullcontext)
    return {f"{split}/{name}": value for name, value in found.metrics.items()}


def predict(model: nn.Module, dataset: Dataset, split: str, rows: int) -> pa.Table:
    """Key columns and scores of a split, in canonical order."""
    of = tasks(dataset.schema)
    parts: dict[str, list[torch.Tensor]] = {task.name: [] for task in of}
    with torch.no_grad():
        for batch in _batches(dataset, split, rows):
            by_task = outputs_by_task(model(batch), of)
            for task in of:
                parts[task.name].append(task.scores(by_task[task.name]))
    columns = _keys(dataset, split)
    for task in of:
        columns.update(_columns(task, torch.cat(parts[task.name])))
    return pa.table(columns)


def _columns(task: Task, scores: torch.Tensor) -> dict[str, pa.Array]:
    if scores.ndim == 1:
        return {f"score_{task.name}": pa.array(scores.numpy())}
    return {
        f"score_{task.name}_{task.classes[index] if task.classes else index}": pa.array(scores[:, index].numpy())
        for index in range(scores.shape[1])
    }


def _keys(dataset: Dataset, split: str) -> dict[str, pa.ChunkedArray]:
    names = list(dataset.schema.key)
    if not names:
        return {}
    table = dataset.read(split, names)
    return {name: table[name] for name in names}


def _batches(dataset: Dataset, split: str, rows: int) -> "Iterator[Batch]":
    if split not in dataset.splits:
        raise NotFoundError(f"dataset {dataset.digest} has no split {split!r}; it has {', '.join(dataset.splits)}")
    yield from Loader(dataset, split, global_batch_size=rows, shuffle=False)
