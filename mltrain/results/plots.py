"""Pictures of runs, as PNG: learning curves, and a sweep at a glance. Drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mltrain.errors import MissingDependencyError, NotFoundError
from mltrain.results.log import read_metrics
from mltrain.results.table import get, runs
from mltrain.results.trials import objective_of, trials_of
from mltrain.storage import open_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIZE = (8.0, 4.5)
_DPI = 144
_SMOOTH_FROM = 200
_LOSS = "train/loss"


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
            trials = trials_of(runs(root), row)
            files.append(sweep_overview(trials, *objective_of(row), directory / f"{run_id}-sweep.png"))
            curves |= {trial["run_id"]: trial for trial in trials}
        else:
            curves[run_id] = row
    store = open_store(root)
    histories = {run_id: read_metrics(store, run_id) for run_id in curves}
    stem = run_ids[0] if len(run_ids) == 1 else "runs"
    return [*files, *learning_curves(histories, directory, stem)]


def learning_curves(histories: Mapping[str, pa.Table], directory: Path, stem: str) -> list[Path]:
    """The training loss and every metric of the other splits over steps, a line a run.

    Args:
        histories: by run id, as :func:`mltrain.results.read_metrics` answers.
        directory: where the pictures go.
        stem: what their names start with.

    Raises:
        NotFoundError: no run has metrics.
        MissingDependencyError: matplotlib is not installed.
    """
    recorded = {name for history in histories.values() for name in history.column_names}
    names = sorted(name for name in recorded if "/" in name and (name == _LOSS or not name.startswith("train/")))
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


def sweep_overview(trials: Sequence[Mapping[str, Any]], metric: str, mode: str, file: Path) -> Path:
    """What every trial reached for what it took, and how the best value came about.

    Args:
        trials: rows of the runs table.
        metric: the objective's name.
        mode: ``min`` or ``max``.
        file: the picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    figure = _figure(*_SIZE)
    reached, history = figure.subplots(1, 2, width_ratios=(3, 2), sharey=True)
    measured = [trial for trial in trials if metric in trial["metrics"]]
    # Trials without workers of their own hold none.
    cost = "worker_seconds" if any(trial["worker_seconds"] for trial in trials) else "wall_s"
    for status in sorted({trial["status"] for trial in measured}):
        chosen = [trial for trial in measured if trial["status"] == status]
        values = [trial["metrics"][metric] for trial in chosen]
        reached.scatter([trial[cost] for trial in chosen], values, label=f"{status} ({len(chosen)})")
        for trial, value in zip(chosen, values, strict=True):
            name = trial["run_id"].rsplit("-", 1)[-1]
            reached.annotate(name, (trial[cost], value), (4, 2), textcoords="offset points", fontsize="x-small")
    best = np.minimum if mode == "min" else np.maximum
    in_order = [trial["metrics"][metric] for trial in sorted(measured, key=lambda trial: trial["ended"])]
    if in_order:
        history.step(range(1, len(in_order) + 1), best.accumulate(in_order), where="post", marker=".")
        reached.legend(fontsize="small")
    reached.set(title=f"{len(trials)} trials", xlabel=cost.replace("_", " "), ylabel=metric)
    history.set(title="best so far", xlabel="trials that have ended")
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
