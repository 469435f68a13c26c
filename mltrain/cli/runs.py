"""``mltrain runs``."""

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from mltrain.cli.options import common, config_options, example, root_of
from mltrain.cli.output import Output, Table, short, table
from mltrain.cli.tables import (
    best_line,
    checkpoints_table,
    events_table,
    metrics_table,
    spent_table,
    story_table,
    trials_table,
)

_root = click.option("--root", metavar="URI", help="Where the runs are: a path or a URI.", show_default="./out")
_WIDE = (
    "kind", "name", "epochs", "workers", "losses_survived", "downtime_s", "worker_seconds", "gpu_seconds", "cost",
    "started", "dataset_name", "table_version", "error",
)  # fmt: skip


@click.group()
def runs() -> None:
    """Runs, sweeps and their trials, from the runs table.

    A run is in it when it has stopped or ended.
    """


@runs.command("list", epilog=example("mltrain runs list --root s3://ml/prod"))
@config_options
@_root
@click.option("--wide", is_flag=True, help="Show more columns, in a block of their own where they do not fit.")
@common
def list_(out: Output, config: str | None, overrides: Sequence[str], root: str | None, wide: bool) -> None:
    """Print all runs below a root, a line each; trials below their sweep, by their number."""
    from mltrain import results

    rows = results.runs(root_of(config, overrides, root)).to_pylist(maps_as_pydicts="strict")
    heads = ["run", "status", "steps", "wall s", "objective", "value", "ended (UTC)"]
    out.result(rows, table([*heads, *(_WIDE if wide else ())], _lines(rows, wide)))


@runs.command(epilog=example("mltrain runs show adult-20261123t115242-f95927 --root s3://ml/prod"))
@click.argument("run_id")
@config_options
@_root
@common
def show(out: Output, run_id: str, config: str | None, overrides: Sequence[str], root: str | None) -> None:
    """Print one run: what it is, what it set, its metrics, and what happened to it; of a sweep, its trials.

    Digests and the whole config are in what --output json prints.
    """
    from mltrain import results
    from mltrain.storage import open_store
    from mltrain.train.checkpoints import inventory

    where = root_of(config, overrides, root)
    row = results.show(where, run_id)
    if row["kind"] != "sweep":
        row["checkpoints"] = inventory(open_store(where).sub(results.run_path(run_id)))
    metric, mode = results.objective_of(row)
    parts: list[str | Table] = [table(["", run_id], _facts(row))]
    if row["kind"] == "sweep":
        parts += _sweep(row, metric, mode)
    elif row.get("parameters"):
        parts.append(table(["parameter", "value"], row["parameters"].items(), f"What it tried in {row['sweep_id']}"))
    else:
        parts.append(table(["setting", "value"], _settings(row), "What its config set"))
    if row["metrics"]:
        parts.append(metrics_table(row["metrics"], _metrics_title(row), metric))
    if row.get("checkpoints"):
        parts.append(checkpoints_table(row["checkpoints"], row["checkpoint"], datetime.now(UTC)))
    if row.get("node_seconds") and row["workers"]:
        parts.append(spent_table(row["node_seconds"]))
    told = events_table(row["events"], metric) if row["kind"] == "sweep" else story_table(row["story"])
    out.result(row, *parts, told)


@runs.command(epilog=example("mltrain runs plot adult-20261123t115242-f95927 --root s3://ml/prod --out plots/"))
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID...")
@config_options
@_root
@click.option(
    "--out",
    "directory",
    default=".",
    show_default="the working directory",
    type=click.Path(path_type=Path),
    help="Directory for the pictures.",
)
@common
def plot(
    out: Output,
    run_ids: tuple[str, ...],
    config: str | None,
    overrides: Sequence[str],
    root: str | None,
    directory: Path,
) -> None:
    """Draw learning curves as RUN_ID-curves.png, and sweeps as RUN_ID-sweep.png too; print where they are.

    Runs that are named together share one picture, named after the first.
    """
    from mltrain import results

    files = results.plot(root_of(config, overrides, root), run_ids, directory)
    out.result([str(file) for file in files], *(str(file) for file in files))


def _lines(rows: Sequence[Mapping[str, Any]], wide: bool) -> Iterator[list[Any]]:
    """Runs and sweeps as they started, each sweep with its trials below it."""
    from mltrain.results import objective_of

    trials: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["sweep_id"] is not None:
            trials.setdefault(row["sweep_id"], []).append(row)
    heads = [row for row in rows if row["sweep_id"] is None]
    known = {row["run_id"] for row in heads}
    for head in heads:
        yield _line(head, head["run_id"], objective_of(head)[0], wide)
        for trial in sorted(trials.get(head["run_id"], ()), key=lambda trial: str(trial["run_id"])):
            name = "…" + trial["run_id"].removeprefix(head["run_id"])
            yield _line(trial, f"  {name}", objective_of(head)[0], wide)
    for sweep_id, orphans in trials.items():
        # A sweep has a row when it has stopped or ended; this one runs.
        if sweep_id not in known:
            yield from (_line(row, row["run_id"], objective_of(row)[0], wide) for row in orphans)


def _line(row: Mapping[str, Any], name: str, metric: str, wide: bool) -> list[Any]:
    first = [name, row["status"], row["steps"], row["wall_s"], metric, row["metrics"].get(metric)]
    first.append(f"{row['ended']:%m-%d %H:%M}")
    return [*first, *(row[column] for column in _WIDE)] if wide else first


def _facts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What people ask of a run; a fact that says nothing is left out."""
    epochs = "" if row["kind"] == "sweep" else f" ({row['epochs']:.3g} epochs)"
    said = {
        "kind": f"trial of {row['sweep_id']}" if row["sweep_id"] else row["kind"],
        "name": row["name"],
        "status": row["status"],
        "error": row["error"],
        "started": f"{row['started']:%Y-%m-%d %H:%M:%S} UTC",
        "ended": f"{row['ended']:%Y-%m-%d %H:%M:%S} UTC",
        "wall": f"{row['wall_s']:.1f} s",
        "steps": f"{row['steps']}{epochs}",
        "workers": f"{row['workers']} ({row['worker_seconds']:.0f} worker seconds)" if row["workers"] else "0",
        "losses": f"{row['losses_survived']} survived, {row['downtime_s']:.1f} s without a step"
        if row["losses_survived"]
        else None,
        "GPU seconds": short(row["gpu_seconds"] or None),
        "cost": short(row["cost"]),
        "dataset": f"{row['dataset_name']}@{row['dataset_digest'][:12]}" if row["dataset_digest"] else None,
        "table": f"{row['table_uri']} version {row['table_version']}" if row["table_uri"] else None,
        "checkpoint": row["checkpoint"],
        "tags": ", ".join(f"{key}={value}" for key, value in row["tags"].items()),
    }
    return ((name, str(value)) for name, value in said.items() if value)


def _sweep(row: Mapping[str, Any], metric: str, mode: str) -> Iterator[str | Table]:
    from mltrain.results import space_of

    space = {key: " ".join(f"{how} {_ends(ends)}" for how, ends in way.items()) for key, way in space_of(row).items()}
    yield table(["parameter", "drawn"], space.items(), f"Space; {mode} of {metric} is best")
    yield trials_table(row["run_id"], row["trials"], metric, mode)
    best = next((trial for trial in row["trials"] if f"/{trial['run_id']}/" in (row["checkpoint"] or "")), None)
    if best is not None:
        yield "\n" + best_line(row["run_id"], best["run_id"], metric, best["metrics"].get(metric), best["parameters"])


def _ends(values: Any) -> str:
    return ", ".join(short(value) for value in values)


def _settings(row: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What differs from the defaults, by dotted key; all of it where another version of the library wrote it."""
    from mltrain import config as configs
    from mltrain.errors import ConfigError
    from mltrain.results import config_of

    data = config_of(row)
    try:
        data = configs.parse(data).model_dump(mode="json", exclude_defaults=True)
    except ConfigError:
        pass
    return _flat({key: value for key, value in data.items() if key not in ("name", "root", "tags")})


def _flat(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _metrics_title(row: Mapping[str, Any]) -> str:
    _, found, step = (row["checkpoint"] or "").rpartition("/step-")
    at = f" (step {int(step)})" if found else ""
    of = "Best trial's best" if row["kind"] == "sweep" else "Best"
    return f"{of} checkpoint{at}"
