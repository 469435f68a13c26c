"""A table's files as tasks read them, without Spark."""

import dataclasses
import json
import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mltrain.features.parquet import _SMALL_BYTES, Files, UnreadableError
from mltrain.storage import open_store


def files(directory: Path, table: pa.Table, schema: pa.Schema | None = None) -> Files:
    """The table in files of ten rows, for one task."""
    tables = [table.slice(start, 10) for start in range(0, len(table), 10)]
    return of_tables(directory, tables, schema or table.schema)


def of_tables(directory: Path, tables: Sequence[pa.Table], schema: pa.Schema, **options: Any) -> Files:
    """A file of each table, for one task."""
    parts = []
    for number, table in enumerate(tables):
        path = directory / f"part-{number}.parquet"
        pq.write_table(table, path, **options)
        size = path.stat().st_size
        parts.append([path.name, size, [], None, None, 0, size])
    task = zlib.compress(json.dumps(parts).encode())
    return Files(open_store(directory), schema, tuple(schema.names), (), True, 25, (task,))


def test_the_rows_of_small_files_come_together(tmp_path: Path) -> None:
    table = pa.table({"id": range(57), "name": [f"n{i}" for i in range(57)]})
    batches = list(files(tmp_path, table).read(0, ("id", "name")))
    assert [batch.num_rows for batch in batches] == [30, 27]
    assert pa.Table.from_batches(batches) == table


def test_a_large_file_and_large_row_groups_are_read_in_parts(tmp_path: Path) -> None:
    table = pa.table({"id": np.random.default_rng(0).integers(0, 2**62, 60_000), "n": range(60_000)})
    read = of_tables(tmp_path, [table], table.schema, row_group_size=20_000)
    read = dataclasses.replace(read, rows_per_batch=7_000)
    assert (tmp_path / "part-0.parquet").stat().st_size > _SMALL_BYTES
    batches = list(read.read(0, ("id", "n")))
    assert max(batch.num_rows for batch in batches) <= 2 * 7_000
    assert pa.Table.from_batches(batches) == table


def test_a_file_is_taken_for_what_it_is_whatever_the_one_before_was(tmp_path: Path) -> None:
    wanted = pa.schema([("c", pa.list_(pa.int64())), ("i", pa.int64())])
    first = pa.table({"c": [[1]], "i": [1]}, wanted)
    # Alike in all leaves, but the list is another column.
    other = pa.table({"d": [[2]], "i": [2]}, pa.schema([("d", pa.list_(pa.int64())), ("i", pa.int64())]))
    read = of_tables(tmp_path, [first, first, other, first], wanted)
    rows = pa.Table.from_batches(read.read(0, ("c", "i")))
    assert rows.to_pydict() == {"c": [[1], [1], None, [1]], "i": [1, 1, 2, 1]}
    nested = pa.table({"c": [{"list": {"element": 5}}], "i": [1]})
    with pytest.raises(UnreadableError, match=r"part-1.*'c' is"):
        list(of_tables(tmp_path, [first, nested], wanted).read(0, ("c", "i")))
    zoned = pa.schema([("t", pa.timestamp("us", "UTC"))])
    moment = pa.table({"t": [datetime(2026, 1, 1, tzinfo=UTC)]}, zoned)
    with pytest.raises(UnreadableError, match=r"part-1.*'t' is stored as timestamp\[us\]"):
        list(of_tables(tmp_path, [moment, moment.cast(pa.schema([("t", pa.timestamp("us"))]))], zoned).read(0, ("t",)))


@pytest.mark.parametrize(
    ("column", "kind", "message"),
    [
        (pa.array([1, 2]), pa.int32(), "'c' is stored as int64"),
        (pa.array([{"a": 1}, {"a": 2}]), pa.int64(), "'c' is nested"),
        (pa.array([[[1]], [[2]]]), pa.list_(pa.int64()), "'c' is stored as list"),
    ],
)
def test_a_column_that_is_stored_otherwise_is_left_to_spark(
    tmp_path: Path, column: pa.Array, kind: pa.DataType, message: str
) -> None:
    table = pa.table({"c": column})
    with pytest.raises(UnreadableError, match=message):
        list(files(tmp_path, table, pa.schema([("c", kind)])).read(0, ("c",)))


def test_dots_in_names_are_no_parts_and_what_may_be_a_part_is_left_to_spark(tmp_path: Path) -> None:
    names = ("a", "a.b", "a.b.c", "l", "l.x", ".", "z.")
    table = pa.table({name: [[i], [2]] if name == "l" else [i, 2] for i, name in enumerate(names)})
    assert pa.Table.from_batches(list(files(tmp_path, table).read(0, names))) == table
    table = pa.table({"a": [{"b": 1}], "a.b": [2]})
    for name in table.schema.names:
        with pytest.raises(UnreadableError, match=f"'{name}' is nested"):
            list(files(tmp_path, table, pa.schema([(name, pa.int64())])).read(0, (name,)))


def test_a_column_under_a_name_in_other_letters_is_left_to_spark(tmp_path: Path) -> None:
    table = pa.table({"C": [1, 2]})
    with pytest.raises(UnreadableError, match="'c' is there as C"):
        list(files(tmp_path, table, pa.schema([("c", pa.int64())])).read(0, ("c",)))
