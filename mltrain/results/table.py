"""The runs table: a Delta table below the root, one row a run or trial, read by Spark, DuckDB and pandas as it is.

Writers only append, with conditional puts. Under contention delta-rs retries up to a number of times that its default
sets too low for a sweep; here it goes on until storage itself fails. An append that storage took but did not answer
must not become two rows: every row is a Delta transaction of its own (``row_id``), which the log accepts once.
"""

import dataclasses
import difflib
import json
import os
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from mltrain.errors import NotFoundError, RequestError, StorageAccessError, StorageError
from mltrain.results.log import checked_run_id
from mltrain.storage import delta_options, normalise

TABLE = "runs_table"
_COMMIT_RETRIES = 1000
# Row ids stay in the log only as long as a retry may still come.
_PROPERTIES = {"delta.setTransactionRetentionDuration": "interval 30 days"}
_ORNAMENTS = re.compile(r"\x1b\[[0-9;]*m|[\u2500-\u257f\u21b3]")
_NO_ACCESS = re.compile(
    r"error sending request|40[13] (Unauthorized|Forbidden)|AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|"
    r"NoSuchBucket",
    re.IGNORECASE,
)
_UNSAFE = "AWS_S3_ALLOW_UNSAFE_RENAME"

_TIME = pa.timestamp("us", tz="UTC")
_TYPES: dict[str, pa.DataType] = {
    "str": pa.string(),
    "str | None": pa.string(),
    "int": pa.int64(),
    "int | None": pa.int64(),
    "float": pa.float64(),
    "float | None": pa.float64(),
    "datetime": _TIME,
    "Mapping[str, float]": pa.map_(pa.string(), pa.float64()),
    "Mapping[str, str]": pa.map_(pa.string(), pa.string()),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunRow:
    """One run as the runs table keeps it. A run that ends again after a resume appends a row; readers take the last.

    Attributes:
        run_id: the run; its record is ``runs/<run-id>/`` (``sweeps/<run-id>/`` for a sweep).
        name: the experiment's name.
        kind: ``train``, ``trial`` or ``sweep``.
        status: ``finished``, ``stopped``, ``failed``, or for a trial that its scheduler ended early ``pruned``.
        started: UTC.
        ended: UTC.
        config: the resolved config as YAML.
        config_digest: digest of what in it determines the result.
        sweep_id: the sweep of a trial.
        dataset_name: name under which the dataset was opened.
        dataset_digest: the dataset.
        dataset_build: the build that the run found it by.
        table_uri: the Delta table it was built from.
        table_id: that table's id.
        table_version: that table's version.
        code_digest: digest of the user's code.
        checkpoint: URI of the best checkpoint.
        checkpoint_digest: SHA-256 of that checkpoint's ``manifest.json``.
        metrics: final metrics, by ``<split>/<name>``.
        wall_s: seconds from start to end, over all attempts.
        steps: optimiser steps.
        epochs: epochs that were completed.
        workers: the most workers at any time; 0 is training in the driver's process.
        losses_survived: workers lost while training went on.
        downtime_s: seconds without a step because of losses.
        worker_seconds: seconds times workers that were held.
        gpu_seconds: likewise for GPUs.
        cost: in the currency of ``cluster.market``; None where prices are unknown.
        tags: from the config.
        error: why it failed.
        row_id: identity of this row. Appending a row twice adds it once.
        recorded: when this row was made, UTC.
    """

    run_id: str
    name: str
    kind: str
    status: str
    started: datetime
    ended: datetime
    config: str
    config_digest: str
    sweep_id: str | None = None
    dataset_name: str | None = None
    dataset_digest: str | None = None
    dataset_build: str | None = None
    table_uri: str | None = None
    table_id: str | None = None
    table_version: int | None = None
    code_digest: str | None = None
    checkpoint: str | None = None
    checkpoint_digest: str | None = None
    metrics: Mapping[str, float] = dataclasses.field(default_factory=dict)
    wall_s: float = 0.0
    steps: int = 0
    epochs: float = 0.0
    workers: int = 0
    losses_survived: int = 0
    downtime_s: float = 0.0
    worker_seconds: float = 0.0
    gpu_seconds: float = 0.0
    cost: float | None = None
    tags: Mapping[str, str] = dataclasses.field(default_factory=dict)
    error: str | None = None
    row_id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)
    recorded: datetime = dataclasses.field(default_factory=lambda: datetime.now(UTC))


def _type(annotation: Any) -> pa.DataType:
    return _TYPES[
        annotation.__name__ if isinstance(annotation, type) else str(annotation).replace("collections.abc.", "")
    ]


SCHEMA = pa.schema([pa.field(field.name, _type(field.type)) for field in dataclasses.fields(RunRow)])


def table_uri(root: str) -> str:
    """Where the runs table of a root lies."""
    return f"{normalise(root)}/{TABLE}"


def ensure_table(root: str) -> None:
    """Creates the runs table unless it is there. Any number of processes may do so at the same time.

    Raises:
        RequestError: ``AWS_S3_ALLOW_UNSAFE_RENAME`` is set: with it, concurrent writers lose each other's rows.
        StorageError: storage failed or refused.
    """
    if _UNSAFE in os.environ:
        raise RequestError(
            f"{_UNSAFE} is set: with it concurrent runs overwrite each other's rows. Unset it: nothing needs it"
        )
    uri = table_uri(root)
    for attempt in range(10):
        try:
            DeltaTable.create(
                uri,
                schema=SCHEMA,
                mode="ignore",
                name="runs",
                configuration=_PROPERTIES,
                storage_options=delta_options(uri),
            )
            return
        except (DeltaError, OSError) as error:
            # Two creators may collide on version 0; whoever lost finds the table now.
            if DeltaTable.is_deltatable(uri, storage_options=delta_options(uri)):
                return
            if attempt == 9:
                raise _failure(f"cannot create the runs table {uri}", error) from error


def append(root: str, row: RunRow) -> None:
    """Appends a row, creating the table first if need be. Appending the same row again changes nothing.

    This waits for storage, under many writers for seconds: call it outside of a step loop.

    Raises:
        RequestError: as for :func:`ensure_table`.
        StorageError: storage failed or refused.
    """
    ensure_table(root)
    uri = table_uri(root)
    data = pa.Table.from_pylist([_plain(row)], schema=SCHEMA)
    commit = CommitProperties(max_commit_retries=_COMMIT_RETRIES, app_transactions=[Transaction(row.row_id, 1)])
    try:
        table = DeltaTable(uri, storage_options=delta_options(uri))
        if table.transaction_version(row.row_id) is None:
            write_deltalake(table, data, mode="append", commit_properties=commit)
    except (DeltaError, OSError) as error:
        if not (isinstance(error, CommitFailedError) and _recorded(uri, row)):
            raise _failure(f"cannot record run {row.run_id} in {uri}", error) from error


def runs(root: str) -> pa.Table:
    """All runs, trials and sweeps of a root: one row each (the latest), in the order they started.

    Raises:
        NotFoundError: nothing has run below this root.
        StorageError: storage failed or refused.
    """
    rows = _read(root).sort_by([("recorded", "ascending"), ("row_id", "ascending")])
    last = {run_id: index for index, run_id in enumerate(rows["run_id"].to_pylist())}
    return rows.take(pa.array(list(last.values()), pa.int64())).sort_by(
        [("started", "ascending"), ("run_id", "ascending")]
    )


def get(root: str, run_id: str) -> dict[str, Any]:
    """The latest row of one run, as plain data.

    Raises:
        RequestError: this cannot be a run's id.
        NotFoundError: there is no such run.
        StorageError: storage failed or refused.
    """
    checked_run_id(run_id)
    table = runs(root)
    found = table.filter(pc.field("run_id") == run_id).to_pylist(maps_as_pydicts="strict")
    if not found:
        near = difflib.get_close_matches(run_id, table["run_id"].to_pylist(), 3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise NotFoundError(f"no run {run_id!r} in {table_uri(root)}{hint}; `mltrain runs list` names all")
    row: dict[str, Any] = found[0]
    return row


def add_metrics(root: str, run_id: str, metrics: Mapping[str, float]) -> None:
    """Adds metrics to a run that has ended, such as those of the test split: a new row takes the place of its last.

    Raises:
        RequestError: a name is not text, or a value not a number.
        NotFoundError: there is no such run.
        StorageError: storage failed or refused.
    """
    added = {name: _metric(name, value) for name, value in metrics.items()}
    row = get(root, run_id)
    for generated in ("row_id", "recorded"):
        del row[generated]
    append(root, RunRow(**{**row, "metrics": {**row["metrics"], **added}}))


def _metric(name: object, value: Any) -> float:
    try:
        if isinstance(name, str) and not isinstance(value, str | bytes | bool):
            return float(value)
    except (TypeError, ValueError):
        pass  # said below
    raise RequestError(f"metric {name!r} is {value!r}: wanted a name, as in test/auc, and a number")


def _plain(row: RunRow) -> dict[str, Any]:
    data = {field.name: getattr(row, field.name) for field in dataclasses.fields(row)}
    data["metrics"] = [(name, float(value)) for name, value in row.metrics.items()]
    data["tags"] = [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in row.tags.items()]
    return data


def _recorded(uri: str, row: RunRow) -> bool:
    return DeltaTable(uri, storage_options=delta_options(uri)).transaction_version(row.row_id) is not None


def _failure(what: str, error: Exception) -> StorageError:
    """What delta-rs says in a coloured tree of causes, in a line."""
    said = " ".join(_ORNAMENTS.sub(" ", str(error)).split())
    if _NO_ACCESS.search(said):
        return StorageAccessError(f"{what}: {said}. Check the endpoint, the bucket's name and the credentials")
    return StorageError(f"{what}: {said}")


def _read(root: str) -> pa.Table:
    uri = table_uri(root)
    try:
        table: pa.Table = DeltaTable(uri, storage_options=delta_options(uri)).to_pyarrow_table()
    except TableNotFoundError as error:
        raise NotFoundError(f"{uri} does not exist: nothing has run below {normalise(root)} yet") from error
    except (DeltaError, OSError) as error:
        raise _failure(f"cannot read the runs table {uri}", error) from error
    return table.select(SCHEMA.names).cast(SCHEMA)
