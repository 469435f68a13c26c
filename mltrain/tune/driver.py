"""The part of a sweep that is Ray Tune: it is handed the trials that are left, and told when to stop."""

import contextlib
import logging
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import ray
from ray import tune
from ray.tune import Stopper
from ray.tune.progress_reporter import TrialProgressCallback

from mltrain.config import Experiment
from mltrain.progress import Passing
from mltrain.storage import Store
from mltrain.train import StopRequest
from mltrain.train import market as markets
from mltrain.train.placement import resources
from mltrain.train.stopping import better
from mltrain.tune import record
from mltrain.tune.allocation import slots
from mltrain.tune.schedule import Schedule, asha
from mltrain.tune.space import Point
from mltrain.tune.trial import OBJECTIVE, RUN_ID, STEP, Sweep, run_trial

if TYPE_CHECKING:
    from ray.tune.experiment import Trial as TuneTrial

# A trial's own process holds a controller: no CPU worth reserving, but memory.
_CONTROLLER_BYTES = 256 << 20
_CONTROLLER_RESTARTS = 3
# A cluster that is not ours may grow: so many trials may wait for workers and thereby show that they are wanted.
_WAITING = 8
_SETTINGS = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}


class Event(Protocol):
    """Records an event and says a line."""

    def __call__(self, kind: str, line: str, /, **fields: Any) -> None: ...


class Driver:
    """Runs trials on Ray Tune.

    Args:
        config: of the sweep, its dataset pinned.
        sweep_id: its run id.
        root: its root's store.
        left: the trials to run.
        past: what trials reported in earlier attempts.
        broker: handle of the `Broker`.
        stop: asks for an orderly end.
        longest_steps: steps of the longest trial.
        event: takes what happens.
    """

    def __init__(
        self,
        config: Experiment,
        sweep_id: str,
        root: Store,
        left: Sequence[Point],
        past: Sequence[tuple[str, int, float]],
        broker: Any,
        stop: StopRequest,
        longest_steps: int,
        event: Event,
    ) -> None:
        self._config = config
        self._id = sweep_id
        self._root = root
        self._points = {point.run_id: point for point in left}
        self._past = past
        self._broker = broker
        self._stop = stop
        self._longest = longest_steps
        self._event = event
        self._best: float | None = None
        for _, _, value in past:
            self._best = value if better(value, self._best, config.objective.mode) else self._best

    def run(self) -> None:
        """Returns when every trial has ended, or all have stopped because ``stop`` asked for it."""
        sweep = Sweep(self._id, self._config, self._points, self._broker)
        trainable = tune.with_resources(tune.with_parameters(run_trial, sweep=sweep), self._resources())
        schedule = Schedule(asha(self._config, self._longest), self._broker, self._past)
        with tempfile.TemporaryDirectory(prefix="mltrain-tune-") as scratch, _quiet(Path(scratch) / "tune.log"):
            tuner = tune.Tuner(
                trainable,
                param_space={RUN_ID: tune.grid_search(list(self._points))},
                tune_config=tune.TuneConfig(
                    scheduler=schedule, max_concurrent_trials=self._concurrency(), reuse_actors=True
                ),
                run_config=tune.RunConfig(
                    name=self._id,
                    storage_path=scratch,
                    stop=_OnRequest(self._stop, self._broker),
                    failure_config=tune.FailureConfig(max_failures=_CONTROLLER_RESTARTS),
                    callbacks=[_Watch(self)],
                    verbose=0,
                ),
            )
            tuner.fit()

    def began(self, run_id: str) -> None:
        """A trial's process is there, and waits for its workers."""
        chosen = (f"{key.rpartition('.')[2]} {_shown(value)}" for key, value in self._points[run_id].parameters.items())
        self._event("trial began", f"trial {_short(run_id)} begins: {'  '.join(chosen)}", trial=run_id)

    def reported(self, run_id: str, step: int, value: float) -> None:
        """A trial's evaluation."""
        goal = self._config.objective
        line = f"trial {_short(run_id)}  step {step}  {goal.metric} {value:.4f}"
        if better(value, self._best, goal.mode):
            self._best, line = value, f"{line}, the best so far"
        else:
            line = Passing(line)
        self._event("report", line, trial=run_id, step=step, value=value)

    def ended(self, run_id: str, error: str | None) -> None:
        """A trial's process is done with it.

        Args:
            run_id: the trial.
            error: why its process died too often; None if the trial ended by itself.
        """
        ray.get(self._broker.leave.remote(run_id))
        point = self._points[run_id]
        trial = record.trial_of(self._root, point)
        if error is not None and not trial.ended:
            record.failed(self._root, self._config, point, self._id, error)
            trial = record.trial_of(self._root, point)
        value = trial.metrics.get(self._config.objective.metric)
        best = "" if value is None else f"  {self._config.objective.metric} {value:.4f}"
        why = f": {trial.error.splitlines()[0]}" if trial.error else ""
        self._event(
            "trial ended", f"trial {_short(run_id)}  {trial.status} after step {trial.steps}{best}{why}",
            trial=run_id, status=trial.status, steps=trial.steps, metrics=trial.metrics, error=trial.error,
        )  # fmt: skip

    def _resources(self) -> tune.PlacementGroupFactory:
        workers, market = self._config.train.workers, self._config.cluster.market
        if workers.max == 0:
            return tune.PlacementGroupFactory([resources(workers)], bundle_label_selector=[markets.allowed(market)])
        bundle: dict[str, int | float] = {"memory": _CONTROLLER_BYTES}
        return tune.PlacementGroupFactory([bundle], bundle_label_selector=[markets.lasting_here(market)])

    def _concurrency(self) -> int:
        """Trials at a time: as many as can have their ``min`` workers, and one more that is ready to take over."""
        workers = self._config.train.workers
        if workers.max == 0:
            return len(self._points)
        room = slots([node["Resources"] for node in markets.alive(self._config.cluster.market)], resources(workers))
        ready = room // workers.min + 1
        return ready if self._config.cluster.address == "local" else max(ready, _WAITING)


class _Here:
    """Lives in this process. Tune pickles what it is given, to restore sweeps itself; ours come from our own record."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class _Watch(_Here, TrialProgressCallback):
    """Hears from Tune how trials go; in the place of Tune's own, which prints to stdout at any verbosity."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def on_trial_result(
        self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", result: dict[str, Any], **info: Any
    ) -> None:
        self._driver.reported(trial.config[RUN_ID], result[STEP], result[OBJECTIVE])

    def on_trial_start(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        self._driver.began(trial.config[RUN_ID])

    def on_trial_complete(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        self._driver.ended(trial.config[RUN_ID], None)

    def on_trial_error(self, iteration: int, trials: "list[TuneTrial]", trial: "TuneTrial", **info: Any) -> None:
        died = f"the process of the trial's controller died {_CONTROLLER_RESTARTS + 1} times"
        self._driver.ended(trial.config[RUN_ID], died)


class _OnRequest(_Here, Stopper):
    """Tells the trials to stop, and Tune once they have."""

    def __init__(self, stop: StopRequest, broker: Any) -> None:
        self._stop = stop
        self._broker = broker
        self._told = False

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        """Whether Tune should end: asked to, and no trial is making its last checkpoint any more."""
        if not self._stop.requested:
            return False
        if not self._told:
            self._told = True
            ray.get(self._broker.stop.remote(self._stop.reason))
        return not ray.get(self._broker.members.remote())


@contextlib.contextmanager
def _quiet(log: Path) -> Iterator[None]:
    """Tune's settings, and its and Ray's log lines in a file instead of the terminal."""
    before = {name: os.environ.get(name) for name in _SETTINGS}
    os.environ.update(_SETTINGS)
    handler = logging.FileHandler(log)
    ray_logger = logging.getLogger("ray")
    handlers, propagate = ray_logger.handlers, ray_logger.propagate
    ray_logger.handlers, ray_logger.propagate = [handler], False
    try:
        yield
    finally:
        ray_logger.handlers, ray_logger.propagate = handlers, propagate
        handler.close()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _short(run_id: str) -> str:
    return run_id.rsplit("-", 1)[-1]


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
