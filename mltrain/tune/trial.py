"""One trial, in the process that Tune starts for it: it holds the controller of a training and nothing else."""

import logging
import time
from dataclasses import dataclass
from typing import Any

from mltrain import results
from mltrain.config import Experiment
from mltrain.errors import MltrainError, StoppedError, TrainingError
from mltrain.storage import Store, open_store
from mltrain.train import Membership, Report, StopRequest, Verdict
from mltrain.train import run as train_run
from mltrain.train.lease import EXPIRES_S, LEASE, Holder
from mltrain.tune.broker import Seat
from mltrain.tune.space import Point, trial_config

logger = logging.getLogger(__name__)

# Names of what a trial reports to Tune.
RUN_ID = "run_id"
STEP = "step"
OBJECTIVE = "objective"
_POLL_S = 0.5


@dataclass(frozen=True)
class Sweep:
    """What all trials of a sweep share.

    Attributes:
        run_id: the sweep's.
        config: the sweep's, its dataset pinned.
        points: the trials that are left.
        broker: handle of the `Broker`.
    """

    run_id: str
    config: Experiment
    points: dict[str, Point]
    broker: Any


def run_trial(chosen: dict[str, str], sweep: Sweep) -> None:
    """Tune's function trainable: trains, or goes on from the trial's last checkpoint.

    What fails in the training is recorded with its error and ends the trial, not the sweep. Only the death of this
    process is Tune's to handle; it starts the trial again, and that resumes.
    """
    point = sweep.points[chosen[RUN_ID]]
    stop = StopRequest()
    config = trial_config(sweep.config, point.parameters)
    seat = Seat(sweep.broker, point.run_id, config.train.workers, stop)
    try:
        if seat.take():
            _train(config, point, sweep, seat, stop)
    except StoppedError as stopped:
        logger.info("%s", stopped)
    except Exception as error:
        logger.exception("trial %s failed", point.run_id)
        _record_failure(config, point, sweep, error)
    finally:
        seat.close()


def _train(config: Experiment, point: Point, sweep: Sweep, seat: Seat, stop: StopRequest) -> None:
    from ray import tune

    metric = config.objective.metric

    def report(report: Report) -> Verdict:
        if metric not in report.metrics:
            raise TrainingError(
                f"objective.metric {metric!r} is not among what evaluations report: {', '.join(sorted(report.metrics))}"
            )
        tune.report({STEP: report.step, OBJECTIVE: report.metrics[metric], "checkpoint": report.checkpoint})
        return Verdict.STOP if seat.pruned() else Verdict.CONTINUE

    root = open_store(config.root, deadline_s=config.storage.deadline_s)
    _await_lease(root.sub(f"runs/{point.run_id}"), stop)
    if stop.requested:
        return
    train_run(
        config,
        run_id=point.run_id,
        report=report,
        workers_source=None if config.train.workers.max == 0 else seat,
        part_of=Membership("trial", sweep.run_id),
        stop=stop,
    )


def _await_lease(run: Store, stop: StopRequest) -> None:
    """A trial of a driver that was killed may be about to die: its lease ends with it, or expires."""
    import json

    deadline = time.monotonic() + EXPIRES_S
    while run.exists(LEASE) and not stop.requested and time.monotonic() < deadline:
        if Holder(**json.loads(run.get(LEASE))).gone(time.time()):
            return
        time.sleep(_POLL_S)


def _record_failure(config: Experiment, point: Point, sweep: Sweep, error: Exception) -> None:
    """Training records its own failures; this is for what failed before it could."""
    root = open_store(config.root, deadline_s=config.storage.deadline_s)
    if root.exists(f"runs/{point.run_id}/result.json") and isinstance(error, MltrainError):
        return
    results_row = failure(config, point, sweep.run_id, f"{type(error).__name__}: {error}")
    write_failure(root, results_row, point)


def failure(config: Experiment, point: Point, sweep_id: str, error: str) -> results.RunRow:
    """The runs table's row of a trial that left none itself."""
    from datetime import UTC, datetime

    from mltrain import config as configs

    now = datetime.now(UTC)
    return results.RunRow(
        run_id=point.run_id,
        name=config.name,
        kind="trial",
        sweep_id=sweep_id,
        status="failed",
        started=now,
        ended=now,
        config=configs.to_yaml(config),
        config_digest=configs.digest(config),
        dataset_digest=str(config.dataset).rpartition("@")[2],
        tags=dict(config.tags),
        error=error,
    )


def write_failure(root: Store, row: results.RunRow, point: Point) -> None:
    """Puts such a row into the runs table and into the trial's ``result.json``."""
    with results.RunLog(root, point.run_id) as log:
        log.event("run failed", error=row.error)
        log.result({"run_id": row.run_id, "root": root.uri, "status": row.status, "metrics": {}, "error": row.error})
    results.append(root.uri, row)
