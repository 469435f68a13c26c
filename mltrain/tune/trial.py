"""One trial, in the process that Tune starts for it: it holds the controller of a training and nothing else."""

import logging
from dataclasses import dataclass
from typing import Any

from mltrain.config import Experiment
from mltrain.errors import MltrainError, StoppedError, TrainingError
from mltrain.storage import open_store
from mltrain.train import Report, StopRequest, Verdict
from mltrain.train import run as train_run
from mltrain.tune import record
from mltrain.tune.broker import Seat
from mltrain.tune.space import Point, trial_config

logger = logging.getLogger(__name__)

# Names of what a trial reports to Tune.
RUN_ID = "run_id"
STEP = "step"
OBJECTIVE = "objective"


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
    seat = Seat(sweep.broker, point.run_id, config.train.workers, config.cluster.market, stop)
    try:
        if seat.take():
            _train(config, point, sweep, seat, stop)
    except StoppedError as stopped:
        logger.info("%s", stopped)
    except Exception as error:
        logger.exception("trial %s failed", point.run_id)
        root = open_store(config.root, deadline_s=config.storage.deadline_s)
        # Training records its own failures; this is for what failed before it could.
        if not (isinstance(error, MltrainError) and root.exists(f"runs/{point.run_id}/result.json")):
            record.failed(root, sweep.config, point, sweep.run_id, f"{type(error).__name__}: {error}")
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

    train_run(
        config,
        run_id=point.run_id,
        report=report,
        workers_source=None if config.train.workers.max == 0 else seat,
        sweep_id=sweep.run_id,
        stop=stop,
    )
