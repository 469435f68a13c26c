"""Pictures of runs, as PNG: learning curves, and a sweep at a glance. Drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mltrain.errors import NotFoundError
from mltrain.results import figures
from mltrain.results.band import CHECKPOINT, DRAIN, LOSS, SLOW, STALL, WAIT, Band, band
from mltrain.results.log import read_events, read_metrics
from mltrain.results.table import get, runs
from mltrain.results.trials import objective_of, space_of, trials_of
from mltrain.storage import Store, open_store

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Curves of more steps than this are means of so many intervals, the same for all runs in a picture.
_INTERVALS = 60
_NAMED = 12
# Inches of a band of workers, and how what happened is drawn in it: a marker and a colour.
_BAND = 1.1
_MARKS = {
    LOSS: ("X", "C3"),
    DRAIN: ("v", "C1"),
    SLOW: ("D", "C5"),
    STALL: ("s", "C4"),
    WAIT: ("o", "C0"),
    CHECKPOINT: ("|", "0.35"),
}


def plot(root: str, run_ids: Sequence[str], out: str | Path = ".") -> list[Path]:
    """Draws learning curves into ``<out>/<run-id>-curves.png``, and of a sweep also ``<run-id>-sweep.png``.

    Runs that are drawn together (for a sweep: its trials) share one picture, named after the first.

    Returns:
        The files.

    Raises:
        NotFoundError: a run does not exist, or none has metrics.
        RequestError: a picture cannot be written.
        MissingDependencyError: matplotlib is not installed.
    """
    directory = Path(out)
    files: list[Path] = []
    names: dict[str, str] = {}
    objectives: dict[str, None] = {}
    for run_id in run_ids:
        row = get(root, run_id)
        metric, mode = objective_of(row)
        objectives[metric] = None
        if row["kind"] == "sweep":
            trials = trials_of(runs(root), row)
            files.append(sweep_overview(trials, space_of(row), metric, mode, directory / f"{run_id}-sweep.png"))
            ranked = sorted(trials, key=lambda trial: _rank(trial, metric, mode))
            prefix = f"{run_id}-" if len(run_ids) == 1 else ""
            names |= {trial["run_id"]: trial["run_id"].removeprefix(prefix) for trial in ranked}
        else:
            names[run_id] = run_id
    store = open_store(root)
    histories = {name: read_metrics(store, run_id) for run_id, name in names.items()}
    more = f"-and-{len(run_ids) - 1}-more" if len(run_ids) > 1 else ""
    below = _band_of(store, run_ids[0], histories) if list(histories) == list(run_ids) and not more else None
    file = directory / f"{run_ids[0]}{more}-curves.png"
    return [*files, learning_curves(histories, list(objectives), file, below)]


def learning_curves(
    histories: Mapping[str, pa.Table], objectives: Sequence[str], file: Path, workers: Band | None = None
) -> Path:
    """The objective, and the loss in training and on the objective's split, over steps: a line a run.

    Args:
        histories: by name, as :func:`mltrain.results.read_metrics` answers. The first is drawn on top of the others.
        objectives: metrics that the runs were judged by.
        file: the picture.
        workers: drawn below the curves.

    Raises:
        NotFoundError: no run has metrics.
        MissingDependencyError: matplotlib is not installed.
    """
    losses = ["train/loss", *(f"{metric.partition('/')[0]}/loss" for metric in objectives)]
    recorded = {name for history in histories.values() for name in history.column_names}
    names = [name for name in dict.fromkeys((*objectives, *losses)) if name in recorded]
    if not names:
        raise NotFoundError(f"nothing to draw: {', '.join(histories) or 'no run'} recorded no metrics")
    last = max((max(history["step"].to_pylist(), default=0) for history in histories.values()), default=0)
    figure = figures.figure(len(names), 0.0 if workers is None else _BAND)
    # A panel a row from its curve to its band, so that what happened stands below what it did to the curve.
    rows, ratios = (1, None) if workers is None else (2, (3.4, _BAND))
    grid = figure.subplots(rows, len(names), squeeze=False, sharex="col", height_ratios=ratios)
    axes = grid[0]
    colors = _colors(len(histories))
    for axis, name in zip(axes, names, strict=True):
        limits = []
        for number, (label, history) in reversed(list(enumerate(histories.items()))):
            steps, values = _curve(history, name, -(-last // _INTERVALS))
            marker = None if name.startswith("train/") and len(values) > 1 else "."
            width = 1.2 if number else 2.2
            axis.plot(steps, values, label=label, color=colors[number], linewidth=width, marker=marker)
            if len(values) > 1:
                limits += [min(values), max(values)]
        _limit(axis, limits)
        axis.set(title=name)
    for axis in grid[-1]:
        axis.set(xlabel="step")
    if workers is not None:
        _draw_band(figure, grid, workers)
    if len(histories) > 1:
        handles, labels = axes[0].get_legend_handles_labels()
        entries = list(zip(handles[::-1], labels[::-1], strict=True))[:_NAMED]
        title = f"the first {_NAMED} of {len(histories)}" if len(histories) > _NAMED else None
        columns = 6 if max(map(len, labels)) < 16 else 2
        legend = zip(*entries, strict=True)
        figure.legend(*legend, loc="outside lower center", ncols=columns, fontsize="small", title=title)
    return figures.save(figure, file)


def sweep_overview(
    trials: Sequence[Mapping[str, Any]], space: Mapping[str, Mapping[str, Any]], metric: str, mode: str, file: Path
) -> Path:
    """What trials reached: over each parameter, and one after another with the best so far.

    Args:
        trials: rows of the runs table with their ``parameters``.
        space: how each parameter was drawn, as the config has it.
        metric: the objective's name.
        mode: ``min`` or ``max``.
        file: the picture.

    Raises:
        MissingDependencyError: matplotlib is not installed.
    """
    panels = len(space) + 1
    figure = figures.figure(panels)
    axes = figure.subplots(*figures.grid(panels), squeeze=False, sharey=True).flatten()
    measured = sorted((trial for trial in trials if metric in trial["metrics"]), key=lambda trial: trial["ended"])
    top = min(measured, key=lambda trial: _rank(trial, metric, mode), default=None)
    history = axes[len(space)]
    for axis, (key, way) in zip(axes, space.items(), strict=False):
        if any(how.startswith(("log", "qlog")) for how in way):
            axis.set_xscale("log")
        _points(axis, [_place(trial["parameters"][key]) for trial in measured], measured, metric, top)
        axis.set(xlabel=key)
    _points(history, list(range(1, len(measured) + 1)), measured, metric, top)
    if measured:
        best = np.minimum if mode == "min" else np.maximum
        values = best.accumulate([trial["metrics"][metric] for trial in measured])
        history.step(range(1, len(values) + 1), values, where="post", color="0.4", zorder=1, label="best so far")
        handles, labels = history.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=6, fontsize="small")
    history.set(xlabel="trials, as they ended")
    history.xaxis.get_major_locator().set_params(integer=True)
    for axis in axes[:: figures.grid(panels)[1]]:
        axis.set(ylabel=metric)
    for axis in axes[panels:]:
        axis.remove()
    figure.suptitle(f"{file.stem.removesuffix('-sweep')}: {len(trials)} trials", fontsize="medium")
    return figures.save(figure, file)


def _band_of(store: Store, run_id: str, histories: Mapping[str, pa.Table]) -> Band | None:
    """What to draw below the curves of a single run; None if it had no workers to lose."""
    steps = histories[run_id]["step"].to_pylist()
    events = sorted(read_events(store, run_id), key=lambda event: (event["attempt"], event["time"]))
    made = band(events, max(steps, default=0))
    return made if made.spans else None


def _draw_band(figure: "Figure", grid: Any, workers: Band) -> None:
    """How many workers there were, step by step; below it marks, and lines through the curves where one was lost."""
    most = max(span.workers for span in workers.spans)
    edges = [workers.spans[0].first, *(span.last for span in workers.spans)]
    lost = sorted({mark.step for mark in workers.marks if mark.kind == LOSS})
    for curve, axis in zip(*grid, strict=True):
        axis.stairs([span.workers for span in workers.spans], edges, fill=True, color="C0", alpha=0.35)
        for kind, (marker, color) in _MARKS.items():
            if steps := [mark.step for mark in workers.marks if mark.kind == kind]:
                height = most * (0.12 if kind == CHECKPOINT else 1.35)
                axis.scatter(steps, [height] * len(steps), marker=marker, color=color, s=30, label=kind, clip_on=False)
        for step in lost:
            curve.axvline(step, color="C3", linewidth=0.8, linestyle=":", zorder=0)
        axis.set(ylim=(0, most * 1.7))
        axis.yaxis.get_major_locator().set_params(integer=True)
        axis.set_yticks(range(0, most + 1, max(1, most // 4)))
    grid[1][0].set(ylabel="workers")
    handles, labels = grid[1][0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=len(handles), fontsize="small")


def _points(
    axis: "Axes", places: Sequence[Any], trials: Sequence[Mapping[str, Any]], metric: str, top: Mapping[str, Any] | None
) -> None:
    """A point a trial, of a colour that says how it ended; a ring around the best."""
    for number, status in enumerate(sorted({trial["status"] for trial in trials})):
        chosen = [index for index, trial in enumerate(trials) if trial["status"] == status]
        values = [trials[index]["metrics"][metric] for index in chosen]
        axis.scatter([places[index] for index in chosen], values, color=f"C{number}", label=status, zorder=2)
    for place, trial in zip(places, trials, strict=True):
        if trial is top:
            label = f"best: {trial['run_id'].rsplit('-', 1)[-1]}"
            ring: dict[str, Any] = {"facecolors": "none", "edgecolors": "black", "s": 120, "zorder": 3}
            axis.scatter([place], [trial["metrics"][metric]], label=label, **ring)


def _place(value: Any) -> Any:
    """Where on an axis: numbers where they are, anything else at a place of its own."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def _rank(trial: Mapping[str, Any], metric: str, mode: str) -> float:
    value = trial["metrics"].get(metric, np.nan)
    return float(np.nan_to_num(value if mode == "min" else -value, nan=np.inf))


def _curve(history: pa.Table, name: str, width: int) -> tuple[Any, Any]:
    """Steps and values of a metric, as means over intervals of ``width`` steps."""
    if name not in history.column_names:
        return [], []
    values, steps = history[name].to_numpy(), history["step"].to_numpy()
    taken = np.isfinite(values)
    values, steps = values[taken], steps[taken]
    _, interval = np.unique((steps - 1) // max(1, width), return_inverse=True)
    counts = np.bincount(interval)
    return np.bincount(interval, weights=steps) / counts, np.bincount(interval, weights=values) / counts


def _limit(axis: "Axes", ends: Sequence[float]) -> None:
    """The range of the runs that have a curve: one that has but a point must not flatten them."""
    if ends and min(ends) < max(ends):
        margin = 0.05 * (max(ends) - min(ends))
        axis.set_ylim(min(ends) - margin, max(ends) + margin)


def _colors(count: int) -> list[Any]:
    if count <= 10:
        return [f"C{number}" for number in range(count)]
    from matplotlib import colormaps

    return list(colormaps["viridis"](np.linspace(0.0, 0.9, count)))
