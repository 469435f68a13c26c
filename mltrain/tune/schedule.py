"""Tune's scheduler: trials start in order, ASHA says which of them end early, ending is their own business."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import ray
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler

from mltrain.config import Experiment
from mltrain.tune.trial import OBJECTIVE, RUN_ID, STEP

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial as TuneTrial


@dataclass(frozen=True)
class _Named:
    """What ASHA looks at in a trial. Named by run id, so that a trial is the same one after a resume."""

    trial_id: str


class Schedule(FIFOScheduler):
    """Ends trials through the broker instead of Tune, which would kill them: so they finish their records.

    Args:
        asha: from :func:`asha`; None to run every trial to its end.
        broker: handle of the `Broker`, which tells a trial that it is to end.
        past: what trials reported in earlier attempts of the sweep: run id, step, value.
    """

    def __init__(self, asha: ASHAScheduler | None, broker: Any, past: Sequence[tuple[str, int, float]] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._asha = asha
        self._broker = broker
        self._known: set[str] = set()
        for run_id, step, value in past:
            self.judge(run_id, step, value)

    def on_trial_result(self, tune_controller: "TuneController", trial: "TuneTrial", result: dict[str, Any]) -> str:
        """Passes a report to ASHA and its decision to the trial."""
        run_id = trial.config[RUN_ID]
        if self.judge(run_id, result[STEP], result[OBJECTIVE]) == TrialScheduler.STOP:
            ray.get(self._broker.prune.remote(run_id))
        return str(TrialScheduler.CONTINUE)

    def judge(self, run_id: str, step: int, value: float) -> str:
        """Whether a trial that reports ``value`` after ``step`` steps goes on: ``CONTINUE`` or ``STOP``."""
        if self._asha is None:
            return str(TrialScheduler.CONTINUE)
        trial: Any = _Named(run_id)
        controller: Any = None  # ASHA does not use it
        if run_id not in self._known:
            self._known.add(run_id)
            self._asha.on_trial_add(controller, trial)
        return str(self._asha.on_trial_result(controller, trial, {STEP: step, OBJECTIVE: value}))


def asha(config: Experiment, longest_steps: int) -> ASHAScheduler | None:
    """The config's ASHA, or None for FIFO.

    Args:
        config: of the sweep.
        longest_steps: steps of the longest trial, from which the rungs follow: grace, grace x factor, ...
    """
    assert config.tune is not None
    scheduler = config.tune.scheduler
    if scheduler.name != "asha":
        return None
    grace = scheduler.grace_steps or 1
    return ASHAScheduler(
        time_attr=STEP,
        metric=OBJECTIVE,
        mode=config.objective.mode,
        grace_period=grace,
        reduction_factor=scheduler.reduction_factor or 3,
        # Trials end by themselves; and none is ended at its last step.
        max_t=max(longest_steps, grace) + 1,
        stop_last_trials=False,
    )
