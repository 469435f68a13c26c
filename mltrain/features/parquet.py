"""A table's Parquet files, read inside tasks instead of by Spark's scan: which tables can be read so, and how.

Which files a version of the table has, what partition they are in and which of their rows are deleted, is what Spark's
Delta says. A table, or a file, of which it is not certain that it means the same here as to Spark is not read here.
"""

import json
import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from mltrain.errors import BuildError, ConfigError, StorageError
from mltrain.features.deleted import deleted_rows
from mltrain.features.sql import Batches
from mltrain.features.stored import Stored
from mltrain.storage import ObjectFile, Store, open_store

_READER_FEATURES = {"columnMapping", "deletionVectors", "timestampNtz", "typeWidening", "typeWidening-preview"}
_READER_FEATURES |= {"v2Checkpoint", "vacuumProtocolCheck"}
_LARGEST_TASK_BYTES, _SMALLEST_TASK_BYTES = 128 << 20, 4 << 20
_FILE_COSTS_BYTES = 256 << 10
_TASKS_PER_CORE = 2
_ROWS_PER_BATCH = 1 << 15
_UNREADABLE = re.compile(r"mltrain\.features\.parquet\.UnreadableError: (.*)")


class UnreadableError(BuildError):
    """Tasks cannot read a file with the certainty that they read what Spark would."""


@dataclass(frozen=True)
class Files:
    """What tasks need to read a table.

    Attributes:
        store: the table's directory.
        schema: the table's columns.
        columns: those that any task wants.
        partitioned: columns whose values are those of a file's partition.
        todays_calendar: so are dates in files that do not say which.
        rows_per_batch: at most.
        tasks: for each task the parts of files that it reads, as compressed JSON.
    """

    store: Store
    schema: pa.Schema
    columns: tuple[str, ...]
    partitioned: tuple[str, ...]
    todays_calendar: bool
    rows_per_batch: int
    tasks: tuple[bytes, ...]

    def check(self, part: "_Part") -> None:
        """Looks at a file, before all tasks look at theirs.

        Raises:
            UnreadableError: it cannot be read.
        """
        try:
            self._open(part)
        except StorageError as error:
            raise UnreadableError(str(error)) from error

    def read(self, task: int, columns: Sequence[str]) -> Batches:
        """The rows of a task.

        Raises:
            UnreadableError: of a file it is not certain what it means.
        """
        parts = (_Part(*part) for part in json.loads(zlib.decompress(self.tasks[task])))
        return _together((rows for part in parts for rows in self._read(part, columns)), self.rows_per_batch)

    def _read(self, part: "_Part", columns: Sequence[str]) -> Batches:
        file = self._open(part)
        names = set(file.schema_arrow.names)
        there = [name for name in columns if name not in self.partitioned and name in names]
        deleted = deleted_rows(self.store, part.deleted) if part.deleted else np.empty(0, np.int64)
        first = 0
        for group in range(file.metadata.num_row_groups):
            described = file.metadata.row_group(group)
            if part.start <= _offset(described) < part.end:
                position = first
                for batch in file.iter_batches(
                    self.rows_per_batch, row_groups=[group], columns=there, use_threads=False
                ):
                    yield self._rows(batch, part, columns, deleted, position)
                    position += batch.num_rows
                if position != first + described.num_rows:
                    raise BuildError(f"{self.store.join(part.path)}: row group {group} lacks rows")
            first += described.num_rows

    def _rows(
        self, batch: pa.RecordBatch, part: "_Part", columns: Sequence[str], deleted: NDArray[np.int64], position: int
    ) -> pa.RecordBatch:
        """The rows that are left of a batch that starts at a position of its file."""
        arrays = []
        for name in columns:
            kind = self.schema.field(name).type
            if name in self.partitioned:
                value = part.partition[self.partitioned.index(name)]
                arrays.append(pa.repeat(pa.scalar(value, kind), batch.num_rows))
            elif name in batch.schema.names:
                arrays.append(_as(batch.column(name), kind))
            else:
                arrays.append(pa.nulls(batch.num_rows, kind))
        rows = pa.RecordBatch.from_arrays(arrays, names=list(columns)) if arrays else batch
        low, high = np.searchsorted(deleted, (position, position + batch.num_rows))
        if low == high:
            return rows
        left = np.ones(batch.num_rows, np.bool_)
        left[deleted[low:high] - position] = False
        return rows.filter(pa.array(left))

    def _open(self, part: "_Part") -> pq.ParquetFile:
        where = self.store.join(part.path)
        try:
            source = pa.PythonFile(ObjectFile(self.store, part.path, part.size), mode="r")
            file = pq.ParquetFile(source, coerce_int96_timestamp_unit="us", pre_buffer=True)
        except (pa.ArrowException, OSError) as error:
            raise UnreadableError(f"{where}: {error}") from error
        stored = Stored.of(file)
        for name in self.columns:
            if name in self.partitioned:
                continue
            if problem := stored.problem(self.schema.field(name), self.todays_calendar):
                raise UnreadableError(f"{where}: column {name!r} {problem}")
        return file


@dataclass(frozen=True)
class _Part:
    """Row groups of a file: those that start in a range of its bytes."""

    path: str
    size: int
    partition: Sequence[Any]
    deleted: Mapping[str, Any] | None
    start: int
    end: int


def files_of(frame: DataFrame, schema: pa.Schema, columns: Sequence[str], *, deadline_s: float) -> Files:
    """How tasks read the rows of a Delta table at a version, without Spark's scan.

    Args:
        frame: the table as Spark reads it.
        schema: its readable columns.
        columns: those that any task wants.
        deadline_s: how long a read of storage is retried.

    Raises:
        UnreadableError: Spark has to read it; why.
    """
    spark = frame.sparkSession
    snapshot = _snapshot(frame)
    _check_table(spark, snapshot, frame.schema)
    partitioned = tuple(snapshot.metadata().getPartitionColumns())
    try:
        store = open_store(_location(snapshot.dataPath()), deadline_s=deadline_s)
    except ConfigError as error:
        raise UnreadableError(str(error)) from error
    described = DataFrame(snapshot.allFiles().toDF(), spark).select(
        "path", "size", F.to_json("partitionValues").alias("partition"), F.to_json("deletionVector").alias("deleted")
    )
    parts = [_whole(row, partitioned, schema) for row in described.toArrow().to_pylist()]
    cores = spark.sparkContext.defaultParallelism
    modes = ("spark.sql.parquet.datetimeRebaseModeInRead", "spark.sql.parquet.int96RebaseModeInRead")
    files = Files(
        store=store,
        schema=schema,
        columns=tuple(columns),
        partitioned=partitioned,
        todays_calendar=all(spark.conf.get(mode) == "CORRECTED" for mode in modes),
        rows_per_batch=int(spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") or 0) or _ROWS_PER_BATCH,
        tasks=tuple(zlib.compress(json.dumps(task).encode()) for task in _tasks(parts, cores)),
    )
    if parts:
        files.check(max(parts, key=lambda part: part.size))
    return files


def unreadable(error: Exception) -> str | None:
    """Why a task could not read a file, if that is why Spark failed."""
    found = _UNREADABLE.search(str(error))
    return found and found.group(1)


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


def _whole(row: Mapping[str, Any], partitioned: Sequence[str], schema: pa.Schema) -> _Part:
    path = unquote(row["path"])
    if path.startswith(("/", "file:")) or "://" in path:
        raise UnreadableError(f"a file of it lies elsewhere: {path}")
    given = json.loads(row["partition"] or "{}")
    values = [_partition_value(name, given.get(name), schema) for name in partitioned]
    deleted = json.loads(row["deleted"]) if row["deleted"] else None
    if deleted and deleted["storageType"] not in ("u", "i"):
        raise UnreadableError(f"a deletion vector of it lies elsewhere: {deleted['pathOrInlineDv']}")
    return _Part(path, row["size"], values, deleted, 0, row["size"])


def _partition_value(name: str, text: str | None, schema: pa.Schema) -> object:
    kind = schema.field(name).type if name in schema.names else pa.null()
    if text is None:
        return None
    if text and pa.types.is_string(kind):
        return text
    if pa.types.is_integer(kind) and text.removeprefix("-").isdecimal():
        return int(text)
    raise UnreadableError(f"it is partitioned by {name!r}, a value of which is {text!r}")


def _tasks(parts: Sequence[_Part], cores: int) -> list[list[list[Any]]]:
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
            tasks[-1].append([part.path, part.size, list(part.partition), part.deleted, start, end])
    return tasks


def _offset(group: Any) -> int:
    """Where a row group starts."""
    if not group.num_columns:
        return 0
    column = group.column(0)
    starts = [column.data_page_offset]
    if column.dictionary_page_offset:
        starts.append(column.dictionary_page_offset)
    return int(min(starts))


def _as(array: pa.Array, kind: pa.DataType) -> pa.Array:
    if array.type == kind:
        return array
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(kind) and array.type == pa.timestamp("us"):
        return array.view(kind)
    return pc.cast(array, kind)


def _together(batches: Batches, rows: int) -> Batches:
    """The same rows in batches of about so many: those of small files cost what their number costs."""
    held: list[pa.RecordBatch] = []
    missing = rows
    for batch in batches:
        held.append(batch)
        missing -= batch.num_rows
        if missing <= 0:
            yield from _one(held)
            held, missing = [], rows
    if held:
        yield from _one(held)


def _one(batches: list[pa.RecordBatch]) -> list[pa.RecordBatch]:
    if len(batches) == 1:
        return batches
    joined: list[pa.RecordBatch] = pa.Table.from_batches(batches).combine_chunks().to_batches()
    return joined
