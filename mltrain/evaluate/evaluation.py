"""One pass over a split on all ranks: every row once, exact metrics on every rank."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mltrain.evaluate.metrics import metrics
from mltrain.evaluate.tasks import Task, outputs_by_task, total_loss

if TYPE_CHECKING:
    from mltrain.data import Batch


class Gather(Protocol):
    """The one collective that an evaluation needs (`mltrain.collectives.Collectives` has it)."""

    @property
    def size(self) -> int: ...

    def gather(self, tensor: Tensor) -> list[Tensor]: ...


@dataclass(frozen=True)
class Evaluation:
    """Metrics of a split, by name: ``loss`` and those of the label types or the model's own. Equal on every rank.

    With several tasks their metrics are called ``<task>.<metric>``.
    """

    metrics: dict[str, float]
    rows: int


def evaluate(
    model: torch.nn.Module,
    of: tuple[Task, ...],
    batches: Iterable["Batch"],
    collectives: Gather,
    *,
    autocast: Callable[[], Any],
) -> Evaluation:
    """Evaluates ``model`` on this rank's ``batches`` together with all other ranks.

    The model's own metrics (torchmetrics) synchronise through ``collectives.gather``; those of the label types
    are computed from the gathered scores of all rows.
    """
    own = _own_metrics(model, collectives)
    update: Any = getattr(model, "update_metric", None)
    built_in = not callable(getattr(model, "loss", None))
    rows = _Rows(of if built_in else ())
    was_training = model.training
    model.eval()
    with torch.no_grad():
        for batch in batches:
            if batch.rows == 0:
                continue
            with autocast():
                outputs = model(batch)
            rows.add(batch, total_loss(model, of, outputs, batch), outputs)
            for metric in own.values():
                update(batch, outputs, metric)
    model.train(was_training)
    results = rows.compute(collectives)
    results.update({name: float(metric.compute()) for name, metric in own.items()})
    return Evaluation(results, rows.total)


class _Rows:
    """Losses, weights, scores and labels of the rows seen, until they are gathered."""

    def __init__(self, of: tuple[Task, ...]) -> None:
        self._tasks = of
        self._losses: list[Tensor] = []
        self._weights: list[Tensor] = []
        self._scores: dict[str, list[Tensor]] = {task.name: [] for task in of}
        self._labels: dict[str, list[Tensor]] = {task.name: [] for task in of}
        self._weighted = False
        self.total = 0

    def add(self, batch: "Batch", loss: Tensor, outputs: object) -> None:
        # Batches are views of buffers that the loader reuses: whatever is kept is copied.
        self._losses.append(loss.double().cpu())
        weight = batch.weight
        self._weighted = weight is not None
        self._weights.append(
            torch.ones(batch.rows, dtype=torch.float64) if weight is None else weight.double().cpu().clone()
        )
        if not self._tasks:
            return
        by_task = outputs_by_task(outputs, self._tasks)
        for task in self._tasks:
            self._scores[task.name].append(task.scores(by_task[task.name]).cpu())
            self._labels[task.name].append(batch.labels[task.name].cpu().clone())

    def compute(self, collectives: Gather) -> dict[str, float]:
        weight = _gathered(self._weights, (), torch.float64, collectives)
        loss = _gathered(self._losses, (), torch.float64, collectives)
        self.total = len(loss)
        total_weight = float(weight.sum())
        results = {"loss": float(np.dot(loss, weight) / total_weight) if total_weight > 0 else float("nan")}
        for task in self._tasks:
            shape = () if task.outputs == 1 else (task.outputs,)
            labels_shape = shape if task.type == "multilabel" else ()
            scores = _gathered(self._scores[task.name], shape, torch.float32, collectives)
            labels = _gathered(self._labels[task.name], labels_shape, torch.float64, collectives)
            prefix = "" if len(self._tasks) == 1 else f"{task.name}."
            found = metrics(task.type, scores, labels, weight) if self.total else {}
            results.update({f"{prefix}{name}": value for name, value in found.items()})
        return results


def _gathered(parts: list[Tensor], shape: tuple[int, ...], dtype: torch.dtype, collectives: Gather) -> Any:
    mine = (
        torch.cat([part.to(dtype).reshape(-1, *shape) for part in parts])
        if parts
        else torch.empty((0, *shape), dtype=dtype)
    )
    return torch.cat(collectives.gather(mine)).numpy()


def _alike(tensor: Tensor, collectives: Gather) -> Tensor:
    """``tensor``; if it has no rows, with the type and the width of those ranks that have some."""
    kind = json.dumps([str(tensor.dtype).removeprefix("torch."), *tensor.shape[1:]]) if len(tensor) else ""
    kinds = collectives.gather(torch.tensor(list(kind.encode()), dtype=torch.uint8))
    known = next((each for each in kinds if len(each)), None)
    if known is None or len(tensor):
        return tensor
    name, *width = json.loads(bytes(known.tolist()))
    return torch.empty((0, *width), dtype=getattr(torch, name), device=tensor.device)


def _own_metrics(model: torch.nn.Module, collectives: Gather) -> dict[str, Any]:
    make = getattr(model, "get_metrics", None)
    if not callable(make):
        return {}
    found: dict[str, Any] = dict(make())

    def gather(tensor: Tensor, group: object = None) -> list[Tensor]:
        if tensor.ndim == 0:
            return [part.reshape(()) for part in collectives.gather(tensor.reshape(1))]
        return collectives.gather(_alike(tensor, collectives))

    for metric in found.values():
        metric.dist_sync_fn = gather
        metric.distributed_available_fn = lambda: collectives.size > 1
    return found
