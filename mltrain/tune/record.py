"""A sweep's own record in storage, which decides what is left to do: Tune is told only that."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from mltrain import config as configs
from mltrain import results
from mltrain.config import Experiment
from mltrain.errors import DamagedError, NotFoundError
from mltrain.results import read_events, read_result
from mltrain.storage import Store
from mltrain.storage.parsing import parse
from mltrain.train.lease import LEASE
from mltrain.tune.result import Trial
from mltrain.tune.space import Point, trial_config

TRIALS = "trials.json"


def keep_points(sweep: Store, points: Sequence[Point]) -> list[Point]:
    """Writes the trials that were drawn, once; a sweep that is resumed keeps those it began with.

    Args:
        sweep: store of ``sweeps/<run-id>/``.
        points: what this process would draw.

    Raises:
        DamagedError: the record cannot be read.
    """
    content = json.dumps([asdict(point) for point in points], indent=1).encode()
    if sweep.put_if_absent(TRIALS, content):
        return list(points)
    try:
        return [Point(**point) for point in parse(sweep.get(TRIALS))]
    except (ValueError, TypeError) as error:
        raise DamagedError(f"{sweep.join(TRIALS)} is not a list of trials: {error}") from error


def trial_of(root: Store, point: Point) -> Trial:
    """How far a trial has come, by what is stored of its run."""
    try:
        result = read_result(root, point.run_id)
    except NotFoundError:
        return Trial(point.run_id, point.parameters)
    return Trial(
        run_id=point.run_id,
        parameters=point.parameters,
        status=result["status"],
        metrics={name: float(value) for name, value in result["metrics"].items()},
        steps=result.get("step", 0),
        wall_s=result.get("wall_s", 0.0),
        worker_seconds=result.get("worker_seconds", 0.0),
        error=result.get("error") or (result.get("reason") if result["status"] == "stopped" else None),
    )


def failed(root: Store, sweep: Experiment, point: Point, sweep_id: str, error: str) -> None:
    """Records the failure of a trial that could not do so itself, in its ``result.json`` and in the runs table."""
    config, now = trial_config(sweep, point.parameters), datetime.now(UTC)
    with results.RunLog(root, point.run_id) as log:
        log.event("run failed", error=error)
        log.result({"run_id": point.run_id, "root": root.uri, "status": "failed", "metrics": {}, "error": error})
    row = results.RunRow(
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
    results.append(root.uri, row)


def past_reports(root: Store, points: Sequence[Point], metric: str) -> list[tuple[str, int, float]]:
    """What trials reported in earlier attempts, oldest first: run id, step, value of ``metric``."""
    reports: list[tuple[float, str, int, float]] = []
    for point in points:
        if not root.exists(f"runs/{point.run_id}/{LEASE}"):
            continue
        for event in read_events(root, point.run_id):
            value = event.get("metrics", {}).get(metric) if event["event"] == "evaluation" else None
            if value is not None:
                reports.append((event["time"], point.run_id, int(event["step"]), float(value)))
    return [(run_id, step, value) for _, run_id, step, value in sorted(reports)]


def summary(trials: Sequence[Trial]) -> dict[str, Any]:
    """How many trials ended how."""
    counts: dict[str, int] = {}
    for trial in trials:
        counts[trial.status] = counts.get(trial.status, 0) + 1
    return counts
