"""Trains one replica through one generation after another: in a worker or, with `workers: 0`, in this process."""

import contextlib
import dataclasses
import functools
import time
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from mltrain.collectives import Collectives, Membership
from mltrain.data import Dataset, Loader, NodeCache
from mltrain.errors import CollectiveAborted, DamagedError, RequestError
from mltrain.evaluate import evaluate, metric_names, tasks
from mltrain.train import checkpoints, schedule
from mltrain.train.checkpoints import Checkpoint
from mltrain.train.control import Control, Ending, Outcome, Row, Wishes, failure
from mltrain.train.optimizers import build_optimizer
from mltrain.train.reducer import Reducer
from mltrain.train.replica import Replica
from mltrain.train.spec import Spec, Task, check_objective, evaluation_split, total_steps
from mltrain.train.step import Recipe, StepResult, micro_batches, seed_all, train_step
from mltrain.train.usercode import RAISED, build
from mltrain.train.writer import PartWriter, Place

if TYPE_CHECKING:
    from mltrain.data import Batch

# Small training batches make slow evaluations; results do not depend on this size.
_EVALUATION_ROWS = 8192
# Rows of metrics that every rank keeps, in case rank 0 is lost before it has sent them.
_HISTORY = 10_000
JOIN_S = 30.0


class Trainer:
    """One worker's training.

    Args:
        spec: of the run.
        control: the controller.
        collectives: that every generation is formed with.

    Raises:
        RequestError: the config asks for what this device or dataset cannot do.
        TrainingError: the model or its optimizer cannot be built.
    """

    def __init__(self, spec: Spec, control: Control, collectives: Collectives) -> None:
        config = spec.config.train
        self._spec = spec
        self._control = control
        self._collectives = collectives
        self._dataset = Dataset.open(
            spec.dataset,
            cache=NodeCache(spec.config.cache.directory, spec.config.cache.budget_bytes),
            deadline_s=spec.config.storage.deadline_s,
        )
        self._device = torch.device(spec.device)
        _check_precision(config.precision, self._device)
        seed_all(config.seed, 0, 0, 0)
        model = build(spec.factory, self._dataset.schema, dict(spec.config.model.args)).to(self._device)
        self.replica = Replica(model, build_optimizer(model, config.optimizer))
        self._loader = self._make_loader("train", config.global_batch_size, shuffle=True)
        self.steps_per_epoch = len(self._loader)
        self.total_steps = total_steps(config.epochs, config.max_steps, self.steps_per_epoch)
        self._loader.epochs = -(-self.total_steps // max(1, self.steps_per_epoch))
        self._split = evaluation_split(spec.config.objective.metric, self._dataset.splits)
        of = tasks(self._dataset.schema)
        check_objective(spec.config.objective.metric, self._split, metric_names(model, of), type(model).__name__)
        self._evaluation = None if self._split is None else self._make_evaluation_loader(self._split)
        named = config.lr_schedule
        self._recipe = Recipe(
            tasks=of,
            max_local_rows=config.max_local_batch_size,
            clip_norm=config.gradient_clip_norm,
            autocast=self._autocast,
            learning_rate=functools.partial(
                schedule.factor,
                "constant" if named is None else named.name,
                total_steps=self.total_steps,
                warmup_steps=0 if named is None else named.warmup_steps,
            ),
            seed=config.seed,
        )
        self._writer = PartWriter(spec.run, control.send, pinned=self._device.type == "cuda")
        self._driver_epoch = 0
        self._owed = False
        self._history: deque[Row] = deque(maxlen=_HISTORY)
        self._generation = 0
        self._evaluation_s = 0.0

    def run(self, membership: Membership, task: Task) -> Outcome:
        """Takes part in one generation, from joining to leaving."""
        timings: dict[str, float] = {}
        try:
            if task.void:
                self.replica.populated = False
            if task.restore is not None:
                with _timed(timings, "restore_s"):
                    self._restore(task.restore)
            with _timed(timings, "join_s"):
                self._collectives.join(membership, JOIN_S)
            with _timed(timings, "synchronise_s"):
                self.replica.synchronise(self._collectives)
            self._begin(membership, task, timings)
            outcome = self._train(task)
            self._collectives.leave()
            return dataclasses.replace(outcome, timings=timings)
        except CollectiveAborted as error:
            self._abandon(membership)
            return Outcome(Ending.ABORTED, self.replica.progress, reason=str(error), timings=timings)
        except _RestoreFailed as damaged:
            return Outcome(Ending.DAMAGED, self.replica.progress, damaged.error, reason=str(damaged.error))
        except RAISED as error:  # the controller reports it
            if isinstance(error, torch.AcceleratorError):
                self._control.broken()
            outcome = failure(error, self.replica.progress)
            self._abandon(membership)
            return outcome

    def close(self) -> None:
        """Ends the background work."""
        self._writer.close()

    def _restore(self, checkpoint: Checkpoint) -> None:
        try:
            tensors = checkpoints.read_tensors(self._spec.run, checkpoint)
        except DamagedError as error:
            raise _RestoreFailed(error) from error
        self.replica.load(tensors, checkpoint.state)

    def _begin(self, membership: Membership, task: Task, timings: dict[str, float]) -> None:
        self._generation, self._driver_epoch = membership.generation, task.driver_epoch
        self._writer.begin(membership.generation)
        # Newcomers do not know of a checkpoint that the others have put off.
        self._owed = False
        for loader in (self._loader, self._evaluation):
            if loader is not None:
                loader.reshard(membership.rank, membership.size)
        if membership.rank == 0:
            for row in self._history:
                if row.step > task.recorded:
                    self._control.metrics(row)
            self._control.send({"type": "formed", "step": self.replica.step, "timings": dict(timings)})
            if self.replica.evaluated_step > task.decided:
                # The rank that should have told it may have been lost.
                self._tell_evaluation()

    def _train(self, task: Task) -> Outcome:
        replica = self.replica
        undecided = replica.evaluated_step > task.decided
        if undecided:
            # An evaluation that was lost with its checkpoint: it is decided before there is another one.
            replica.synchronise_buffers(self._collectives)
            self._checkpoint()
        if self._evaluation_due() or (task.halt and not undecided):
            self._settle()
        if task.halt:
            self._writer.wait(self._control.check)
            return Outcome(Ending.STOPPED, replica.step)
        fresh = True
        with Reducer(replica.model, self._collectives) as reducer:
            while replica.step < self.total_steps and not self._out_of_patience():
                for batch in self._rest_of_epoch():
                    wishes, began = self._wishes(), time.perf_counter()
                    result = train_step(
                        replica.model, replica.optimizer, batch, reducer, self._recipe,
                        step=replica.step, rank=self._collectives.rank, wishes=wishes,
                    )  # fmt: skip
                    replica.step += 1
                    replica.seen = (replica.seen[0] + result.loss * result.weight, replica.seen[1] + result.weight)
                    self._record(result, batch.epoch, time.perf_counter() - began)
                    if fresh and self._collectives.rank == 0:
                        self._control.send({"type": "stepping", "step": replica.step})
                    fresh = False
                    if self._checkpoint_due(result) or self._evaluation_due():
                        self._settle()
                    if result.stop:
                        self._writer.wait(self._control.check)
                        return Outcome(Ending.STOPPED, replica.step)
                    if replica.step >= self.total_steps or self._out_of_patience():
                        break
        self._writer.wait(self._control.check)
        self._control.wait_decided(replica.evaluated_step)
        early = replica.step < self.total_steps
        return Outcome(Ending.FINISHED, replica.step, reason="early stopping" if early else "all steps done")

    def _rest_of_epoch(self) -> "Iterator[Batch]":
        self._loader.seek(self.replica.step // self.steps_per_epoch, self.replica.step % self.steps_per_epoch)
        return iter(self._loader)

    def _record(self, result: StepResult, epoch: int, seconds: float) -> None:
        values = {
            "train/loss": result.loss,
            "train/gradient_norm": result.gradient_norm,
            "train/learning_rate": result.learning_rate,
            "train/rows": float(result.rows),
            # As many bits of the hash as a double holds.
            "train/samples": float(result.samples & ((1 << 53) - 1)),
            "train/step_s": seconds,
        }
        row = Row(self.replica.step, epoch, self._generation, values)
        self._history.append(row)
        if self._collectives.rank == 0:
            self._control.metrics(row)

    def _evaluation_due(self) -> bool:
        step, every = self.replica.step, self._spec.config.train.evaluate.every
        if step == self.replica.evaluated_step:
            return False
        if step >= self.total_steps:
            return True
        if every.steps is not None:
            return step % every.steps == 0
        return step % (self.steps_per_epoch * (every.epochs or 1)) == 0

    def _checkpoint_due(self, result: StepResult) -> bool:
        """Whether all ranks make one now. What is due by the steps waits for the one before it to be durable."""
        every = self._spec.config.train.checkpoint.every
        in_steps = not isinstance(every, str) and every.steps is not None and self.replica.step % every.steps == 0
        if result.checkpoint or not (in_steps or self._owed):
            return result.checkpoint
        if result.saving and in_steps and self._collectives.rank == 0:
            self._control.send({"type": "delayed"})
        self._owed = result.saving
        return not result.saving

    def _wishes(self) -> Wishes:
        return dataclasses.replace(self._control.wishes(), saving=self._writer.busy)

    def _out_of_patience(self) -> bool:
        limit = self._spec.config.train.early_stopping
        return limit is not None and self.replica.patience.evaluations >= limit.patience

    def _settle(self) -> None:
        """Between two steps: evaluates if it is time, and makes a checkpoint. All ranks do so after the same step."""
        replica = self.replica
        replica.synchronise_buffers(self._collectives)
        if self._evaluation_due():
            # On every rank: a part that could not be written is told by its writer, not waited for by rank 0.
            self._writer.wait(self._control.check, through=replica.evaluated_step)
            if self._collectives.rank == 0:
                self._control.wait_decided(replica.evaluated_step)
            self._evaluate()
        self._checkpoint()

    def _evaluate(self) -> None:
        replica, config, began = self.replica, self._spec.config, time.perf_counter()
        loss, weight = replica.seen
        metrics = {"train/loss": loss / weight if weight > 0 else float("nan")}
        if self._evaluation is not None:
            batches = self._evaluation_batches(self._evaluation)
            found = evaluate(replica.model, self._recipe.tasks, batches, self._collectives, autocast=self._autocast)
            metrics.update({f"{self._split}/{name}": value for name, value in found.metrics.items()})
        goal = config.objective
        if goal.metric not in metrics:
            raise RequestError(
                f"objective.metric is {goal.metric!r}; this run has {', '.join(sorted(metrics))}. A model with its own "
                "loss has the label's metrics only where its outputs have the label's shape; or give it get_metrics()."
            )
        delta = config.train.early_stopping.min_delta if config.train.early_stopping else 0.0
        replica.patience = replica.patience.after(metrics[goal.metric], goal.mode, delta)
        replica.evaluated_step = replica.step
        replica.seen = (0.0, 0.0)
        replica.metrics = metrics
        self._evaluation_s = time.perf_counter() - began
        if self._collectives.rank == 0:
            self._tell_evaluation()

    def _tell_evaluation(self) -> None:
        step, metrics = self.replica.evaluated_step, self.replica.metrics
        epoch = step / self.steps_per_epoch
        self._control.send(
            {"type": "evaluation", "step": step, "epoch": epoch, "metrics": metrics, "seconds": self._evaluation_s}
        )

    def _evaluation_batches(self, loader: Loader) -> "Iterator[Batch]":
        loader.seek(0, 0)
        for batch in loader:
            self._control.check()
            yield from micro_batches(batch, self._recipe.max_local_rows)

    def _checkpoint(self) -> None:
        replica, at, head = self.replica, self._collectives, {}
        if at.rank == 0:
            epoch, within = divmod(replica.step, self.steps_per_epoch)
            loader = {"seed": self._spec.config.train.seed, "epoch": epoch, "step": within}
            metrics = replica.metrics if replica.step == replica.evaluated_step else {}
            head = {"state": replica.state(), "loader": loader, "metrics": metrics}
            self._control.send({"type": "saving", "step": replica.step})
        place = Place(self._driver_epoch, self._generation, at.rank, at.size)
        self._writer.save(replica.step, place, replica.tensors(), head, self._control.check)
        self._owed = False

    def _abandon(self, membership: Membership) -> None:
        """Leaves a generation that failed here, or that was aborted."""
        self._collectives.abort(membership.generation)
        self._collectives.leave()

    def _make_loader(self, split: str, batch: int, *, shuffle: bool) -> Loader:
        return Loader(
            self._dataset,
            split,
            global_batch_size=batch,
            seed=self._spec.config.train.seed,
            shuffle=shuffle,
            device=self._spec.device,
            row_numbers=shuffle,
        )

    def _make_evaluation_loader(self, split: str) -> Loader:
        return self._make_loader(split, max(_EVALUATION_ROWS, self._spec.config.train.global_batch_size), shuffle=False)

    def _autocast(self) -> Any:
        if self._spec.config.train.precision == "bf16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()


class _RestoreFailed(Exception):
    def __init__(self, error: DamagedError) -> None:
        super().__init__(str(error))
        self.error = error


def _check_precision(precision: str, device: torch.device) -> None:
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RequestError(
            f"train.precision is bf16, which {torch.cuda.get_device_name(device)} does not support: use fp32"
        )


@contextlib.contextmanager
def _timed(into: dict[str, float], name: str) -> Iterator[None]:
    began = time.perf_counter()
    try:
        yield
    finally:
        into[name] = time.perf_counter() - began
