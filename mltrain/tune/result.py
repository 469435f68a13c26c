"""What a sweep came to."""

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from mltrain.train import Result


@dataclass(frozen=True)
class Trial:
    """One trial.

    Attributes:
        run_id: its run.
        parameters: what of the config it changed, by dotted key.
        status: ``finished``, ``pruned`` (its scheduler ended it early), ``failed``, ``stopped`` or ``waiting``.
        metrics: of its best checkpoint, by ``<split>/<name>``.
        steps: updates applied.
        wall_s: seconds, over all attempts.
        worker_seconds: seconds times workers.
        error: why it failed or stopped.
    """

    run_id: str
    parameters: dict[str, Any]
    status: str = "waiting"
    metrics: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    wall_s: float = 0.0
    worker_seconds: float = 0.0
    error: str | None = None

    @property
    def ended(self) -> bool:
        """Whether it is never run again."""
        return self.status in ("finished", "pruned", "failed")


@dataclass(frozen=True)
class SweepResult:
    """What a sweep came to.

    Attributes:
        run_id: the sweep.
        root: its root.
        status: ``finished``, or ``stopped`` (resumable).
        metric: the objective.
        mode: ``min`` or ``max``.
        trials: all, in the order they were drawn.
        best: the result of the best trial.
        wall_s: seconds, over all attempts.
    """

    run_id: str
    root: str
    status: str
    metric: str
    mode: str
    trials: list[Trial]
    best: "Result | None"
    wall_s: float

    @property
    def table(self) -> pa.Table:
        """A row a trial: its id, status, metrics, steps, times, and a column for each parameter."""
        keys = list(self.trials[0].parameters) if self.trials else []
        names = sorted({name for trial in self.trials for name in trial.metrics})
        rows = [
            {
                "run_id": trial.run_id,
                "status": trial.status,
                **{name: trial.metrics.get(name) for name in names},
                "steps": trial.steps,
                "wall_s": trial.wall_s,
                "worker_seconds": trial.worker_seconds,
                "error": trial.error,
                **{key: _cell(trial.parameters[key]) for key in keys},
            }
            for trial in self.trials
        ]
        return pa.Table.from_pylist(rows)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as ``result.json`` holds it."""
        return {
            "run_id": self.run_id,
            "root": self.root,
            "status": self.status,
            "objective": {"metric": self.metric, "mode": self.mode},
            "best": None if self.best is None else self.best.run_id,
            "trials": [asdict(trial) for trial in self.trials],
            "wall_s": self.wall_s,
        }


def best_of(trials: list[Trial], metric: str, mode: str) -> Trial | None:
    """The trial with the best value; of equal ones the first. None if no trial has one."""
    measured = [trial for trial in trials if metric in trial.metrics and trial.metrics[metric] == trial.metrics[metric]]
    if not measured:
        return None
    sign = 1.0 if mode == "min" else -1.0
    return min(measured, key=lambda trial: sign * trial.metrics[metric])


def _cell(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str) else str(value)
