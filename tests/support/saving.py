"""A controller's shelf and the writers of some ranks, without a training: what saves and restores checkpoints."""

import queue
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from mltrain.storage import Store
from mltrain.train.checkpoints import Checkpoint
from mltrain.train.lease import Lease
from mltrain.train.shelf import Identity, Policy, Shelf
from mltrain.train.writer import PartWriter, Place

IDENTITY = Identity("saved", "config", "dataset", None)
METRIC = "validation/loss"


def replica(step: int, rows: int = 40) -> dict[str, Tensor]:
    """All tensors after ``step`` updates: every number depends on the step, and on its place."""
    weights = torch.arange(rows * 8, dtype=torch.float32).reshape(rows, 8) + 1000 * step
    return {
        "model.table.weight": weights,
        "model.head.bias": torch.full((3,), float(step), dtype=torch.bfloat16),
        "model.seen": torch.tensor(step),
        "optimizer.0.exp_avg": weights.t() * 0.5,
        "optimizer.0.exp_avg_sq": weights * 2,
        "optimizer.0.step": torch.tensor(float(step)),
    }


def nothing() -> None:
    """There is always sense in waiting."""


class Ranks:
    """A driver: it holds the run's lease, and all ranks of one generation after another are in this process."""

    def __init__(self, run: Store, *, keep: int = 3, part_bytes: int = 512) -> None:
        self._run = run
        self._part_bytes = part_bytes
        self.messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self.lease = Lease.acquire(run, "saved")
        self.shelf = Shelf(run, IDENTITY, self.lease, Policy(keep, METRIC, "min"))
        self.damaged = self.shelf.look()
        for step in self.damaged:
            self.shelf.set_aside(step)
        self.generation = 0
        self.writers: list[PartWriter] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for writer in self.writers:
            writer.close()
        self.lease.release()

    def form(self, ranks: int) -> None:
        """Begins a generation: as many survivors as there are go on in it."""
        self.generation += 1
        self.writers = self.writers[:ranks]
        while len(self.writers) < ranks:
            self.writers.append(PartWriter(self._run, self.messages.put, part_bytes=self._part_bytes))
        for writer in self.writers:
            writer.begin(self.generation)
        self.shelf.begin_generation(self.generation)

    def copy(self, step: int, tensors: Mapping[str, Tensor] | None = None, metrics: Mapping[str, float] = {}) -> None:
        """Every rank copies its share, and begins to write it."""
        tensors = replica(step) if tensors is None else tensors
        head = {"state": {"step": step}, "loader": {"epoch": 0}, "metrics": dict(metrics)}
        self.shelf.begun(step)
        for rank, writer in enumerate(self.writers):
            place = Place(self.lease.driver_epoch, self.generation, rank, len(self.writers))
            writer.save(step, place, tensors, head if rank == 0 else {}, nothing)

    def take(self) -> Checkpoint | None:
        """Takes the next message."""
        made = self.shelf.take(self.messages.get(), nothing)
        if made is not None:
            self.shelf.tidy()
        return made

    def save(self, step: int, metrics: Mapping[str, float] = {}) -> Checkpoint:
        """A whole checkpoint, acknowledged."""
        self.copy(step, metrics=metrics)
        while True:
            for writer in self.writers:
                writer.wait(nothing)
            if (made := self.take()) is not None:
                return made


def same(found: Mapping[str, Tensor], step: int) -> bool:
    """Whether these are the tensors after ``step``, to the last bit."""
    wanted = replica(step)
    return found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
