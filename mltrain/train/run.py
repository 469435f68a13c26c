"""One training, from a config to a result."""

import logging
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from mltrain import config as configs
from mltrain import results
from mltrain.config import Experiment
from mltrain.errors import MltrainError, NotFoundError, RequestError, StoppedError, StorageError, TrainingError
from mltrain.results import RunLog, RunRow, read_events, read_result
from mltrain.results.loggers import Loggers
from mltrain.storage import Store, open_store
from mltrain.storage.lease import EXPIRES_S
from mltrain.train import checkpoints, identity
from mltrain.train.control import Ending, Outcome, ReportFunction, Verdict
from mltrain.train.lease import Lease, LeaseHeldError, LeaseLostError
from mltrain.train.record import Identity, RunRecord, manifest_digest, refuse_foreign
from mltrain.train.result import Result
from mltrain.train.signals import StopRequest
from mltrain.train.spec import Spec, check_before_start, total_steps
from mltrain.train.totals import Totals
from mltrain.train.usercode import Factory, Hook, Shipped, load_hook, ship, ship_function

if TYPE_CHECKING:
    from mltrain.data import Dataset
    from mltrain.train.checkpoints import Checkpoint
    from mltrain.train.placement import WorkerSource

_LOG = logging.getLogger(__name__)

# Between two looks at a lease that another process holds.
_POLL_S = 0.5


def run(
    config: Experiment,
    *,
    run_id: str | None = None,
    factory: Factory | None = None,
    report: ReportFunction | None = None,
    workers_source: "WorkerSource | None" = None,
    progress: Callable[[str], None] | None = None,
    sweep_id: str | None = None,
    stop: StopRequest | None = None,
) -> Result:
    """Trains what ``config`` describes, or goes on with run ``run_id`` from its last checkpoint.

    Args:
        config: the experiment.
        run_id: creates or resumes; by default ``<name>-<utc>-<6>``.
        factory: builds the model instead of ``config.model.factory``; for notebooks.
        report: called at every evaluation, when its checkpoint is durable; its answer may end the run.
        workers_source: where workers are placed; by default in placement groups of their own.
        progress: told how it goes, a line at a time.
        sweep_id: the sweep that this is a trial of.
        stop: asks for an orderly end; by default SIGINT and SIGTERM do.

    Raises:
        RequestError: the request is wrong: config, run id, dataset, root, or another process holds the run.
        TrainingError: user code raised, the loss is not finite, or the workers could not be kept.
        StoppedError: stopped on request, resumable.
    """
    config = configs.checked(config, Experiment, "train.run")
    run_id = identity.new_run_id(config.name) if run_id is None else results.checked_run_id(run_id)
    root = open_store(config.root, deadline_s=config.storage.deadline_s)
    root.check_writable()
    store = root.sub(results.run_path(run_id))
    shipped = ship_function(factory) if factory is not None else ship(config.model.factory)
    pinned, dataset = identity.resolve(config, store, progress)
    check_before_start(pinned.objective.metric, shipped.name, dataset)
    hooks = [load_hook(name) for name in pinned.callbacks]
    lease = _take(store, run_id, 0.0 if sweep_id is None else EXPIRES_S, stop)
    try:
        with stop or StopRequest() as request:
            request.resume_command = resume_command(run_id)
            attempt = _Attempt(pinned, root, store, run_id, dataset, shipped, lease, sweep_id, hooks)
            return attempt.run(report, workers_source, progress, request)
    finally:
        lease.release()


def _take(run: Store, run_id: str, wait_s: float, stop: StopRequest | None) -> Lease:
    """The run's lease. A trial of a driver that was killed may be about to die, and is waited for."""
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return Lease.acquire(run, run_id)
        except LeaseHeldError:
            if stop is not None and stop.requested:
                raise StoppedError(f"Run {run_id} was not begun ({stop.reason}).", resume_command(run_id)) from None
            if time.monotonic() >= deadline:
                raise
            time.sleep(_POLL_S)


class _Attempt:
    """One driver's part in a run."""

    def __init__(
        self,
        config: Experiment,
        root: Store,
        store: Store,
        run_id: str,
        dataset: "Dataset",
        shipped: Shipped,
        lease: Lease,
        sweep_id: str | None,
        hooks: Sequence[Hook],
    ) -> None:
        self._config = config
        self._root = root
        self._store = store
        self._run_id = run_id
        self._dataset = dataset
        self._shipped = shipped
        self._lease = lease
        self._sweep_id = sweep_id
        self._hooks = hooks
        build = dataset.build or dataset.provenance.get("id")
        self._identity = Identity(run_id, configs.digest(config), dataset.digest, build)

    def run(
        self,
        report: ReportFunction | None,
        source: "WorkerSource | None",
        progress: Callable[[str], None] | None,
        stop: StopRequest,
    ) -> Result:
        identity.create(self._store, self._config)
        self._shipped.keep(self._store)
        if (finished := self._finished(progress)) is not None:
            return finished
        totals = Totals.of(read_events(self._root, self._run_id))
        with (
            RunLog(self._root, self._run_id) as log,
            Loggers(self._config.loggers, self._root, self._run_id) as loggers,
        ):
            record = RunRecord(
                self._config,
                self._identity,
                self._store,
                log,
                loggers,
                self._lease,
                report,
                progress,
                self._hooks,
                totals,
            )
            try:
                outcome = self._train(record, source, stop)
            except MltrainError as error:
                self._failed(record, log, error)
                raise
            if outcome.ending is Ending.FAILED:
                failure = self._failure(outcome)
                if isinstance(failure, RequestError) and outcome.step < 0 and not record.recorded:
                    # Found out only where the model and the data are, but nothing has begun.
                    record.event("run refused", error=str(failure))
                else:
                    self._failed(record, log, failure)
                raise failure
            return self._ended(record, log, outcome, stop)

    def _finished(self, progress: Callable[[str], None] | None) -> Result | None:
        """The result of a run that has finished, which stays as it is."""
        try:
            stored = read_result(self._root, self._run_id)
        except NotFoundError:
            return None
        if stored["status"] != "finished":
            return None
        result = Result(**stored)
        try:
            results.get(self._root.uri, self._run_id)
        except NotFoundError:
            # The process ended between the two.
            results.append(self._root.uri, self._row(result))
        if progress is not None:
            progress(f"run {self._run_id} has finished: nothing to do")
        return result

    def _train(self, record: RunRecord, source: "WorkerSource | None", stop: StopRequest) -> Outcome:
        restore = record.restore_point()
        if restore is not None:
            refuse_foreign(restore, self._identity)
        train, an_epoch = self._config.train, self._steps_per_epoch()
        record.event(
            "run started", run_id=self._run_id, driver_epoch=self._lease.driver_epoch, dataset=self._dataset.digest,
            step=restore.step if restore else 0, steps=total_steps(train.epochs, train.max_steps, an_epoch),
            steps_per_epoch=an_epoch, workers=train.workers.max, workers_min=train.workers.min,
            losses=record.totals.losses,
        )  # fmt: skip
        model, goal = self._config.model, self._config.objective
        default = ", the default" if model == configs.ModelConfig() else ""
        again = f" resumes after step {restore.step}" if restore else ""
        record.say(
            f"run {self._run_id}{again}: model {self._shipped.name}{default}; best is the {goal.mode} of {goal.metric}"
        )
        if self._config.train.workers.max == 0:
            from mltrain.train import inprocess

            return inprocess.train(self._spec("cuda" if _cuda() else "cpu"), record, stop)
        from mltrain.train import cluster

        device = "cuda" if self._config.train.workers.gpus > 0 else "cpu"
        try:
            return cluster.train(self._spec(device), record, stop, source, self._run_id, self._lease)
        except cluster.RayFailedError as error:
            raise TrainingError(f"{error} To go on: {resume_command(self._run_id)}") from error

    def _steps_per_epoch(self) -> int:
        return -(-self._dataset.rows("train") // self._config.train.global_batch_size)

    def _spec(self, device: str) -> Spec:
        return Spec(self._config, self._store, self._root.uri, self._dataset.uri, self._shipped, device)

    def _failure(self, outcome: Outcome) -> MltrainError:
        """The worker's error, with the place of its traceback where user code may be to blame."""
        error = outcome.error if isinstance(outcome.error, MltrainError) else TrainingError(outcome.reason)
        if type(error) is not TrainingError or not outcome.traceback:
            return error
        path = f"logs/error-{self._lease.driver_epoch:03d}.txt"
        where = f"step {outcome.step}" if outcome.step >= 0 else "before the first step"
        try:
            self._store.put(path, outcome.traceback.encode())
        except StorageError as second:
            _LOG.warning("the traceback cannot be kept: %s\n%s", second, outcome.traceback)
            return TrainingError(f"{error} ({where})")
        return TrainingError(f"{error} ({where}; traceback: {self._store.join(path)})")

    def _failed(self, record: RunRecord, log: RunLog, error: MltrainError) -> None:
        """Records a failure. That this fails too, on a full disk for instance, must not hide what failed first."""
        if isinstance(error, LeaseLostError):
            # The run goes on elsewhere: nothing happened to it.
            return
        record.event("run failed", error=str(error))
        try:
            self._conclude(record, log, "failed", record.recorded, error=str(error))
        except MltrainError as second:
            _LOG.warning("the failure of run %s is not recorded: %s", self._run_id, second)

    def _ended(self, record: RunRecord, log: RunLog, outcome: Outcome, stop: StopRequest) -> Result:
        pruned = record.verdict is Verdict.STOP
        if outcome.ending is Ending.FINISHED or pruned:
            status = "finished" if self._sweep_id is None or not pruned else "pruned"
            reason = "stopped by its report" if pruned else outcome.reason
            record.event("run finished", step=outcome.step, reason=reason)
            return self._conclude(record, log, status, outcome.step, reason=reason)
        reason = stop.reason or outcome.reason
        command = resume_command(self._run_id)
        record.event("run stopped", step=outcome.step, reason=reason)
        # Where everyone was lost, what was done after the last checkpoint is void.
        newest = record.newest
        self._conclude(record, log, "stopped", newest.step if newest else 0, reason=reason, resume=command)
        saved = kept(newest, outcome.step)
        raise StoppedError(f"Run {self._run_id} stopped after step {outcome.step} ({reason}), {saved}.", command)

    def _conclude(
        self,
        record: RunRecord,
        log: RunLog,
        status: str,
        step: int,
        *,
        reason: str = "",
        error: str | None = None,
        resume: str | None = None,
    ) -> Result:
        self._lease.renew()
        # Nobody writes checkpoints any more: what killed workers wrote aside is garbage.
        self._store.sub(checkpoints.PREFIX).remove_leftovers(older_than_s=0.0)
        best = record.best_checkpoint()
        ended = datetime.now(UTC)
        epochs = step / max(1, self._steps_per_epoch())
        totals = record.totals
        result = Result(
            run_id=self._run_id,
            root=self._root.uri,
            status=status,
            metrics=dict(best.metrics if best is not None and best.metrics else record.metrics),
            checkpoint=None if best is None else self._store.join(best.path),
            checkpoint_digest=None if best is None else manifest_digest(self._store, best),
            best_step=None if best is None else best.step,
            step=step,
            epochs=epochs,
            dataset={
                "name": self._dataset.name,
                "digest": self._dataset.digest,
                "build": self._identity.dataset_build,
                "uri": self._dataset.uri,
            },
            factory={"kind": self._shipped.kind, "name": self._shipped.name, "digest": self._shipped.digest},
            started=datetime.fromtimestamp(totals.first or ended.timestamp(), UTC).isoformat(),
            ended=ended.isoformat(),
            wall_s=totals.wall_s,
            losses_survived=totals.losses,
            downtime_s=totals.downtime_s,
            steps_repeated=totals.steps_repeated,
            generations=totals.generations,
            workers=totals.workers if self._config.train.workers.max else 0,
            worker_seconds=totals.worker_seconds,
            reason=reason,
            error=error,
            resume_command=resume,
            tags=dict(self._config.tags),
        )
        log.result(result.to_json())
        results.append(self._root.uri, self._row(result))
        return result

    def _row(self, result: Result) -> RunRow:
        return RunRow(
            **identity.described(self._config, self._dataset),
            run_id=result.run_id,
            kind="train" if self._sweep_id is None else "trial",
            sweep_id=self._sweep_id,
            status=result.status,
            started=datetime.fromisoformat(result.started),
            ended=datetime.fromisoformat(result.ended),
            code_digest=self._shipped.digest,
            checkpoint=result.checkpoint,
            checkpoint_digest=result.checkpoint_digest,
            metrics=result.metrics,
            wall_s=result.wall_s,
            steps=result.step,
            epochs=result.epochs,
            workers=result.workers,
            losses_survived=result.losses_survived,
            downtime_s=result.downtime_s,
            worker_seconds=result.worker_seconds,
            gpu_seconds=result.worker_seconds * self._config.train.workers.gpus,
            error=result.error,
        )


def kept(newest: "Checkpoint | None", step: int) -> str:
    """What a run that has stopped after ``step`` goes on from. Where everyone was lost, that is behind it."""
    if newest is None:
        return "without a checkpoint"
    return "with a checkpoint" if newest.step == step else f"with a checkpoint after step {newest.step}"


def resume_command(run_id: str) -> str:
    """The command that goes on with a run: this process's own, with the run's id."""
    words = sys.argv[1:]
    if not sys.argv[0].endswith(("mltrain", ".py")) or "pytest" in sys.argv[0]:
        return f"mltrain.train.run(config, run_id={run_id!r})"
    if "--run-id" in words:
        at = words.index("--run-id")
        words = words[:at] + words[at + 2 :]
    program = "mltrain" if sys.argv[0].endswith("mltrain") else sys.argv[0]
    return shlex.join([program, *words, "--run-id", run_id])


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()
