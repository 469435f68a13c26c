"""One step: a transaction on model and optimizer over all ranks. It happened everywhere, or it is repeated exactly."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from mltrain.errors import TrainingError
from mltrain.evaluate.tasks import Task, total_loss
from mltrain.train.control import Wishes
from mltrain.train.reducer import Reducer, Tally

if TYPE_CHECKING:
    from mltrain.data import Batch

_U64 = 0xFFFF_FFFF_FFFF_FFFF


@dataclass(frozen=True)
class Recipe:
    """What a step does that is the same for every step.

    Attributes:
        tasks: of the dataset; their losses are used unless the model has its own.
        max_local_rows: gradients are accumulated above it.
        clip_norm: largest L2 norm of the gradient, or None.
        autocast: context of every forward and loss.
        learning_rate: factor on the base rates by global step.
        seed: of the run; with (epoch, step, rank) it gives the random state of a step.
    """

    tasks: tuple[Task, ...]
    max_local_rows: int
    clip_norm: float | None
    autocast: Callable[[], Any]
    learning_rate: Callable[[int], float]
    seed: int


@dataclass(frozen=True)
class StepResult:
    """What a step did, equal on every rank. ``loss`` is the weighted mean over all rows of the step."""

    loss: float
    weight: float
    rows: int
    gradient_norm: float
    learning_rate: float
    samples: int
    stop: bool
    checkpoint: bool
    saving: bool


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: "Batch",
    reducer: Reducer,
    recipe: Recipe,
    *,
    step: int,
    rank: int,
    wishes: Wishes,
) -> StepResult:
    """One optimiser update over the ``batch.global_rows`` rows of a step, of which this rank has ``batch.rows``.

    Raises:
        CollectiveAborted: nothing has happened; the same step can be repeated.
        TrainingError: the loss or the gradient is not finite, on every rank alike.
    """
    seed_all(recipe.seed, batch.epoch, step, rank)
    with _buffers_kept(model):
        reducer.begin()
        tally = Tally(wishes.stop, wishes.checkpoint, wishes.saving, rows=batch.rows, samples=_samples(batch))
        pieces = list(micro_batches(batch, recipe.max_local_rows))
        # Losses and weights are summed where they are, and read once with everybody's: a device is not waited for.
        measured = torch.zeros(2, dtype=torch.float64, device=reducer.device)
        if not pieces:
            reducer.arm(tally, measured)
        for number, piece in enumerate(pieces):
            with recipe.autocast():
                rows_loss = total_loss(model, recipe.tasks, model(piece), piece)
            weighted = rows_loss if piece.weight is None else rows_loss * piece.weight
            total = weighted.sum()
            measured[0] += total.detach()
            measured[1] += piece.rows if piece.weight is None else piece.weight.double().sum()
            if number == len(pieces) - 1:
                reducer.arm(tally, measured)
            # Divided by the rows now, to keep gradients in range, and by the weights once their sum is known.
            torch.autograd.backward(total / batch.global_rows)
        summed = reducer.finish()
        if batch.weight is not None:
            reducer.scale(batch.global_rows / summed.weight if summed.weight > 0 else 0.0)
        norm = reducer.norm()
        _check_finite(summed, norm, step, batch.epoch)
    if recipe.clip_norm is not None and norm > recipe.clip_norm:
        reducer.scale(recipe.clip_norm / norm)
    factor = recipe.learning_rate(step)
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    optimizer.step()
    return StepResult(
        loss=summed.loss / summed.weight if summed.weight > 0 else 0.0,
        weight=summed.weight,
        rows=summed.rows,
        gradient_norm=norm,
        learning_rate=optimizer.param_groups[0]["lr"],
        samples=summed.samples,
        stop=summed.stop > 0,
        checkpoint=summed.checkpoint > 0,
        saving=summed.saving > 0,
    )


def micro_batches(batch: "Batch", limit: int) -> Iterator["Batch"]:
    """``batch`` in consecutive pieces of at most ``limit`` rows; an empty batch has none."""
    if 0 < batch.rows <= limit:
        yield batch
        return
    for start in range(0, batch.rows, limit):
        yield _piece(batch, start, min(start + limit, batch.rows))


def _piece(batch: "Batch", start: int, stop: int) -> "Batch":
    ragged = {}
    for name, column in batch.ragged.items():
        offsets = column.offsets[start : stop + 1]
        ragged[name] = dataclasses.replace(
            column, values=column.values[int(offsets[0]) : int(offsets[-1])], offsets=offsets - offsets[0]
        )
    return dataclasses.replace(
        batch,
        matrices={dtype: matrix[start:stop] for dtype, matrix in batch.matrices.items()},
        ragged=ragged,
        row_numbers=None if batch.row_numbers is None else batch.row_numbers[start:stop],
        rows=stop - start,
    )


def seed_all(seed: int, epoch: int, step: int, rank: int) -> None:
    """Sets torch's random state to a function of the arguments: there is no random state to store."""
    state = seed & _U64
    for value in (epoch, step, rank):
        state = _mix(state ^ _mix(value + 1))
    torch.default_generator.manual_seed(state >> 1)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(state >> 1)


def _samples(batch: "Batch") -> int:
    rows = batch.row_numbers
    return 0 if rows is None else hash_rows(rows.cpu().numpy())


def hash_rows(rows: NDArray[np.int64]) -> int:
    """Order-free hash of row numbers: the sum of their mixes modulo 2^64 (splitmix64's finaliser)."""
    z = rows.astype(np.uint64)
    z += np.uint64(0x9E3779B97F4A7C15)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return int(z.sum(dtype=np.uint64))


def _mix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _U64
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _U64
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _U64
    return value ^ (value >> 31)


def _check_finite(summed: Tally, norm: float, step: int, epoch: int) -> None:
    if summed.nonfinite or not np.isfinite(norm):
        what = "loss" if summed.nonfinite else "gradient"
        raise TrainingError(
            f"The {what} is not finite (NaN or infinite) in step {step}, epoch {epoch}. The checkpoints before it are "
            "intact. Lower train.optimizer.lr, set train.gradient_clip_norm, or look for extreme feature values."
        )


@contextlib.contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    """Puts buffers (BatchNorm's statistics and the like) back if the step fails, so that it can be repeated."""
    kept = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    except BaseException:
        for buffer, before in kept:
            buffer.copy_(before)
        raise
