"""A sweep from its config to its result: what is left to do is read from storage, Tune does it, and it is recorded."""

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mltrain import config as configs
from mltrain import results, train
from mltrain.config import Experiment
from mltrain.errors import MissingDependencyError, NotFoundError, StoppedError, TrainingError
from mltrain.results import RunLog, RunRow, read_events, read_result
from mltrain.storage import Store, open_store
from mltrain.train import StopRequest, identity
from mltrain.train import market as markets
from mltrain.train.cluster import RayFailedError, ray_cluster
from mltrain.train.lease import Lease
from mltrain.train.run import resume_command
from mltrain.train.signals import Interrupted
from mltrain.train.spec import check_before_start
from mltrain.train.totals import Totals
from mltrain.train.usercode import ship
from mltrain.tune import record, space
from mltrain.tune.result import SweepResult, Trial, best_of
from mltrain.tune.space import Point

if TYPE_CHECKING:
    from mltrain.data import Dataset

logger = logging.getLogger(__name__)

Progress = Callable[[str], None]

# Trials are runs whose ids are the sweep's and a number.
_LONGEST_ID = results.LONGEST_RUN_ID - len("-00000")


def run(config: Experiment, *, run_id: str | None = None, progress: Progress | None = None) -> SweepResult:
    """Runs the sweep that ``config`` describes, or what is left of sweep ``run_id``.

    Args:
        config: the experiment, with ``tune``.
        run_id: creates or resumes; by default ``<name>-<utc>-<6>``. Trials that have ended are not repeated, those that
            were running go on from their last checkpoint.
        progress: told how it goes, a line at a time.

    Raises:
        RequestError: the request is wrong: config, space, dataset, root, or another process holds the sweep.
        TrainingError: every trial failed.
        StoppedError: stopped on request, resumable.
    """
    config = configs.checked(config, Experiment, "tune.run")
    config.require_tune()
    sweep_id = identity.new_run_id(config.name) if run_id is None else results.checked_run_id(run_id, _LONGEST_ID)
    _require_ray()
    root = open_store(config.root, deadline_s=config.storage.deadline_s)
    root.check_writable()
    store = root.sub(results.run_path(sweep_id, "sweeps"))
    ship(config.model.factory)
    pinned, dataset = identity.resolve(config, store, progress)
    points = space.points(pinned, sweep_id)
    for factory in sorted({space.trial_config(pinned, point.parameters).model.factory for point in points}):
        check_before_start(pinned.objective.metric, factory, dataset)
    lease = Lease.acquire(store, sweep_id)
    try:
        identity.create(store, pinned)
        results.ensure_table(root.uri)
        with StopRequest() as stop, RunLog(root, sweep_id, kind="sweeps") as log:
            stop.resume_command = resume_command(sweep_id)
            kept = record.keep_points(store, points)
            return _Sweep(pinned, root, sweep_id, dataset, kept, log, lease, stop, progress or logger.info).run()
    finally:
        lease.release()


class _Sweep:
    """One driver's part in a sweep."""

    def __init__(
        self,
        config: Experiment,
        root: Store,
        sweep_id: str,
        dataset: "Dataset",
        points: list[Point],
        log: RunLog,
        lease: Lease,
        stop: StopRequest,
        progress: Progress,
    ) -> None:
        self._config = config
        self._root = root
        self._id = sweep_id
        self._dataset = dataset
        self._points = points
        self._log = log
        self._lease = lease
        self._stop = stop
        self._progress = progress
        self._began = time.monotonic()
        earlier = Totals.of(read_events(root, sweep_id, kind="sweeps"))
        self._spent_s = earlier.wall_s
        self._started = datetime.fromtimestamp(earlier.first or time.time(), UTC)

    def run(self) -> SweepResult:
        left = [point for point in self._points if not record.trial_of(self._root, point).ended]
        if not left and (wall_s := self._finished()) is not None:
            self._say(f"sweep {self._id} has finished: nothing to do")
            return self._result(wall_s)
        done = len(self._points) - len(left)
        again = f", {done} of them done before" if done else ""
        self._say(f"sweep {self._id}: {len(self._points)} trials{again}")
        self._log.event(
            "sweep started", trials=len(self._points), left=len(left), driver_epoch=self._lease.driver_epoch
        )
        if left:
            self._work(left)
        return self._conclude()

    def _work(self, left: list[Point]) -> None:
        """Runs the trials that are left. Where Ray fails the sweep stops: what its trials have stored is not lost."""
        try:
            with ray_cluster(self._config.cluster, self._say, self._stop):
                self._fit(left)
        except Interrupted:
            self._say("stopped while Ray was starting")
        except RayFailedError as error:
            self._stop.request(str(error))

    def _fit(self, left: list[Point]) -> None:
        import ray

        from mltrain.tune.broker import Broker
        from mltrain.tune.driver import Driver

        past = record.past_reports(self._root, self._points, self._config.objective.metric)
        workers, market = self._config.train.workers, self._config.cluster.market
        actor: Any = ray.remote(Broker).options(
            num_cpus=0, max_concurrency=1000, label_selector=markets.lasting_here(market)
        )
        broker = actor.remote(workers, market)
        driver = Driver(
            self._config, self._id, self._root, left, past, broker, self._stop, self._longest(), self._event
        )
        try:
            driver.run()
        finally:
            ray.kill(broker)
        self._lease.check()

    def _longest(self) -> int:
        """Steps of the longest trial."""
        rows = self._dataset.rows("train")
        return max(_steps(space.trial_config(self._config, point.parameters), rows) for point in self._points)

    def _event(self, kind: str, line: str, /, **fields: Any) -> None:
        self._log.event(kind, **fields)
        self._say(line)

    def _say(self, line: str) -> None:
        self._progress(line)

    def _finished(self) -> float | None:
        """Seconds that the sweep took, if it has finished."""
        try:
            stored = read_result(self._root, self._id, kind="sweeps")
        except NotFoundError:
            return None
        return float(stored["wall_s"]) if stored["status"] == "finished" else None

    def _result(self, wall_s: float) -> SweepResult:
        trials = [record.trial_of(self._root, point) for point in self._points]
        goal = self._config.objective
        best = best_of(trials, goal.metric, str(goal.mode))
        stopped = not all(trial.ended for trial in trials)
        status = "stopped" if stopped else "failed" if best is None else "finished"
        loaded = None if best is None or not best.ended else train.load(self._root.uri, best.run_id)
        return SweepResult(self._id, self._root.uri, status, goal.metric, str(goal.mode), trials, loaded, wall_s)

    def _conclude(self) -> SweepResult:
        result = self._result(self._spent_s + time.monotonic() - self._began)
        trials, status = result.trials, result.status
        best = best_of(trials, result.metric, result.mode)
        errors = [trial.error for trial in trials if trial.error]
        error = f"all {len(trials)} trials failed; the first: {errors[0] if errors else 'no error known'}"
        self._log.event(f"sweep {status}", trials=record.summary(trials), best=best and best.run_id)
        content = {**result.to_json(), "started": self._started.isoformat()}
        self._log.result(content)
        results.append(self._root.uri, self._row(result, best, error if status == "failed" else None))
        if status == "stopped":
            command = resume_command(self._id)
            reasons = [trial.error for trial in trials if trial.status == "stopped" and trial.error]
            reason = self._stop.reason or "; ".join(reasons) or "not all trials have ended"
            done = sum(trial.ended for trial in trials)
            raise StoppedError(
                f"Sweep {self._id} stopped ({reason}) with {done} of {len(trials)} trials done.", command
            )
        if status == "failed":
            raise TrainingError(f"sweep {self._id}: {error}")
        return result

    def _row(self, result: SweepResult, best: Trial | None, error: str | None) -> RunRow:
        worker_seconds = sum(trial.worker_seconds for trial in result.trials)
        return RunRow(
            **identity.described(self._config, self._dataset),
            run_id=self._id,
            kind="sweep",
            status=result.status,
            started=self._started,
            ended=datetime.now(UTC),
            checkpoint=result.best.checkpoint if result.best else None,
            checkpoint_digest=result.best.checkpoint_digest if result.best else None,
            code_digest=result.best.factory["digest"] if result.best else None,
            metrics=best.metrics if best else {},
            wall_s=result.wall_s,
            steps=sum(trial.steps for trial in result.trials),
            workers=self._config.train.workers.max,
            worker_seconds=worker_seconds,
            gpu_seconds=worker_seconds * self._config.train.workers.gpus,
            error=error,
        )


def _require_ray() -> None:
    try:
        import ray.tune  # noqa: F401
    except ImportError as error:
        raise MissingDependencyError(f"sweeps need Ray Tune ({error}): pip install 'mltrain[ray]'") from error


def _steps(config: Experiment, rows: int) -> int:
    most = config.train.max_steps
    by_epochs = (config.train.epochs or 0) * -(-rows // config.train.global_batch_size)
    return min(most, by_epochs) if most and by_epochs else most or by_epochs
