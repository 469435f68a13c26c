"""Tasks that read a table's files see what Spark's scan sees, and leave to Spark what they are not sure of."""

import datetime as dt
import json
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from mltrain import features
from mltrain.data import keys
from mltrain.errors import BuildError, TableError
from mltrain.features import files as listings
from mltrain.features.derived import (
    Derived,
    append,
    below,
    is_missing,
    is_negative,
    is_not_utf8,
    position,
    row_hash,
    share,
)
from mltrain.features.files import list_files
from mltrain.features.fingerprint import fingerprint
from mltrain.features.parquet import Files, UnreadableError
from mltrain.features.table import open_table
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 300


def everything(start: int = 0) -> pa.Table:
    """A column of every type that tasks read."""
    ids = np.arange(start, start + ROWS)
    day = dt.datetime(1969, 12, 28, tzinfo=dt.UTC)
    return pa.table(
        {
            "id": ids,
            "part": pa.array([None if i % 7 == 0 else f"a b/{i % 3}%é" for i in ids]),
            "number": pa.array([int(i % 2) - 1 for i in ids], pa.int32()),
            "truth": pa.array([None if i % 3 == 0 else bool(i % 2) for i in ids]),
            "tiny": pa.array([int(i % 256) - 128 for i in ids], pa.int8()),
            "short": pa.array([int(i) - 150 for i in ids], pa.int16()),
            "float": pa.array(
                [None if i % 5 == 0 else [float("nan"), -0.0, 1.5, -2.5][i % 4] for i in ids], pa.float32()
            ),
            "double": np.where(ids % 4 == 0, np.nan, -np.sqrt(ids)),
            "text": pa.array([None if i % 5 == 0 else "é" * (i % 4) for i in ids], pa.large_string()),
            "bytes": pa.array([None if i % 5 == 0 else bytes([i % 256, 255]) for i in ids]),
            "day": pa.array([dt.date(1500, 1, 1) + dt.timedelta(days=997 * int(i)) for i in ids]),
            "zoned": pa.array([None if i % 5 == 0 else day + dt.timedelta(hours=int(i), microseconds=7) for i in ids]),
            "local": pa.array([day.replace(tzinfo=None) + dt.timedelta(hours=int(i)) for i in ids], pa.timestamp("us")),
            "price": pa.array([None if i % 5 == 0 else Decimal(int(i)) / 100 for i in ids], pa.decimal128(12, 2)),
            "ids": pa.array(
                [None if i % 5 == 0 else [None if j == 2 else j for j in range(i % 4)] for i in ids],
                pa.list_(pa.int64()),
            ),
            "moments": pa.array([[day + dt.timedelta(microseconds=int(i)), None] for i in ids]),
            "locals": pa.array([[dt.datetime(1, 1, 1, 0, 0, 0, int(i))] for i in ids], pa.list_(pa.timestamp("us"))),
            "prices": pa.array([[Decimal(int(i)) / 10**9, None] for i in ids], pa.list_(pa.decimal128(38, 9))),
            "words": pa.array([["a", None, "ß"][: i % 4] for i in ids], pa.list_(pa.string())),
            "a.`b": ids,
        }
    )


def read_both(spark: "SparkSession", table: str) -> tuple[pa.Table, pa.Table, Files]:
    """The table's columns and everything that is derived from them, by tasks and by Spark."""
    source = open_table(spark, table)
    files = list_files(source.frame, source.schema, deadline_s=10).read_by_tasks(spark, source.schema.names)
    names = source.schema.names
    values = derived(source.schema)
    batches = [append(rows, values) for task in range(len(files.tasks)) for rows in files.read(task, names)]
    read = [f"`{name.replace('`', '``')}`" for name in names] + [
        f"{one.sql} AS `{name}`" for name, one in values.items()
    ]
    scanned = source.frame.selectExpr(*read).toArrow()
    mine = pa.Table.from_batches(batches)
    return mine.sort_by("id"), scanned.cast(mine.schema).sort_by("id"), files


def derived(schema: pa.Schema) -> dict[str, Derived]:
    """Values of every kind that a build derives."""
    plain = pa.schema([field for field in schema if not pa.types.is_list(field.type) or field.name == "ids"])
    found = {"hash": row_hash(plain, domain=keys.SHARD_DOMAIN, seed=-3)}
    found["fingerprint"] = fingerprint(schema)
    found["chosen"] = below(pa.schema([schema.field("id")]), 0, "any", 2**62)
    found["share"] = share(pa.schema([schema.field("id")]), 5, keys.SPLIT_DOMAIN, [2**61, 2**62, 2**63 - 9])
    found |= {f"missing {field.name}": is_missing(field.name, field.type) for field in schema if "`" not in field.name}
    for name in {"text", "raw", "words"} & set(schema.names):
        found[f"not text {name}"] = is_not_utf8(name, schema.field(name).type)
    for name in {"tiny", "float", "double", "number"} & set(schema.names):
        found[f"negative {name}"] = is_negative(name, schema.field(name).type)
    if "text" in schema.names:
        found["place"] = position("text", ["é", "éé", "'"])
    return found


def assert_equal(mine: pa.Table, scanned: pa.Table) -> None:
    assert mine.num_rows == scanned.num_rows
    for name in mine.schema.names:
        ours, theirs = (one[name].combine_chunks() for one in (mine, scanned))
        if pa.types.is_string(ours.type):
            ours, theirs = ours.cast(pa.binary()), theirs.cast(pa.binary())
        # Not `equals`: NaN is NaN here, and -0.0 is not 0.0.
        assert ours.is_null().equals(theirs.is_null()), name
        assert [repr(value) for value in ours.to_pylist()] == [repr(value) for value in theirs.to_pylist()], name


def test_columns_of_every_type_partitions_and_added_columns(spark: "SparkSession", tmp_path: Path) -> None:
    small_groups = deltalake.WriterProperties(max_row_group_size=64)
    first = everything().drop_columns(["price", "words"])
    for part in (first, everything(ROWS)):
        deltalake.write_deltalake(
            str(tmp_path / "table"),
            part,
            mode="append",
            schema_mode="merge",
            partition_by=["part", "number"],
            writer_properties=small_groups,
        )
    mine, scanned, files = read_both(spark, str(tmp_path / "table"))
    assert mine.num_rows == 2 * ROWS
    assert files.partitioned == ("part", "number")
    assert_equal(mine, scanned)


def test_deleted_rows_and_timestamps_of_96_bits(spark: "SparkSession", tmp_path: Path) -> None:
    table = f"delta.`{tmp_path}/table`"
    spark.sql(
        f"CREATE TABLE {table} (id BIGINT, at TIMESTAMP, day DATE, raw STRING) USING delta "
        "TBLPROPERTIES ('delta.enableDeletionVectors' = 'true')"
    )
    raw = "IF(id % 1000 = 1, CAST(X'61FF' AS STRING), 'é') AS raw"
    days = "date_add(DATE'1200-01-01', CAST(id % 400000 AS INT))"
    for start in range(0, 60_000, 20_000):
        spark.range(start, start + 20_000, 1, 1).selectExpr(
            "id", "timestamp_micros(id * 100000000000 - 30000000000000000 + 1) AS at", f"{days} AS day", raw
        ).write.format("delta").mode("append").save(f"{tmp_path}/table")
    few, dense, span = (
        "id < 20000 AND id % 701 = 3",
        "id BETWEEN 20000 AND 39999 AND id % 2 = 1",
        "id > 40010 AND id < 59000",
    )
    for condition in (few, dense, span):
        spark.sql(f"DELETE FROM {table} WHERE {condition}")
    mine, scanned, _ = read_both(spark, f"{tmp_path}/table")
    assert mine.num_rows == 60_000 - 29 - 10_000 - 18_989
    assert_equal(mine, scanned)


def test_a_file_is_read_once_however_it_is_cut(
    spark: "SparkSession", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(listings, "_SMALLEST_TASK_BYTES", 1000)
    monkeypatch.setattr(listings, "_FILE_COSTS_BYTES", 0)
    small_groups = deltalake.WriterProperties(max_row_group_size=20)
    deltalake.write_deltalake(str(tmp_path / "table"), everything(), writer_properties=small_groups)
    spark.sql(f"CREATE TABLE cut USING delta LOCATION '{tmp_path}/table'")
    try:
        source = open_table(spark, "cut")
        files = list_files(source.frame, source.schema, deadline_s=10).read_by_tasks(spark, ["id"])
    finally:
        spark.sql("DROP TABLE cut")
    assert len(files.tasks) > 3
    found = [rows.column("id") for task in range(len(files.tasks)) for rows in files.read(task, ["id"])]
    assert sorted(pa.chunked_array(found).to_pylist()) == list(range(ROWS))


@pytest.mark.parametrize(
    ("columns", "properties", "change", "reason"),
    [
        ("id BIGINT, s STRING", "'delta.columnMapping.mode' = 'name'", "RENAME COLUMN s TO t", "column mapping"),
        ("id BIGINT, s CHAR(3)", "", "", "more than a scan"),
    ],
)
def test_what_is_not_certain_is_left_to_spark(
    spark: "SparkSession", tmp_path: Path, columns: str, properties: str, change: str, reason: str
) -> None:
    table = f"delta.`{tmp_path}/table`"
    spark.sql(f"CREATE TABLE {table} ({columns}) USING delta {f'TBLPROPERTIES ({properties})' if properties else ''}")
    spark.sql(f"INSERT INTO {table} VALUES (1, 'a')")
    if change:
        spark.sql(f"ALTER TABLE {table} {change}")
    source = open_table(spark, f"{tmp_path}/table")
    with pytest.raises(UnreadableError, match=reason):
        list_files(source.frame, source.schema, deadline_s=10)


def test_a_file_of_another_type_leaves_the_whole_table_to_spark(spark: "SparkSession", tmp_path: Path) -> None:
    """Spark widens the column of the older, smaller file; only the task that reads it finds out."""
    rows = pa.table({"id": np.arange(400), "x": np.arange(400) * 3, "y": np.arange(400) % 2})
    plain = tables.write(tmp_path / "plain", rows)
    table = f"delta.`{tmp_path}/wide`"
    widening = "TBLPROPERTIES ('delta.enableTypeWidening' = 'true')"
    spark.sql(f"CREATE TABLE {table} (id BIGINT, x INT, y BIGINT) USING delta {widening}")
    numbers = "SELECT id, {} AS x, id % 2 AS y FROM range({})"
    spark.sql(f"INSERT INTO {table} {numbers.format('INT(id * 3)', '0, 20')}")
    spark.sql(f"ALTER TABLE {table} CHANGE COLUMN x TYPE BIGINT")
    spark.sql(f"INSERT INTO {table} {numbers.format('id * 3', '20, 400')}")
    digests, reasons = [], []
    for where in (plain, f"{tmp_path}/wide"):
        report = features.build(tables.dataset_file(where, tmp_path / "root"), spark=spark)
        digests.append(report.digest)
        reasons.append(
            json.loads((tmp_path / "root" / "builds" / f"{report.build_id}.json").read_bytes())["scan_reason"]
        )
    assert digests[0] == digests[1]
    assert reasons[0] is None
    assert "column 'x' is stored as int32" in reasons[1]


def test_a_file_of_the_table_that_is_damaged_or_gone_is_named(spark: "SparkSession", tmp_path: Path) -> None:
    table = tables.write(tmp_path / "table", {"id": np.arange(50), "y": np.arange(50) % 2, "x": np.arange(50) * 0.5})
    (file,) = (tmp_path / "table").glob("*.parquet")
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.raises(BuildError, match=f"Spark failed: .*{file.name}"):
        features.build(tables.dataset_file(table, tmp_path / "root"), spark=spark)
    file.unlink()
    with pytest.raises(TableError, match=f"{file.name} is gone, though .* VACUUM may .*dataset.version"):
        features.build(tables.dataset_file(table, tmp_path / "root"), spark=spark)
