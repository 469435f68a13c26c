"""The Delta table of a build, opened at one version that is resolved once and recorded."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from delta.tables import DeltaTable
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.pandas.types import to_arrow_type
from pyspark.sql.types import StructType

from mltrain.errors import NotFoundError, StorageAccessError, TableError
from mltrain.storage import spark_options, spark_uri


@dataclass(frozen=True)
class Source:
    """A table at one version.

    Attributes:
        frame: its rows.
        schema: its columns as Arrow sees them in a task, except those that Arrow cannot hold.
        unreadable: columns that Arrow cannot hold, and their Spark types.
        uri: where it is.
        table_id: Delta's own id of the table.
        version: Delta version.
        committed: when that version was committed, ISO 8601, UTC.
    """

    frame: DataFrame
    schema: pa.Schema
    unreadable: dict[str, str]
    uri: str
    table_id: str
    version: int
    committed: str

    @property
    def described(self) -> str:
        """What messages call it."""
        return described(self.uri, self.version)

    def provenance(self) -> dict[str, Any]:
        """What a build records of it."""
        columns = {field.name: str(field.type) for field in self.schema}
        table = {"uri": self.uri, "id": self.table_id, "version": self.version, "committed": self.committed}
        return {**table, "columns": columns | self.unreadable}


def described(uri: str, version: int) -> str:
    """What messages call a table at a version."""
    return f"table {uri} (version {version})"


def no_table(table: str) -> str:
    """Says that there is none."""
    return f"there is no Delta table at {table}: it has no _delta_log with a commit"


def open_table(
    spark: SparkSession, table: str, *, version: int | None = None, timestamp: datetime | str | None = None
) -> Source:
    """Opens a Delta table.

    Args:
        spark: the session.
        table: a path, a URI, or a name in the session's catalog (no slash).
        version: its Delta version; the latest if neither this nor ``timestamp`` is given.
        timestamp: the latest version committed at or before it; without an offset it is UTC.

    Raises:
        NotFoundError: there is no such table.
        TableError: it is not a Delta table, or has no such version.
        StorageAccessError: storage refuses to show it.
    """
    by_path = "/" in table
    if by_path:
        for key, value in spark_options(table).items():
            spark.conf.set(key.removeprefix("spark.hadoop."), value)
    try:
        handle = _handle(spark, table, by_path)
        resolved, committed = _resolve(handle, table, version, timestamp)
        # Delta's Python API gives the id only with a count of all files, which is a job of its own.
        delta_log = handle._jdt.deltaLog()
        table_id, location = delta_log.tableId(), delta_log.dataPath().toString()
        reader = spark.read.format("delta").option("versionAsOf", str(resolved))
        frame = reader.load(spark_uri(table)) if by_path else reader.table(table)
    except AnalysisException as error:
        raise TableError(f"table {table} cannot be opened: {_first_line(error)}") from error
    except PySparkException as error:
        raise StorageAccessError(
            f"table {table} cannot be read: {_first_line(error)}. Check the address, and the credentials and endpoint "
            "in the environment"
        ) from error
    schema, unreadable = arrow_schema(frame.schema)
    return Source(frame, schema, unreadable, table if by_path else location, table_id, resolved, committed)


def _handle(spark: SparkSession, table: str, by_path: bool) -> DeltaTable:
    if not by_path:
        if not spark.catalog.tableExists(table):
            raise NotFoundError(f"the catalog has no table {table!r}; a path is written with a slash, as in ./{table}")
        return DeltaTable.forName(spark, table)
    if not DeltaTable.isDeltaTable(spark, spark_uri(table)):
        raise NotFoundError(no_table(table))
    return DeltaTable.forPath(spark, spark_uri(table))


def _resolve(handle: DeltaTable, table: str, version: int | None, timestamp: datetime | str | None) -> tuple[int, str]:
    commits = handle.history(1 if version is None and timestamp is None else None)
    if version is not None:
        commits = commits.where(f"version = {version}")
    if timestamp is not None:
        commits = commits.where(f"unix_micros(timestamp) <= {_micros(timestamp)}")
    found = (
        commits.selectExpr("version", "unix_micros(timestamp) AS micros").orderBy("version", ascending=False).first()
    )
    if found is None:
        ((oldest, latest),) = handle.history().selectExpr("min(version)", "max(version)").collect()
        wanted = f"version {version}" if timestamp is None else f"version at {timestamp}"
        raise TableError(f"table {table} has no {wanted}; its history has versions {oldest} to {latest}")
    committed = datetime.fromtimestamp(found["micros"] / 1e6, UTC).isoformat(timespec="milliseconds")
    return int(found["version"]), committed


def _micros(timestamp: datetime | str) -> int:
    try:
        moment = datetime.fromisoformat(timestamp) if isinstance(timestamp, str) else timestamp
    except ValueError as error:
        raise TableError(
            f"dataset.timestamp is {timestamp!r}; want ISO 8601, as in 2026-11-23T10:00:00+00:00"
        ) from error
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return int(moment.timestamp() * 1_000_000)


def arrow_schema(schema: StructType) -> tuple[pa.Schema, dict[str, str]]:
    """A table's columns as Arrow sees them in a task; and those that Arrow cannot hold, with their Spark types."""
    fields: list[pa.Field] = []
    unreadable: dict[str, str] = {}
    for field in schema.fields:
        try:
            fields.append(pa.field(field.name, to_arrow_type(field.dataType, timezone="UTC")))
        except PySparkException:
            unreadable[field.name] = field.dataType.simpleString()
    return pa.schema(fields), unreadable


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]
