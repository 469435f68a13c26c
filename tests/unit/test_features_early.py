"""What is refused without Spark: by the table's log, by counts, and by what tasks complained of."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

pytest.importorskip("pyspark")

from mltrain.errors import NotFoundError, TableError
from mltrain.features.early import refuse_early
from mltrain.features.problems import one_each
from mltrain.features.scatter import Places
from tests.support import tables


def _table(place: Path) -> str:
    columns: dict[str, Any] = {
        "id": pa.array([1, 2]),
        "price": pa.array([1, 2], pa.decimal128(9, 2)),
        "v": pa.array([[1.0], [2.0]]),
        "when": pa.array([0, 1], pa.timestamp("us", "UTC")),
        "y": pa.array([0, 1]),
    }
    return tables.write(place, columns, columns)


def test_a_table_is_refused_by_its_log_with_all_reasons(tmp_path: Path) -> None:
    table = _table(tmp_path / "table")
    refuse_early(tables.dataset_file(table, tmp_path, features={"when": {}}).dataset)
    with pytest.raises(TableError) as caught:
        refuse_early(tables.dataset_file(table, tmp_path, version=0).dataset)
    said = str(caught.value)
    assert said.startswith(f"table {table} (version 0): 2 problems:") and said.count(table) == 1
    assert "column 'price' has type decimal128(9, 2): decimals are" in said and "column 'v' has lists of any" in said
    with pytest.raises(TableError, match=r"label z names column 'z', which the table lacks"):
        refuse_early(tables.dataset_file(table, tmp_path, label={"column": "z", "type": "binary"}).dataset)
    with pytest.raises(NotFoundError, match="there is no Delta table at .*none"):
        refuse_early(tables.dataset_file(tmp_path / "none", tmp_path).dataset)


def test_what_the_log_cannot_tell_is_left_to_spark(tmp_path: Path) -> None:
    table = _table(tmp_path / "table")
    refuse_early(tables.dataset_file("a_name", tmp_path).dataset)
    for given in ({"timestamp": "2026-01-01"}, {"version": 9}):
        refuse_early(tables.dataset_file(table, tmp_path, **given).dataset)


def test_a_build_refuses_such_a_table_before_it_looks_for_java(tmp_path: Path) -> None:
    table = _table(tmp_path / "table")
    (tmp_path / "a.yaml").write_text(
        f"name: a\ndataset:\n  table: {table}\n  key: [id]\n  label: {{column: y, type: binary}}\n"
    )
    command = [str(Path(sys.executable).parent / "mltrain"), "dataset", "build", "-c", str(tmp_path / "a.yaml")]
    without_java = {**os.environ, "JAVA_HOME": str(tmp_path / "none"), "PATH": str(tmp_path)}
    done = subprocess.run(command, env=without_java, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 2 and "decimals are not rounded silently" in done.stderr


@pytest.mark.parametrize(
    ("rows", "rows_per_shard", "refused"),
    [(60_000, 1, True), (60_000, 64, False), (10**9, 10**5, False), (10**7, 300, True), (10**7, 1000, False)],
)
def test_many_tiny_shards_are_refused_with_a_better_number(rows: int, rows_per_shard: int, refused: bool) -> None:
    places = Places.plan({"train": rows}, rows_per_shard)
    problems = places.problems({"train": rows}, rows_per_shard)
    assert bool(problems) == refused
    assert all(f"{places.count:,} shards" in one and "1000 or more" in one for one in problems)


def test_a_problem_that_many_tasks_found_is_said_once_for_each_column() -> None:
    shown = [(i, n, what) for i in (1, 2) for n in (1, 2.5, -3) for what in "ab"]
    found = [f"column 'x{i}' holds {n}e+3{i}, beyond ±2**24: {what}" for i, n, what in shown]
    said = one_each(found)
    assert len(said) == 4 and {line.split()[1] for line in said} == {"'x1'", "'x2'"}
    assert one_each(["key a: 1", "key b: 1"]) == ["key a: 1", "key b: 1"]
