"""What a label's type implies: the loss, the scores, and how many outputs a model needs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from mltrain.errors import TrainingError

if TYPE_CHECKING:
    from mltrain.data import Batch, Schema


@dataclass(frozen=True)
class Task:
    """One label.

    Attributes:
        name: the task's name, under which batches hold its label.
        type: ``binary``, ``multiclass``, ``multilabel`` or ``regression``.
        outputs: model outputs a row: 1, or the number of classes.
        classes: what the outputs of a multiclass or multilabel task stand for.
    """

    name: str
    type: str
    outputs: int
    classes: tuple[object, ...] = ()

    def loss(self, outputs: Tensor, label: Tensor) -> Tensor:
        """Loss of every row, ``[rows]``, in fp32. Outputs are logits, or values for regression."""
        logits = self._shaped(outputs)
        if self.type == "multiclass":
            return functional.cross_entropy(logits, label.reshape(-1).long(), reduction="none")
        if self.type == "multilabel":
            target = label.to(logits.dtype).reshape(logits.shape)
            return functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean(1)
        target = label.reshape(-1).to(logits.dtype)
        if self.type == "binary":
            return functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (logits - target).square()

    def scores(self, outputs: Tensor) -> Tensor:
        """Probabilities (``[rows]``, or ``[rows, classes]``), or predicted values for regression; fp32."""
        logits = self._shaped(outputs)
        if self.type == "multiclass":
            return logits.softmax(1)
        return logits if self.type == "regression" else logits.sigmoid()

    def _shaped(self, outputs: Tensor) -> Tensor:
        shape = (outputs.shape[0],) if self.outputs == 1 else (outputs.shape[0], self.outputs)
        if outputs.numel() != outputs.shape[0] * self.outputs:
            raise TrainingError(
                f"The model's output for {self.name!r} has shape {tuple(outputs.shape)}; a {self.type} label needs "
                f"[rows, {self.outputs}]. Mend the model, or give it a loss of its own."
            )
        return outputs.reshape(shape).float()


def tasks(schema: "Schema") -> tuple[Task, ...]:
    """The tasks of a dataset, in the order of its labels."""
    found = []
    for column in schema.select("label"):
        classes = tuple(column.classes or ())
        count = {"multiclass": len(classes), "multilabel": column.width}.get(str(column.type), 1)
        found.append(Task(column.name, str(column.type), count, classes))
    return tuple(found)


def outputs_by_task(outputs: object, of: tuple[Task, ...]) -> Mapping[str, Tensor]:
    """A model's outputs by task: a mapping as it is, a tensor for the only task.

    Raises:
        TrainingError: outputs are neither, or a task lacks its own.
    """
    if isinstance(outputs, Tensor) and len(of) == 1:
        return {of[0].name: outputs}
    if isinstance(outputs, Mapping) and all(isinstance(outputs.get(task.name), Tensor) for task in of):
        return outputs
    seen = sorted(outputs) if isinstance(outputs, Mapping) else type(outputs).__name__
    raise TrainingError(
        f"forward() returned {seen}; wanted a mapping with a tensor for each task: "
        f"{', '.join(task.name for task in of)} (a tensor alone for a single task). A model with "
        "other outputs needs a loss() of its own."
    )


def scores_by_task(outputs: object, of: tuple[Task, ...]) -> dict[str, Tensor]:
    """Scores of every task.

    Raises:
        TrainingError: the outputs have not the shape that the labels need.
    """
    by_task = outputs_by_task(outputs, of)
    return {task.name: task.scores(by_task[task.name]) for task in of}


def total_loss(model: torch.nn.Module, of: tuple[Task, ...], outputs: object, batch: "Batch") -> Tensor:
    """Unreduced loss, ``[rows]``: the model's own ``loss(outputs, batch)``, or the sum over tasks of their losses.

    Raises:
        TrainingError: the model's own loss is not one value a row.
    """
    own = getattr(model, "loss", None)
    if callable(own):
        loss = own(outputs, batch)
        if not isinstance(loss, Tensor) or loss.shape != (batch.rows,):
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise TrainingError(
                f"loss() of {type(model).__name__} returned {shape}; wanted one value a row, shape "
                f"[{batch.rows}]: do not reduce it, mltrain weights and reduces exactly."
            )
        return loss.float()
    by_task = outputs_by_task(outputs, of)
    losses = [task.loss(by_task[task.name], batch.labels[task.name]) for task in of]
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum(0)
