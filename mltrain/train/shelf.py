"""A run's checkpoints as its controller keeps them: made of acknowledged parts, kept as long as needed, collected."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mltrain.errors import TrainingError
from mltrain.train import checkpoints
from mltrain.train.checkpoints import Checkpoint, Part
from mltrain.train.stopping import Mode, better

if TYPE_CHECKING:
    from mltrain.storage import Store
    from mltrain.train.control import Message
    from mltrain.train.lease import Lease


@dataclass(frozen=True)
class Identity:
    """What a checkpoint records about where it comes from."""

    run_id: str
    config_digest: str
    dataset_digest: str
    dataset_build: str | None


@dataclass(frozen=True)
class Policy:
    """What is kept: the last ``keep``, and the best by ``metric``."""

    keep: int
    metric: str
    mode: Mode


@dataclass
class _Pending:
    """A checkpoint whose parts are arriving."""

    begun: float
    parts: dict[int, tuple[Part, ...]] = field(default_factory=dict)
    head: "Message | None" = None


class Shelf:
    """The only writer of manifests. All methods are called from one thread.

    Args:
        run: store of ``runs/<run-id>/``.
        identity: of the run.
        lease: held by this controller.
        policy: what is kept.

    Attributes:
        kept: by step.
        best: value and step of the best.
    """

    def __init__(self, run: "Store", identity: Identity, lease: "Lease", policy: Policy) -> None:
        self._run = run
        self._identity = identity
        self._lease = lease
        self._policy = policy
        self._pending: dict[int, _Pending] = {}
        self._generation = 0
        self.kept: dict[int, Checkpoint] = {}
        self.best: tuple[float, int] | None = None

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self.kept[max(self.kept)] if self.kept else None

    def look(self) -> list[int]:
        """Finds out what is stored. Returns the steps whose manifests are damaged: they should be set aside."""
        self.kept = {checkpoint.step: checkpoint for checkpoint in checkpoints.stored(self._run)}
        self.best = None
        for checkpoint in self.kept.values():
            self._consider(checkpoint)
        return [step for step in checkpoints.steps(self._run) if step not in self.kept]

    def set_aside(self, step: int) -> None:
        """A damaged checkpoint no longer exists, and the one before it is the newest, or the best.

        Raises:
            TrainingError: another controller has taken the run.
        """
        self._lease.check()
        checkpoints.set_aside(self._run, step)
        self.kept.pop(step, None)
        self.best = None
        for checkpoint in self.kept.values():
            self._consider(checkpoint)

    def begin_generation(self, number: int) -> None:
        """What was not complete in the generation before never will be: its parts are garbage."""
        self._generation = number
        self._pending.clear()

    def begun(self, step: int) -> None:
        """All ranks have copied, or are copying, their shares after ``step``."""
        self._pending.setdefault(step, _Pending(time.monotonic()))

    def under_way(self) -> tuple[int, float] | None:
        """The oldest checkpoint on its way to storage: its step, and for how many seconds."""
        if not self._pending:
            return None
        step = min(self._pending)
        return step, time.monotonic() - self._pending[step].begun

    def take(self, message: "Message", before: Callable[[], None]) -> Checkpoint | None:
        """A rank's share is durable. Returns the checkpoint when it is the last of them, and the manifest durable too.

        Args:
            message: of the rank's writer.
            before: called before the manifest is written.

        Raises:
            TrainingError: another controller has taken the run: nothing was acknowledged.
        """
        step, rank = int(message["step"]), int(message["rank"])
        if message["made_in"] != self._generation:
            # Its ranks were others: parts of two generations do not fit together, whatever their step.
            return None
        self.begun(step)
        pending = self._pending[step]
        pending.parts[rank] = tuple(Part.from_json(part) for part in message["parts"])
        if rank == 0:
            pending.head = message
        if pending.head is None or len(pending.parts) < int(message["size"]):
            return None
        del self._pending[step]
        # Not by the clock: a manifest of a run that was taken could name parts that its new controller collects.
        self._lease.renew()
        before()
        return self._commit(step, pending.head, [part for _, parts in sorted(pending.parts.items()) for part in parts])

    def tidy(self) -> None:
        """Deletes the checkpoints that need not be kept, then the parts that belong to none."""
        if not self.kept:
            return
        for step in checkpoints.to_delete(sorted(self.kept), self._policy.keep, self.best and self.best[1]):
            self._lease.check()
            self._run.delete(checkpoints.manifest_path(step))
            del self.kept[step]
        # Parts arrive in the order of their steps: nothing older than the newest is on its way.
        listed = list(self._run.list(checkpoints.PREFIX))
        for path in checkpoints.garbage(listed, self.kept, self._policy.keep, self._lease.driver_epoch):
            self._run.delete(path)

    def _commit(self, step: int, head: "Message", parts: list[Part]) -> Checkpoint:
        """Everything is durable: the manifest makes it a checkpoint, if it was written under the lease."""
        known = self.kept.get(step)
        if known is not None:
            # Saved, and saved again by a generation that could not know: what is stored is as good.
            return known
        checkpoint = Checkpoint(
            run_id=self._identity.run_id,
            step=step,
            epoch=int(head["loader"]["epoch"]),
            driver_epoch=self._lease.driver_epoch,
            generation=self._generation,
            parts=tuple(parts),
            state=head["state"],
            loader=head["loader"],
            config_digest=self._identity.config_digest,
            dataset_digest=self._identity.dataset_digest,
            dataset_build=self._identity.dataset_build,
            created=datetime.now(UTC).isoformat(),
            metrics=head["metrics"],
            tensors=head["tensors"],
        )
        self._put(checkpoint)
        # It was ours from the renewal before to this one: no other controller looked or collected in between.
        self._lease.renew()
        self.kept[step] = checkpoint
        self._consider(checkpoint)
        return checkpoint

    def _put(self, checkpoint: Checkpoint) -> None:
        path = checkpoints.manifest_path(checkpoint.step)
        for _ in range(3):
            if self._run.put_if_absent(path, checkpoint.to_bytes()):
                return
            # Unknown when this controller looked: a paused one wrote it late, and its parts may have been collected.
            self._lease.renew()
            checkpoints.set_aside(self._run, checkpoint.step)
        raise TrainingError(f"{self._run.join(path)} is written by others again and again: who else runs this run?")

    def _consider(self, checkpoint: Checkpoint) -> None:
        value = checkpoint.metrics.get(self._policy.metric)
        if value is not None and better(value, None if self.best is None else self.best[0], self._policy.mode):
            self.best = (value, checkpoint.step)
