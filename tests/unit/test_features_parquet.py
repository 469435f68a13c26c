"""A table's files as tasks read them, without Spark."""

import json
import zlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mltrain.features.parquet import Files, UnreadableError
from mltrain.storage import open_store


def files(directory: Path, table: pa.Table, schema: pa.Schema | None = None) -> Files:
    """The table in files of ten rows, for one task."""
    parts = []
    for number, start in enumerate(range(0, len(table), 10)):
        path = directory / f"part-{number}.parquet"
        pq.write_table(table.slice(start, 10), path)
        size = path.stat().st_size
        parts.append([path.name, size, [], None, None, 0, size])
    task = zlib.compress(json.dumps(parts).encode())
    wanted = schema or table.schema
    return Files(open_store(directory), wanted, tuple(wanted.names), (), True, 25, (task,))


def test_the_rows_of_small_files_come_together(tmp_path: Path) -> None:
    table = pa.table({"id": range(57), "name": [f"n{i}" for i in range(57)]})
    batches = list(files(tmp_path, table).read(0, ("id", "name")))
    assert [batch.num_rows for batch in batches] == [30, 27]
    assert pa.Table.from_batches(batches) == table


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
