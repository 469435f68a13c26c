"""A run as its controller keeps it: log, metrics, checkpoints, reports. The only writer of manifests."""

import hashlib
import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mltrain.errors import DamagedError, TrainingError
from mltrain.progress import Passing, Watcher
from mltrain.results import RunLog
from mltrain.results.loggers import Loggers
from mltrain.results.story import Story
from mltrain.train import checkpoints
from mltrain.train.checkpoints import Checkpoint, Part
from mltrain.train.control import Message, Report, ReportFunction, Row, Verdict
from mltrain.train.interval import checkpoint_interval_s
from mltrain.train.lease import Lease
from mltrain.train.stopping import better
from mltrain.train.totals import Totals
from mltrain.train.usercode import Hook

if TYPE_CHECKING:
    from mltrain.config import Experiment
    from mltrain.storage import Store

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Identity:
    """What a checkpoint records about where it comes from."""

    run_id: str
    config_digest: str
    dataset_digest: str
    dataset_build: str | None


@dataclass
class _Pending:
    """A checkpoint whose parts are arriving."""

    parts: dict[int, Part] = field(default_factory=dict)
    head: Message | None = None


class RunRecord:
    """Takes what the ranks report. All methods are called from one thread.

    Args:
        run: store of ``runs/<run-id>/``.
        log: the run's events and metrics.
        loggers: beside the log.
        lease: held by this controller.
        report: called at every evaluation, once its checkpoint is durable.
        progress: told how it goes; a `Watcher` every event and step, too.
        hooks: see every event.
        totals: of earlier attempts; goes on with what happens now.
    """

    def __init__(
        self,
        config: "Experiment",
        identity: Identity,
        run: "Store",
        log: RunLog,
        loggers: Loggers,
        lease: Lease,
        report: ReportFunction | None,
        progress: Callable[[str], None] | None,
        hooks: Sequence[Hook],
        totals: Totals,
    ) -> None:
        self._config = config
        self._identity = identity
        self._run = run
        self._log = log
        self._loggers = loggers
        self._lease = lease
        self._report = report
        self._progress = progress
        self._watcher = progress if isinstance(progress, Watcher) else None
        self._story = Story()
        self._hooks = hooks
        self._pending: dict[int, _Pending] = {}
        self._undecided: list[Message] = []
        self._manifests: dict[int, Checkpoint] = {}
        self._last_checkpoint = time.monotonic()
        self._cost_s = 0.0
        self._generation = 0
        self.totals = totals
        self.recorded = 0
        self.decided = 0
        self.verdict = Verdict.CONTINUE
        self.best: tuple[float, int] | None = None
        self._leading: float | None = None
        self.metrics: dict[str, float] = {}

    def event(self, kind: str, /, **fields: Any) -> None:
        """Records that something happened."""
        self._log.event(kind, **fields)
        self.totals.add({"time": time.time(), "event": kind, **fields})
        for hook in self._hooks:
            hook.on_event(kind, fields)
        if self._watcher is not None:
            self._watcher.event(kind, fields)
        if (said := self._story.tell({"time": time.time(), "event": kind, **fields})) is not None:
            self.say(said)

    def say(self, line: str) -> None:
        """Tells the user how it goes."""
        if self._progress is not None:
            self._progress(line)

    def restore_point(self) -> Checkpoint | None:
        """The newest intact checkpoint; the others are remembered for retention and the best one."""
        self._manifests = {checkpoint.step: checkpoint for checkpoint in checkpoints.stored(self._run)}
        for step in set(checkpoints.steps(self._run)) - set(self._manifests):
            self.set_aside(step, f"the manifest of checkpoint step-{step} is damaged")
        self.best = None
        for checkpoint in self._manifests.values():
            self._consider(checkpoint)
        newest = self.newest
        if newest is None:
            return None
        self.recorded = newest.step
        self.decided = int(newest.state["evaluated_step"])
        evaluated = [c for c in self._manifests.values() if c.metrics]
        self.metrics = dict(max(evaluated, key=lambda c: c.step).metrics) if evaluated else {}
        return newest

    def set_aside(self, step: int, why: str) -> None:
        """A damaged checkpoint: it no longer exists, and the one before it is used."""
        self._lease.check()
        checkpoints.set_aside(self._run, step)
        self._manifests.pop(step, None)
        self.event("checkpoint damaged", step=step, reason=why)
        self.say(f"checkpoint step-{step} is damaged, falling back to the one before it: {why}")
        _LOG.warning("%s", why)

    def begin_generation(self, number: int, members: list[str], reason: str) -> None:
        """A new membership: what was not complete in the old one never will be."""
        self._generation = number
        # The clock goes on: where nodes come and go often, there would never be another checkpoint.
        self._pending.clear()
        self.event("generation formed", generation=number, members=members, reason=reason)

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self._manifests[max(self._manifests)] if self._manifests else None

    def row(self, row: Row) -> None:
        """Metrics of a step."""
        self.recorded = max(self.recorded, row.step)
        self._log.metrics(row.step, row.values, epoch=row.epoch, generation=row.generation)
        self._loggers.log(row.step, row.values)
        if self._watcher is not None:
            self._watcher.step(row.step, row.values)

    def handle(self, message: Message) -> None:
        """Anything else that a rank of the current generation sends."""
        if message["type"] == "evaluation":
            self._evaluated(message)
        elif message["type"] == "part":
            self._part(message)

    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint, by the clock."""
        if self._pending:
            return False
        every = self._config.train.checkpoint.every
        since = time.monotonic() - self._last_checkpoint
        if isinstance(every, str):
            return since > checkpoint_interval_s(self._cost_s, self.totals.rollbacks, self.totals.wall_s)
        return every.seconds is not None and since > every.seconds

    def best_checkpoint(self) -> Checkpoint | None:
        """The one with the best objective, else the newest."""
        if self.best is not None and self.best[1] in self._manifests:
            return self._manifests[self.best[1]]
        return self.newest

    def _evaluated(self, message: Message) -> None:
        step, metrics = int(message["step"]), dict(message["metrics"])
        if any(other["step"] == step for other in self._undecided):
            # Told again by a generation that could not know, or taken again after everyone was lost: it is the same.
            return
        self._undecided.append(message)
        self.metrics = metrics
        own = {name: value for name, value in metrics.items() if not name.startswith("train/")}
        self._log.metrics(step, own, epoch=int(message["epoch"]), generation=self._generation)
        self._loggers.log(step, own)
        self.event("evaluation", step=step, metrics=metrics, seconds=message["seconds"])
        goal = self._config.objective
        told = dict.fromkeys((goal.metric, f"{goal.split}/loss", "train/loss"))
        shown = "  ".join(f"{name} {metrics[name]:.4f}" for name in told if name in metrics)
        line = f"epoch {message['epoch']:.1f}  step {step}  {shown}"
        self.say(f"{line}, the best so far" if self._leads(metrics) else Passing(line))

    def _leads(self, metrics: dict[str, float]) -> bool:
        """Whether an evaluation is better than all before it, of which the last may not be a checkpoint yet."""
        goal = self._config.objective
        value = metrics.get(goal.metric, math.nan)
        leads = all(better(value, past, goal.mode) for past in (self._leading, self.best and self.best[0]))
        self._leading = value if leads else self._leading
        return leads

    def _part(self, message: Message) -> None:
        step, part = int(message["step"]), Part.from_json(message["part"])
        pending = self._pending.setdefault(step, _Pending())
        pending.parts[part.rank] = part
        if message["rank"] == 0:
            pending.head = message
        if pending.head is not None and len(pending.parts) == int(message["size"]):
            del self._pending[step]
            self._commit(
                step, pending.head, [pending.parts[rank] for rank in sorted(pending.parts)], message["write_s"]
            )

    def _commit(self, step: int, head: Message, parts: list[Part], write_s: float) -> None:
        """Everything is durable: the manifest makes it a checkpoint."""
        self._lease.check()
        # What a resumed run takes up again is complete up to the checkpoint.
        self._log.flush()
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
        )
        path = checkpoints.manifest_path(step)
        if not self._run.put_if_absent(path, checkpoint.to_bytes()):
            # The same step was saved before and then repeated: what is stored is as good.
            checkpoint = Checkpoint.from_bytes(self._run.get(path), self._run.join(path))
        self._manifests[step] = checkpoint
        self._last_checkpoint = time.monotonic()
        self._cost_s = float(head["stall_s"])
        size = sum(part.size_bytes for part in parts)
        self.event(
            "checkpoint", step=step, size_bytes=size, parts=len(parts), stall_s=head["stall_s"],
            waited_s=head["waited_s"], write_s=write_s, digest=checkpoint.digest,
        )  # fmt: skip
        self._consider(checkpoint)
        self._decide(checkpoint)
        for old in checkpoints.to_delete(
            sorted(self._manifests), self._config.train.checkpoint.keep, self.best and self.best[1]
        ):
            checkpoints.delete(self._run, old)
            del self._manifests[old]

    def _consider(self, checkpoint: Checkpoint) -> None:
        goal = self._config.objective
        value = checkpoint.metrics.get(goal.metric)
        if value is not None and better(value, None if self.best is None else self.best[0], goal.mode):
            self.best = (value, checkpoint.step)

    def _decide(self, checkpoint: Checkpoint) -> None:
        ready = [message for message in self._undecided if message["step"] <= checkpoint.step]
        self._undecided = [message for message in self._undecided if message["step"] > checkpoint.step]
        for message in ready:
            report = Report(
                int(message["step"]), float(message["epoch"]), dict(message["metrics"]), self._run.join(checkpoint.path)
            )
            # A run that is told to stop may pass another evaluation on its way.
            if self._report is not None and self.verdict is Verdict.CONTINUE:
                self.verdict = self._report(report)
            self.decided = max(self.decided, report.step)


def manifest_digest(run: "Store", checkpoint: Checkpoint) -> str:
    """SHA-256 of the stored manifest, by which results name a checkpoint.

    Raises:
        DamagedError: what is stored is not this checkpoint.
    """
    data = run.get(checkpoints.manifest_path(checkpoint.step))
    if Checkpoint.from_bytes(data, checkpoint.path).digest != checkpoint.digest:
        raise DamagedError(f"{run.join(checkpoint.path)} changed since it was written")
    return hashlib.sha256(data).hexdigest()


def refuse_foreign(checkpoint: Checkpoint, identity: Identity) -> None:
    """A run goes on only from checkpoints of its own config and dataset.

    Raises:
        TrainingError: this one is of another.
    """
    for name in ("config_digest", "dataset_digest"):
        found, wanted = getattr(checkpoint, name), getattr(identity, name)
        if found != wanted:
            raise TrainingError(
                f"checkpoint {checkpoint.path} of run {identity.run_id}: {name} is {found}, not {wanted}"
            )
