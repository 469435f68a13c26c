"""Pictures of runs, as PNG: learning curves, and a sweep at a glance. Drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from ruamel.yaml import YAML

from mltrain.errors import MissingDependencyError, NotFoundError
from mltrain.results.log import read_metrics
from mltrain.results.table import get, runs
from mltrain.storage import open_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (8.0, 4.5)
_DPI = 144
_SMOOTH_FROM = 200


def plot(root: str, run_ids: Sequence[str], out: str | Path = ".") -> list[Path]:
    """Draws runs and sweeps into ``<out>/<name>.png`` files.

    Learning curves of all runs (of all trials, for a sweep) share one picture; every sweep gets an overview too.

    Returns:
        The files.

    Raises:
        NotFoundError: a run does not exist, or none has metrics.
        MissingDependencyError: matplotlib is not installed.
    """
    directory = Path(out)
    directory.mkdir(parents=True, exist_ok=True)
    files: list[Path] = []
    curves: dict[str, dict[str, Any]] = {}
    for run_id in run_ids:
        row = get(root, run_id)
        if row["kind"] == "sweep":
            trials = sweep_trials(root, run_id)
            files.append(sweep_overview(trials, objective_of(row), directory / f"{run_id}-sweep.png"))
            curves |= {trial["run_id"]: trial for trial in trials}
        else:
            curves[run_id] = row
    store = open_store(root)
    histories = {run_id: read_metrics(store, run_id) for run_id in curves}
    stem = run_ids[0] if len(run_ids) == 1 else "runs"
    return [*files, *learning_curves(histories, directory, stem)]


def sweep_trials(root: str, sweep_id: str) -> list[dict[str, Any]]:
    """The rows of a sweep's trials, in the order they started."""
    return [row for row in runs(root).to_pylist(maps_as_pydicts="strict") if row["sweep_id"] == sweep_id]


def objective_of(row: Mapping[str, Any]) -> str:
    """The metric that a sweep compared its trials by."""
    return str(YAML(typ="safe").load(row["config"])["objective"]["metric"])


def learning_curves(histories: Mapping[str, pa.Table], directory: Path, stem: str) -> list[Path]:
    """One picture a metric with a line a run, over steps.

    Args:
        histories: by run id, as :func:`mltrain.results.read_metrics` answers.
        directory: where the pictures go.
        stem: what their names start with.

    Raises:
        NotFoundError: no run has metrics.
        MissingDependencyError: matplotlib is not installed.
    """
    names = sorted({name for history in histories.values() for name in history.column_names if "/" in name})
    if not names:
        raise NotFoundError(f"nothing to draw: {', '.join(histories) or 'no run'} recorded no metrics")
    figure = _figure(_SIZE[0], 3.2 * ((len(names) + 1) // 2))
    axes = figure.subplots((len(names) + 1) // 2, min(2, len(names)), squeeze=False).flatten()
    for axis, name in zip(axes, names, strict=False):
        for run_id, history in histories.items():
            if name in history.column_names:
                _line(axis, history, name, run_id)
        axis.set(title=name, xlabel="step")
    for axis in axes[len(names) :]:
        axis.remove()
    if len(histories) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="x-small")
    return [_save(figure, directory / f"{stem}-curves.png")]


def sweep_overview(trials: Sequence[Mapping[str, Any]], metric: str, file: Path) -> Path:
    """What every trial reached and what it took: the metric over worker-seconds, and the metric by trial.

    Args:
        trials: rows of the runs table.
        metric: the objective's name.
        file: the picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = _figure(*_SIZE)
    cost, rank = figure.subplots(1, 2, width_ratios=(2, 1), sharey=True)
    for status in sorted({trial["status"] for trial in trials}):
        chosen = [trial for trial in trials if trial["status"] == status and metric in trial["metrics"]]
        values = [trial["metrics"][metric] for trial in chosen]
        cost.scatter([trial["worker_seconds"] for trial in chosen], values, label=f"{status} ({len(chosen)})")
        for trial, value in zip(chosen, values, strict=True):
            name = trial["run_id"].rsplit("-", 1)[-1]
            cost.annotate(
                name, (trial["worker_seconds"], value), fontsize="x-small", xytext=(4, 2), textcoords="offset points"
            )
    reached = sorted(trial["metrics"][metric] for trial in trials if metric in trial["metrics"])
    rank.plot(np.arange(1, len(reached) + 1) / max(len(reached), 1), reached, drawstyle="steps-post")
    cost.set(title=f"{len(trials)} trials", xlabel="worker-seconds", ylabel=metric)
    rank.set(title="share of trials at or below", xlabel="share")
    if reached:
        cost.legend(fontsize="small")
    return _save(figure, file)


def _line(axis: "Axes", history: pa.Table, name: str, label: str) -> None:
    values, steps = history[name].to_numpy(), history["step"].to_numpy()
    taken = np.isfinite(values)
    values, steps = values[taken], steps[taken]
    if len(values) >= _SMOOTH_FROM:
        width = len(values) // (_SMOOTH_FROM // 4)
        values, steps = (_means(column, width) for column in (values, steps))
    axis.plot(steps, values, label=label, linewidth=1.2, marker="." if len(values) < 30 else None)


def _means(values: Any, width: int) -> Any:
    whole = len(values) // width * width
    return np.asarray(values[:whole], dtype=float).reshape(-1, width).mean(axis=1)


def _figure(width: float, height: float) -> "Figure":
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError(f"plots need matplotlib ({error}): pip install 'mltrain[notebook]'") from error
    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: "Figure", file: Path) -> Path:
    # A Figure made without pyplot draws with Agg and belongs to no window.
    figure.savefig(file, dpi=_DPI, format="png")
    return file
