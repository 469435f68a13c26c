"""Which Parquet files a version of a Delta table has, whether tasks can read them, and how two versions differ.

What partition a file is in and which of its rows are deleted is what Spark's Delta says. A table of which it is not
certain that its files mean the same here as to Spark is left to Spark.
"""

import hashlib
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrain.errors import ConfigError
from mltrain.features.parquet import Files, Part, UnreadableError
from mltrain.storage import Store, open_store

_READER_FEATURES = {"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview"}
_READER_FEATURES |= {"v2Checkpoint", "vacuumProtocolCheck"}
_LARGEST_TASK_BYTES, _SMALLEST_TASK_BYTES = 128 << 20, 4 << 20
_FILE_COSTS_BYTES = 256 << 10
_TASKS_PER_CORE = 2
_ROWS_PER_BATCH = 1 << 15
_KEYS_COST = 1 / 8
"""Reading the keys of a file, beside reading all of it."""


@dataclass(frozen=True)
class Listing:
    """The files of a version of a table.

    Attributes:
        store: the table's directory.
        location: the same, as Spark calls it.
        schema: the readable columns.
        types: Spark's types of all columns.
        partitioned: columns whose values are those of a file's partition.
        parts: the files.
        digest: of the files' names, partitions and deletion vectors: files never change, so equal ones hold equal rows.
    """

    store: Store
    location: str
    schema: pa.Schema
    types: Mapping[str, str]
    partitioned: tuple[str, ...]
    parts: tuple[Part, ...]
    digest: str

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(part.size for part in self.parts)

    def read_by_tasks(self, spark: SparkSession, columns: Sequence[str]) -> Files:
        """How tasks read some columns.

        Raises:
            UnreadableError: Spark has to read them; why.
        """
        files = Files(
            store=self.store,
            schema=self.schema,
            columns=tuple(columns),
            partitioned=self.partitioned,
            todays_calendar=_todays_calendar(spark),
            rows_per_batch=int(spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") or 0) or _ROWS_PER_BATCH,
            tasks=tuple(
                zlib.compress(json.dumps(task).encode())
                for task in _tasks(self.parts, spark.sparkContext.defaultParallelism)
            ),
        )
        if self.parts:
            files.check(max(self.parts, key=lambda part: part.size))
        return files


@dataclass(frozen=True)
class Changes:
    """How two versions differ: rows in files that both have, deleted in both or in neither, are the same.

    Attributes:
        removed: rows that only the earlier one has, or that it has in other files.
        added: likewise, of the later one.
    """

    removed: Listing
    added: Listing

    @property
    def cost_bytes(self) -> float:
        """What is to be read, as if all of it were read whole: of rows that are removed it is the keys."""
        return self.added.size_bytes + self.removed.size_bytes * _KEYS_COST


def list_files(frame: DataFrame, schema: pa.Schema, *, deadline_s: float) -> Listing:
    """The files of a Delta table at a version.

    Args:
        frame: the table as Spark reads it.
        schema: its readable columns.
        deadline_s: how long a read of storage is retried.

    Raises:
        UnreadableError: Spark has to read it; why.
    """
    spark = frame.sparkSession
    snapshot = _snapshot(frame)
    _check_table(spark, snapshot, frame.schema)
    partitioned = tuple(snapshot.metadata().getPartitionColumns())
    location = snapshot.dataPath()
    try:
        store = open_store(_location(location), deadline_s=deadline_s)
    except ConfigError as error:
        raise UnreadableError(str(error)) from error
    deleted = F.to_json("deletionVector").alias("deleted")
    described = DataFrame(snapshot.allFiles().toDF(), spark).select(
        "path", "size", "modificationTime", F.to_json("partitionValues").alias("partition"), deleted
    )
    rows = described.toArrow().to_pylist()
    content = [_todays_calendar(spark), sorted(json.dumps(row, sort_keys=True) for row in rows)]
    return Listing(
        store=store,
        location=location.toString(),
        schema=schema,
        types={field.name: field.dataType.json() for field in frame.schema.fields},
        partitioned=partitioned,
        parts=tuple(_whole(row, partitioned, schema) for row in rows),
        digest=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
    )


def changes(
    spark: SparkSession, later: Listing, version: int, digest: str | None, columns: Sequence[str], *, deadline_s: float
) -> Changes:
    """How a version of a table differs from another one.

    Args:
        spark: the session.
        later: this version.
        version: the other one's number in the same table's log.
        digest: what :attr:`Listing.digest` was of it.
        columns: that rows are made of.
        deadline_s: as for :func:`list_files`.

    Raises:
        UnreadableError: it is not certain; why.
    """
    if digest is None:
        raise UnreadableError("no build has recorded the files of the earlier version")
    try:
        frame = spark.read.format("delta").option("versionAsOf", str(version)).load(later.location)
        earlier = list_files(frame, later.schema, deadline_s=deadline_s)
    except PySparkException as error:
        raise UnreadableError(f"version {version} is not in the table's log any more: {_first_line(error)}") from error
    if earlier.digest != digest:
        raise UnreadableError(f"version {version} does not have the files that it had")
    kinds = [[one.partitioned, *(one.types.get(name) for name in columns)] for one in (earlier, later)]
    if kinds[0] != kinds[1]:
        raise UnreadableError("columns have changed")
    removed, added = difference(earlier.parts, later.parts)
    return Changes(replace(earlier, parts=tuple(removed)), replace(later, parts=tuple(added)))


def difference(earlier: Sequence[Part], later: Sequence[Part]) -> tuple[list[Part], list[Part]]:
    """What only one of two versions has."""
    before, after = ({part.path: part for part in parts} for parts in (earlier, later))
    removed, added = [], []
    for path in dict.fromkeys((*before, *after)):
        old, new = before.get(path), after.get(path)
        if old == new:
            continue
        if old and new and replace(old, deleted=new.deleted) == new:
            # Of one file, rows that only one of its deletion vectors has.
            removed += [replace(old, among=new.deleted)] if new.deleted else []
            added += [replace(new, among=old.deleted)] if old.deleted else []
            continue
        removed += [old] if old else []
        added += [new] if new else []
    return removed, added


def _snapshot(frame: DataFrame) -> Any:
    """What a frame scans, if it is a Delta table and nothing else: no filter, no view."""
    plan = frame._jdf.queryExecution().analyzed()
    while plan.getClass().getSimpleName() == "SubqueryAlias":
        plan = plan.child()
    try:
        return plan.relation().location().getSnapshot()
    except Py4JError as error:
        raise UnreadableError("more than a scan of a Delta table lies between it and its files") from error


def _location(path: Any) -> str:
    uri = path.toUri()
    return str(uri.getPath() if uri.getScheme() == "file" else path.toString())


def _todays_calendar(spark: SparkSession) -> bool:
    modes = ("spark.sql.parquet.datetimeRebaseModeInRead", "spark.sql.parquet.int96RebaseModeInRead")
    return all(spark.conf.get(mode) == "CORRECTED" for mode in modes)


def _check_table(spark: SparkSession, snapshot: Any, schema: StructType) -> None:
    features = snapshot.protocol().readerFeatures()
    if features.isDefined() and (unknown := set(features.get().mkString("\n").split("\n")) - _READER_FEATURES - {""}):
        raise UnreadableError(f"it has the table features {', '.join(sorted(unknown))}")
    if snapshot.metadata().columnMappingMode().name() != "none":
        raise UnreadableError("its columns have other names in its files (column mapping)")
    if marked := [field.name for field in schema.fields if set(field.metadata) & {"EXISTS_DEFAULT"}]:
        raise UnreadableError(f"column {marked[0]!r} has a default value")
    for key in ("spark.sql.caseSensitive", "spark.sql.parquet.int96TimestampConversion"):
        if spark.conf.get(key) != "false":
            raise UnreadableError(f"{key} is set")


def _whole(row: Mapping[str, Any], partitioned: Sequence[str], schema: pa.Schema) -> Part:
    path = unquote(row["path"])
    if path.startswith(("/", "file:")) or "://" in path:
        raise UnreadableError(f"a file of it lies elsewhere: {path}")
    given = json.loads(row["partition"] or "{}")
    values = [_partition_value(name, given.get(name), schema) for name in partitioned]
    deleted = json.loads(row["deleted"]) if row["deleted"] else None
    if deleted and deleted["storageType"] not in ("u", "i"):
        raise UnreadableError(f"a deletion vector of it lies elsewhere: {deleted['pathOrInlineDv']}")
    return Part(path, row["size"], values, deleted, None, 0, row["size"])


def _partition_value(name: str, text: str | None, schema: pa.Schema) -> object:
    kind = schema.field(name).type if name in schema.names else pa.null()
    if text is None:
        return None
    if text and pa.types.is_string(kind):
        return text
    if pa.types.is_integer(kind) and text.removeprefix("-").isdecimal():
        return int(text)
    raise UnreadableError(f"it is partitioned by {name!r}, a value of which is {text!r}")


def _tasks(parts: Sequence[Part], cores: int) -> list[list[list[Any]]]:
    """Parts of files dealt to tasks, about as many bytes to each."""
    total = sum(part.size + _FILE_COSTS_BYTES for part in parts)
    target = min(_LARGEST_TASK_BYTES, max(_SMALLEST_TASK_BYTES, -(-total // (_TASKS_PER_CORE * cores))))
    tasks: list[list[list[Any]]] = []
    room = 0
    for part in parts:
        pieces = -(-part.size // target)
        ends = [part.size * (i + 1) // pieces for i in range(pieces)]
        for start, end in zip([0, *ends], ends, strict=False):
            cost = end - start + _FILE_COSTS_BYTES
            if cost > room:
                tasks.append([])
                room = max(target, cost)
            room -= cost
            tasks[-1].append([part.path, part.size, list(part.partition), part.deleted, part.among, start, end])
    return tasks


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
