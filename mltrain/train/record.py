"""A run as its controller keeps it: log, metrics, reports, and when a checkpoint is due."""

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from mltrain.errors import DamagedError, TrainingError
from mltrain.progress import Passing, Watcher
from mltrain.results import RunLog
from mltrain.results.loggers import Loggers
from mltrain.results.story import Story
from mltrain.train import checkpoints
from mltrain.train.checkpoints import Checkpoint
from mltrain.train.control import Message, Report, ReportFunction, Row, Verdict
from mltrain.train.interval import checkpoint_interval_s
from mltrain.train.lease import Lease
from mltrain.train.shelf import Identity as Identity
from mltrain.train.shelf import Policy, Shelf
from mltrain.train.stopping import better
from mltrain.train.totals import Totals
from mltrain.train.usercode import Hook

if TYPE_CHECKING:
    from mltrain.config import Experiment
    from mltrain.storage import Store

_LOG = logging.getLogger(__name__)

# The interval follows the mean cost of so many checkpoints.
_COSTS = 5


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
        self._run = run
        self._log = log
        self._loggers = loggers
        self._lease = lease
        goal = config.objective
        self._shelf = Shelf(run, identity, lease, Policy(config.train.checkpoint.keep, goal.metric, goal.mode))
        self._report = report
        self._progress = progress
        self._watcher = progress if isinstance(progress, Watcher) else None
        self._story = Story()
        self._hooks = hooks
        self._undecided: list[Message] = []
        self._last_checkpoint: float | None = None
        self._costs_s: deque[float] = deque(maxlen=_COSTS)
        self._delayed: int | None = None
        self._generation = 0
        self.totals = totals
        self.recorded = 0
        self.decided = 0
        self.verdict = Verdict.CONTINUE
        self._leading: float | None = None
        self.metrics: dict[str, float] = {}

    def watch(self) -> None:
        """Called in every turn of the controller's loop, before anything is done or told.

        Raises:
            LeaseLostError: another controller has taken the run while this one was paused.
        """
        self._lease.watch()

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
        for step in self._shelf.look():
            self.set_aside(step, f"the manifest {self._run.join(checkpoints.manifest_path(step))} is damaged")
        newest = self.newest
        if newest is None:
            return None
        self.recorded = newest.step
        self.decided = int(newest.state["evaluated_step"])
        evaluated = [c for c in self._shelf.kept.values() if c.metrics]
        self.metrics = dict(max(evaluated, key=lambda c: c.step).metrics) if evaluated else {}
        return newest

    def set_aside(self, step: int, why: str) -> None:
        """A damaged checkpoint: it no longer exists, and the one before it is used."""
        self._shelf.set_aside(step)
        self.event("checkpoint damaged", step=step, reason=why)
        self.say(f"checkpoint step-{step} is damaged, falling back to the one before it: {why}")
        _LOG.warning("%s", why)

    def begin_generation(self, number: int, members: list[str], reason: str) -> None:
        """A new membership: what was not complete in the old one never will be."""
        self._generation = number
        if self._last_checkpoint is None:
            self._last_checkpoint = time.monotonic()
        # Later the clock goes on: where nodes come and go often, there would never be another checkpoint.
        self._shelf.begin_generation(number)
        self.event("generation formed", generation=number, members=members, reason=reason)

    @property
    def newest(self) -> Checkpoint | None:
        """The newest checkpoint."""
        return self._shelf.newest

    @property
    def saving(self) -> bool:
        """Whether a checkpoint is on its way to storage."""
        return self._shelf.under_way() is not None

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
        elif message["type"] == "saving":
            self._shelf.begun(int(message["step"]))
        elif message["type"] == "delayed":
            self._delay()

    def checkpoint_due(self) -> bool:
        """Whether it is time for a checkpoint, by the clock. One that is on its way for as long delays the next."""
        under_way = self._shelf.under_way()
        if under_way is None:
            return self._last_checkpoint is not None and self._over(time.monotonic() - self._last_checkpoint)
        if self._over(under_way[1]):
            self._delay()
        return False

    def _over(self, since_s: float) -> bool:
        """Whether that is longer than the interval between two checkpoints."""
        every = self._config.train.checkpoint.every
        if isinstance(every, str):
            cost_s = sum(self._costs_s) / max(1, len(self._costs_s))
            return since_s > checkpoint_interval_s(cost_s, self.totals.rollbacks, self.totals.wall_s)
        return every.seconds is not None and since_s > every.seconds

    def _delay(self) -> None:
        """A checkpoint is due and the one before it is not durable yet: said once for each that is waited for."""
        under_way = self._shelf.under_way()
        if under_way is not None and under_way[0] != self._delayed:
            self._delayed, since_s = under_way
            self.event("checkpoint delayed", waiting_for=self._delayed, since_s=since_s)

    @property
    def driver_epoch(self) -> int:
        """Of this controller."""
        return self._lease.driver_epoch

    def best_checkpoint(self) -> Checkpoint | None:
        """The one with the best objective, else the newest."""
        best = self._shelf.best
        return self.newest if best is None else self._shelf.kept[best[1]]

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
        leads = all(
            better(value, past, goal.mode) for past in (self._leading, self._shelf.best and self._shelf.best[0])
        )
        self._leading = value if leads else self._leading
        return leads

    def _part(self, message: Message) -> None:
        under_way = self._shelf.under_way()
        # What a resumed run takes up again is complete up to the checkpoint.
        checkpoint = self._shelf.take(message, self._log.flush)
        if checkpoint is None:
            return
        since_s = 0.0 if under_way is None else under_way[1]
        self._last_checkpoint = time.monotonic() - since_s
        stall_s, waited_s = float(message["stall_s"]), float(message["waited_s"])
        self._costs_s.append(stall_s + waited_s)
        self.event(
            "checkpoint", step=checkpoint.step, size_bytes=checkpoint.size_bytes, parts=len(checkpoint.parts),
            stall_s=stall_s, waited_s=waited_s, write_s=message["write_s"], durable_s=since_s, digest=checkpoint.digest,
        )  # fmt: skip
        self._decide(checkpoint)
        self._shelf.tidy()

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
