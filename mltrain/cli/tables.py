"""Runs, trials, metrics and events as people see them; the same wherever they are shown."""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mltrain.cli.output import Table, short, table
from mltrain.progress import clock

if TYPE_CHECKING:
    from mltrain.tune import SweepResult

# Of an event: what is in the first columns, what is for machines, and what only a search for a cause needs.
_NOT_SHOWN = {
    "time", "event", "attempt", "writer", "digest", "run_id", "driver_epoch", "node", "timings", "pid", "output",
    "parts", "stall_s", "waited_s", "seconds",
}  # fmt: skip
_PROSE = ("metrics", "reason", "error")
# So many lines of a story are shown.
_TOLD = 60
# An internal mark of the log: when an attempt's first object was written.
_OPENED = "log opened"


def trials_table(sweep_id: str, trials: Sequence[Mapping[str, Any]], metric: str, mode: str) -> Table:
    """The trials of a sweep, the best first: how they ended, the objective, and what each tried.

    Args:
        sweep_id: the sweep.
        trials: with ``run_id``, ``status``, ``steps``, ``wall_s``, ``metrics`` and ``parameters`` each.
        metric: the objective.
        mode: ``min`` or ``max``.
    """
    names = short_names(trials[0]["parameters"]) if trials else {}
    loss = f"{metric.partition('/')[0]}/loss"
    measured = [name for name in dict.fromkeys((metric, loss)) if any(name in trial["metrics"] for trial in trials)]
    rows = [
        [
            trial_name(trial["run_id"], sweep_id), trial["status"], trial["steps"], trial["wall_s"],
            *(trial["metrics"].get(name) for name in measured), *(trial["parameters"][key] for key in names),
        ]
        for trial in sorted(trials, key=lambda trial: _rank(trial["metrics"].get(metric), mode))
    ]  # fmt: skip
    heads = ["trial", "status", "steps", "wall s", *measured, *names.values()]
    return table(heads, rows, f"Sweep {sweep_id}, the best first")


def sweep_parts(result: "SweepResult") -> list[str | Table]:
    """What a sweep came to: its trials, and the best of them."""
    trials = [dataclasses.asdict(trial) for trial in result.trials]
    parts: list[str | Table] = [trials_table(result.run_id, trials, result.metric, result.mode)]
    for trial in result.trials:
        if result.best is not None and trial.run_id == result.best.run_id:
            value = trial.metrics.get(result.metric)
            parts.append("\n" + best_line(result.run_id, trial.run_id, result.metric, value, trial.parameters))
    return parts


def best_line(sweep_id: str, run_id: str, metric: str, value: float | None, parameters: Mapping[str, Any]) -> str:
    """The best trial of a sweep, its objective and what it set."""
    said = [
        f"{metric} {short(value)}",
        *(f"{name} {short(parameters[k])}" for k, name in short_names(parameters).items()),
    ]
    return f"best {trial_name(run_id, sweep_id)}: {'  '.join(said)}"


def trial_name(run_id: str, sweep_id: str) -> str:
    """A trial's number in its sweep."""
    return run_id.removeprefix(f"{sweep_id}-")


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """The last part of each dotted key, or as many as tell it from the others."""
    keys = list(keys)
    names = {}
    for key in keys:
        parts = key.split(".")
        tails = (".".join(parts[-count:]) for count in range(1, len(parts) + 1))
        others = [other for other in keys if other != key]
        names[key] = next((t for t in tails if not any(f".{other}".endswith(f".{t}") for other in others)), key)
    return names


def metrics_table(metrics: Mapping[str, float], title: str, first: str = "") -> Table:
    """Metrics by name and split, the objective ``first``."""
    by_name: dict[str, dict[str, float]] = {}
    for key, value in sorted(metrics.items(), key=lambda item: (item[0] != first, item[0])):
        split, _, name = key.partition("/")
        by_name.setdefault(name, {})[split] = value
    known = dict.fromkeys(("train", "validation", "test")) | dict.fromkeys(key.partition("/")[0] for key in metrics)
    splits = [split for split in known if any(split in values for values in by_name.values())]
    rows = [[name, *(values.get(split) for split in splits)] for name, values in by_name.items()]
    return table(["metric", *splits], rows, title)


def spent_table(spent: Mapping[str, Mapping[str, float]]) -> Table:
    """What became of the seconds of a run's nodes, a row a market, and what share of them all each use had."""
    uses = list(next(iter(spent.values())))
    sums = {use: sum(found[use] for found in spent.values()) for use in uses}
    whole = sum(sums.values()) or 1.0
    rows = [[market, *(f"{found[use]:.1f}" for use in uses)] for market, found in sorted(spent.items())]
    rows.append(["share", *(f"{sums[use] / whole:.1%}" for use in uses)])
    return table(["node seconds", *(use.replace("_", "-") for use in uses)], rows, "What its nodes' time went into")


def checkpoints_table(found: Sequence[Mapping[str, Any]], best: str | None, now: datetime) -> Table:
    """What is stored of a run's checkpoints, the newest last.

    Args:
        found: as `mltrain.train.checkpoints.inventory` answers.
        best: URI of the best one.
        now: ages are counted from.
    """
    rows = []
    for each in found:
        age = "" if each["created"] is None else _age((now - datetime.fromisoformat(each["created"])).total_seconds())
        is_best = (best or "").endswith(f"/step-{each['step']:09d}")
        rows.append([each["step"], _size(each["size_bytes"]), age, f"{each['state']}{', the best' if is_best else ''}"])
    return table(["step", "size", "age", "state"], rows, "Its checkpoints")


def _size(size_bytes: int) -> str:
    size, units = float(size_bytes), ["B", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.3g} {units[0]}"


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(0.0, seconds):.0f} s"


def story_table(story: Sequence[Mapping[str, Any]]) -> Table:
    """What happened to a training, a sentence a row; of a long story the beginning and the end."""
    rows = [[clock(chapter["seconds"]), chapter["text"]] for chapter in story]
    if (left_out := len(rows) - _TOLD) > 0:
        rows[1 : 1 + left_out] = [["…", f"{left_out} lines are left out here; --output json has them"]]
    return table(["after", "what happened"], rows)


def events_table(events: Sequence[Mapping[str, Any]], metric: str) -> Table:
    """What happened, a line an event; of what was measured, the objective and the loss."""
    rows = []
    for event in events:
        if event["event"] == _OPENED:
            continue
        when = datetime.fromtimestamp(float(event["time"]), UTC)
        told = {key: value for key, value in event.items() if key not in _NOT_SHOWN and value not in (None, "", [])}
        fields = (value if key in _PROSE else f"{key} {value}" for key, value in _said(told, metric))
        rows.append([f"{when:%m-%d %H:%M:%S}", event["event"], "  ".join(fields)])
    return table(["time (UTC)", "event", "what"], rows)


def _said(fields: Mapping[str, Any], metric: str) -> Iterator[tuple[str, str]]:
    for key, value in fields.items():
        if key == "metrics":
            loss = f"{metric.partition('/')[0]}/loss"
            yield key, _pairs({name: value[name] for name in dict.fromkeys((metric, loss)) if name in value})
        elif key == "dataset":
            yield key, str(value)[:12]
        elif key == "trial" or (key == "best" and isinstance(value, str)):
            yield key, str(value).rsplit("-", 1)[-1]
        elif isinstance(value, Mapping):
            yield key, _pairs(value)
        elif isinstance(value, list):
            yield key, ", ".join(short(item) for item in value)
        else:
            yield key, short(value).partition("\n")[0]


def _pairs(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {short(value)}" for name, value in values.items())


def _rank(value: float | None, mode: str) -> float:
    if value is None or math.isnan(value):
        return math.inf
    return value if mode == "min" else -value
