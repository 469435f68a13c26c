"""One pass over a split on all ranks: every row once, exact metrics on every rank."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from torch import Tensor

from mltrain.config.metrics import label_metrics, metric_prefix
from mltrain.errors import TrainingError
from mltrain.evaluate.metrics import metrics
from mltrain.evaluate.tasks import Task, scores_by_task, total_loss

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
    own = _synchronised(_own_metrics(model), collectives)
    update: Any = getattr(model, "update_metric", None)
    rows = _Rows(of if _label_metrics(model) else (), needed=not _has(model, "loss"))
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


def metric_names(model: torch.nn.Module, of: tuple[Task, ...]) -> list[str]:
    """What an evaluation of ``model`` can report; with a loss of its own, the label's as far as its outputs allow."""
    found = ["loss", *_own_metrics(model)]
    if _label_metrics(model):
        found += label_metrics({task.name: task.type for task in of})
    return found


def _has(model: torch.nn.Module, name: str) -> bool:
    return callable(getattr(model, name, None))


def _label_metrics(model: torch.nn.Module) -> bool:
    """A model with a loss and metrics of its own has these; any other has those of its labels' types."""
    return not (_has(model, "loss") and _has(model, "get_metrics"))


class _Rows:
    """Losses, weights, scores and labels of the rows seen, until they are gathered.

    Args:
        of: the tasks whose scores are measured.
        needed: outputs that do not fit a task are a mistake; else they only cannot be measured.
    """

    def __init__(self, of: tuple[Task, ...], needed: bool) -> None:
        self._tasks = of
        self._needed = needed
        self._fits = True
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
        if not self._tasks or not self._fits:
            return
        try:
            scores = scores_by_task(outputs, self._tasks)
        except TrainingError:
            if self._needed:
                raise
            self._fits = False
            return
        for task in self._tasks:
            self._scores[task.name].append(scores[task.name].cpu())
            self._labels[task.name].append(batch.labels[task.name].cpu().clone())

    def compute(self, collectives: Gather) -> dict[str, float]:
        weight = _gathered(self._weights, (), torch.float64, collectives)
        loss = _gathered(self._losses, (), torch.float64, collectives)
        self.total = len(loss)
        total_weight = float(weight.sum())
        results = {"loss": float(np.dot(loss, weight) / total_weight) if total_weight > 0 else float("nan")}
        if not self._needed and not all(map(bool, collectives.gather(torch.tensor([self._fits], dtype=torch.uint8)))):
            return results
        for task in self._tasks:
            shape = () if task.outputs == 1 else (task.outputs,)
            labels_shape = shape if task.type == "multilabel" else ()
            scores = _gathered(self._scores[task.name], shape, torch.float32, collectives)
            labels = _gathered(self._labels[task.name], labels_shape, torch.float64, collectives)
            prefix = metric_prefix(task.name, len(self._tasks))
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


def _own_metrics(model: torch.nn.Module) -> dict[str, Any]:
    make: Any = getattr(model, "get_metrics", None)
    return dict(make()) if callable(make) else {}


def _synchronised(found: dict[str, Any], collectives: Gather) -> dict[str, Any]:

    def gather(tensor: Tensor, group: object = None) -> list[Tensor]:
        if tensor.ndim == 0:
            return [part.reshape(()) for part in collectives.gather(tensor.reshape(1))]
        return collectives.gather(_alike(tensor, collectives))

    for metric in found.values():
        metric.dist_sync_fn = gather
        metric.distributed_available_fn = lambda: collectives.size > 1
    return found
