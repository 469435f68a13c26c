"""``mltrain runs``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from mltrain.cli.options import common, config_options, root_of
from mltrain.cli.output import Output, short, table

_root = click.option("--root", metavar="URI", help="Where the runs are: a path or a URI. By default ./out.")
_SHOWN = ("run_id", "kind", "sweep_id", "name", "status", "started", "wall_s", "steps", "workers", "losses_survived")
_LONG = ("events", "trials", "config", "metrics", "tags")


@click.group()
def runs() -> None:
    """Runs, sweeps and their trials, from the runs table."""


@runs.command("list")
@config_options
@_root
@common
def list_(out: Output, config: str | None, overrides: Sequence[str], root: str | None) -> None:
    """Print all runs below a root, a line each."""
    from mltrain import results

    rows = results.runs(root_of(config, overrides, root)).to_pylist(maps_as_pydicts="strict")
    out.result(rows, table(_SHOWN, ([row[name] for name in _SHOWN] for row in rows)))


@runs.command()
@click.argument("run_id")
@config_options
@_root
@common
def show(out: Output, run_id: str, config: str | None, overrides: Sequence[str], root: str | None) -> None:
    """Print one run: its row, its metrics, and what happened to it."""
    from mltrain import results

    row = results.show(root_of(config, overrides, root), run_id)
    parts = [table(["", run_id], ((name, value) for name, value in row.items() if name not in _LONG))]
    if row["metrics"]:
        parts.append(table(["metric", "value"], sorted(row["metrics"].items())))
    if row.get("trials"):
        parts.append(trials_table(row["trials"]))
    parts += [_event(event) for event in row["events"]]
    out.result(row, *parts)


@runs.command()
@click.argument("run_ids", nargs=-1, required=True, metavar="RUN_ID...")
@config_options
@_root
@click.option("--out", "directory", default=".", type=click.Path(path_type=Path), help="Directory for the pictures.")
@common
def plot(
    out: Output,
    run_ids: tuple[str, ...],
    config: str | None,
    overrides: Sequence[str],
    root: str | None,
    directory: Path,
) -> None:
    """Draw learning curves, and sweeps, as PNG."""
    from mltrain import results

    files = results.plot(root_of(config, overrides, root), run_ids, directory)
    out.result([str(file) for file in files], *(str(file) for file in files))


def trials_table(rows: Sequence[Mapping[str, Any]], metric: str | None = None) -> Any:
    """Trials with their metrics; the column ``metric`` first."""
    names = sorted({name for row in rows for name in row["metrics"]}, key=lambda name: (name != metric, name))
    columns = ["run_id", "status", "steps", "wall_s", *names]
    return table(
        columns,
        (
            [row["run_id"], row["status"], row["steps"], row["wall_s"], *(row["metrics"].get(name) for name in names)]
            for row in rows
        ),
    )


def _event(event: Mapping[str, Any]) -> str:
    from datetime import UTC, datetime

    when = datetime.fromtimestamp(float(event["time"]), UTC)
    rest = ", ".join(
        f"{key} {short(value)}"
        for key, value in event.items()
        if key not in ("time", "event", "attempt") and value is not None
    )
    return f"{when:%H:%M:%S}  {event.get('event', '')}{': ' if rest else ''}{rest}"
