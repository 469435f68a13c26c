"""``mltrain dataset``."""

import dataclasses
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mltrain.cli.options import common, config_options, example, load, needed, root_of
from mltrain.cli.output import Output, table
from mltrain.errors import RequestError

if TYPE_CHECKING:
    from mltrain.data import Dataset
    from mltrain.features import BuildReport

_DAY_S = 86400

_reference = click.argument("reference", required=False, metavar="[NAME|NAME@DIGEST|DIGEST|URI]")
_root = click.option(
    "--root",
    metavar="URI",
    help="Where the dataset lies, if it is named without a URI and a file.",
    show_default="./out",
)


@click.group()
def dataset() -> None:
    """Datasets: made from Delta tables, read by trainings."""


@dataset.command(epilog=example("mltrain dataset build -c adult.yaml -s dataset.version=42"))
@config_options
@common
def build(out: Output, config: str | None, overrides: Sequence[str]) -> None:
    """Make a version of a Delta table into a dataset, with Spark."""
    from mltrain import config as configs

    file = configs.load_dataset(needed(config), overrides)
    from mltrain import features

    out.progress("starting Spark")
    report = features.build(file, progress=out.progress)
    done = f"is unchanged (looked for {report.seconds:.1f} s)" if report.reused else f"built in {report.seconds:.1f} s"
    rows = ", ".join(f"{split} {count:,}" for split, count in report.rows.items())
    out.result(
        report,
        f"dataset {report.name} {done}: {rows} rows, {report.shards} shards",
        f"digest  {report.digest}",
        f"at      {report.uri}",
        *_growth(report),
    )


def _growth(report: "BuildReport") -> list[str]:
    """What a build with a base did, and what it advises."""
    lines = []
    if report.changes is not None:
        counts = ", ".join(f"{count:,} {what}" for what, count in report.changes.items())
        lines.append(f"grown   from {report.base}: rows {counts}")
    return [*lines, f"advice  {report.advice}"] if report.advice else lines


@dataset.command(epilog=example("mltrain dataset show adult --root s3://ml/prod"))
@_reference
@config_options
@_root
@click.option(
    "--plot",
    "picture",
    metavar="FILE.png",
    type=click.Path(path_type=Path),
    help="Also draw rows per shard, label balance and columns into this file.",
)
@common
def show(
    out: Output,
    reference: str | None,
    config: str | None,
    overrides: Sequence[str],
    root: str | None,
    picture: Path | None,
) -> None:
    """Print schema, splits, provenance and statistics. It reads the manifest only."""
    opened = _open(reference, config, overrides, root)
    summary = opened.summary()
    if picture is None:
        out.result(summary, *_shown(summary))
        return
    from mltrain.data.plots import plot

    file = plot(opened, picture)
    out.result({**summary, "plot": str(file)}, *_shown(summary), f"drawn   {file}")


@dataset.command(epilog=example("mltrain dataset verify s3://ml/prod/datasets/adult"))
@_reference
@config_options
@_root
@common
def verify(out: Output, reference: str | None, config: str | None, overrides: Sequence[str], root: str | None) -> int:
    """Read and hash everything again, and name what is damaged: exit 1 if something is."""
    from mltrain.data.source import REPAIR

    report = _open(reference, config, overrides, root).verify(progress=out.progress)
    lines = [f"{path}: {fault}" for path, fault in report.damaged.items()]
    verdict = f"{len(lines)} damaged" if lines else "all well"
    seen = f"{report.shards} shards, {report.rows:,} rows, {report.size_bytes:,} bytes"
    repair = [] if report.ok else [f"{REPAIR}."]
    out.result({**vars(report), "ok": report.ok}, *lines, f"dataset {report.digest}: {verdict} ({seen})", *repair)
    return 0 if report.ok else 1


@dataset.command(epilog=example("mltrain dataset diff adult-2025 adult-2026 --root s3://ml/prod"))
@click.argument("before", metavar="BEFORE")
@click.argument("after", metavar="AFTER")
@config_options
@_root
@common
def diff(out: Output, before: str, after: str, config: str | None, overrides: Sequence[str], root: str | None) -> None:
    """Say what changed from one dataset to another: NAME, NAME@DIGEST, DIGEST or URI each."""
    from mltrain.data.diff import diff as compare

    first, second = (_open(one, config, overrides, root) for one in (before, after))
    found = compare(first, second, progress=out.progress)
    columns = [
        (what, ", ".join(names))
        for what, names in (
            ("columns added", found.columns_added),
            ("columns removed", found.columns_removed),
            ("columns changed", found.columns_changed),
            ("fitted anew", found.refitted),
        )
        if names
    ]
    splits = [
        (name, *(f"{n:,}" for n in (s.before, s.after, s.added, s.removed, s.changed)), s.shared_shards, s.read_shards)
        for name, s in found.splits.items()
    ]
    heads = ["split", "rows before", "after", "added", "removed", "changed", "shards shared", "read"]
    out.result(
        {**dataclasses.asdict(found), "equal": found.equal, "matched_by": found.matched_by},
        *(f"{what}: {names}" for what, names in columns),
        table(heads, splits),
        f"rows are matched by {found.matched_by}",
        *(["the same rows and columns"] if found.equal else []),
    )


@dataset.command(epilog=example("mltrain dataset gc --root s3://ml/prod --dry-run"))
@config_options
@_root
@click.option(
    "--grace",
    "grace_hours",
    type=click.FloatRange(min=0),
    default=24.0,
    show_default=True,
    metavar="HOURS",
    help="What was written less than this ago stays.",
)
@click.option("--unnamed", is_flag=True, help="Also datasets that no name points at and no run or sweep mentions.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@common
def gc(
    out: Output,
    config: str | None,
    overrides: Sequence[str],
    root: str | None,
    grace_hours: float,
    unnamed: bool,
    dry_run: bool,
) -> None:
    """Remove shards that no dataset reaches. Nothing is removed while a build is under way."""
    from mltrain.data.garbage import collect
    from mltrain.storage import open_store

    store = open_store(root_of(config, overrides, root))
    found = collect(store, grace_s=3600 * grace_hours, unnamed=unnamed, dry_run=dry_run, progress=out.progress)
    verb = "would remove" if dry_run else "removed"
    out.result(
        found,
        *(found.removed if dry_run else ()),
        f"{verb} {len(found.removed)} objects, {found.removed_bytes:,} bytes; {found.kept} are in use, {found.young} "
        "within their grace period",
    )


def _open(reference: str | None, config: str | None, overrides: Sequence[str], root: str | None) -> "Dataset":
    """The dataset that was named, or that the file makes or uses."""
    from mltrain.data import Dataset, NodeCache

    options: dict[str, Any] = {}
    if reference is None:
        if config is None:
            raise RequestError("no dataset: name one (NAME, NAME@DIGEST or URI), or a file with -c FILE")
        if root is not None:
            raise RequestError("--root and -c both name a root; give one of them")
        loaded = load(config, overrides)
        cache = NodeCache(loaded.cache.directory, loaded.cache.budget_bytes)
        options = {"cache": cache, "deadline_s": loaded.storage.deadline_s}
        reference = loaded.dataset if isinstance(loaded.dataset, str) else loaded.name
        root = loaded.root
    elif "/" not in reference:
        root = root_of(config, overrides, root)
    return Dataset.open(reference, root=root, **options)


def _shown(summary: dict[str, Any]) -> list[Any]:
    lines: list[Any] = [
        f"dataset {summary['name'] or ''}".rstrip(),
        f"digest  {summary['digest']}",
        f"at      {summary['uri']}",
    ]
    source = summary["provenance"].get("table", {})
    if source:
        lines.append(f"from    {source.get('uri')} version {source.get('version')}")
    if base := summary["provenance"].get("base"):
        lines.append(f"grown   from {base}")
    splits = [
        (name, f"{split['rows']:,}", split["shards"], f"{split['size_bytes']:,}", split["lanes"], split["window"])
        for name, split in summary["splits"].items()
    ]
    lines.append(table(["split", "rows", "shards", "bytes", "lanes", "window"], splits))
    first = next(iter(summary["splits"]))
    stored = summary["splits"][first]["statistics"]
    columns = summary["schema"]["columns"]
    described = ("name", "role", "kind", "dtype", "cardinality")
    lines.append(
        table(
            ["column", *described[1:], f"unseen or missing in {first}"],
            ([*(column.get(key) for key in described), _unseen(column, stored)] for column in columns),
        )
    )
    raw = summary["provenance"].get("statistics", {}).get("moments", {})
    types = source.get("columns", {})
    ordered = [column["name"] for column in columns if column["name"] in raw]
    if ordered:
        rows = [_moments(name, raw[name], types.get(name, "")) for name in ordered]
        heads = ["column", "count", "missing", "mean", "deviation", "min", "max"]
        lines.append(table(heads, rows, "The table's values, over the training split"))
    others = [
        [name, seen["count"], seen["mean"], seen["minimum"], seen["maximum"]]
        for name, seen in ((column["name"], stored.get(column["name"])) for column in columns if _number(column))
        if seen is not None and name not in raw
    ]
    if others:
        lines.append(table(["column", "count", "mean", "min", "max"], others, f"Values as stored, of {first}"))
    return lines


def _number(column: dict[str, Any]) -> bool:
    return column.get("cardinality") is None


def _unseen(column: dict[str, Any], stored: dict[str, Any]) -> str | None:
    """How many ids of a feature are 0; of a feature of lists, also how many rows have none."""
    seen = stored.get(column["name"])
    if seen is None or column["role"] != "feature" or _number(column):
        return None
    if column["kind"] != "id_list":
        return f"{seen['zeros']:,} rows"
    empty = "" if seen.get("empty") is None else f", {seen['empty']:,} rows without a list or an id"
    return f"{seen['zeros']:,} of {seen['count']:,} ids{empty}"


def _moments(name: str, found: dict[str, Any], kind: str) -> list[Any]:
    """A row of the table's own numbers: dates and timestamps as such, and their deviation in days."""
    deviation, values = found["deviation"], [found[key] for key in ("mean", "low", "high")]
    if found["count"] and kind.startswith(("date", "timestamp")):
        unit_s = 1 if kind.startswith("timestamp") else _DAY_S
        deviation = f"{deviation * unit_s / _DAY_S:.4g} days"
        values = [_moment(value, unit_s) for value in values]
    return [name, found["count"], found["missing"], values[0], deviation, *values[1:]]


def _moment(value: float, unit_s: int) -> str:
    """A number of seconds or days since 1970 as a date; with the time, where seconds were counted."""
    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=round(value * unit_s))
    return moment.date().isoformat() if unit_s == _DAY_S else f"{moment:%Y-%m-%d %H:%M:%S}"
