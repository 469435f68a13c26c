"""Tables that cannot become the dataset that was asked for: refused with exit code 2, every reason named."""

import datetime
import decimal
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from mltrain import features
from mltrain.errors import MltrainError, NotFoundError, RequestError, StorageAccessError, TableError
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 60


def good() -> dict[str, Any]:
    return {
        "id": pa.array(range(ROWS)),
        "x": pa.array([i / 3 for i in range(ROWS)]),
        "c": pa.array([f"v{i % 4}" for i in range(ROWS)]),
        "y": pa.array([i % 2 for i in range(ROWS)]),
    }


def with_one(values: Any, value: Any, kind: pa.DataType | None = None) -> pa.Array:
    """A column whose row 7 is something else."""
    changed = list(values)
    changed[7] = value
    return pa.array(changed, kind)


X = good()["x"].to_pylist()
IDS = list(range(ROWS))
LISTS = pa.array([[1.0, 2.0]] * ROWS)

REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "a missing key": ({}, {"key": ["row"]}, "no column 'row'|key names column 'row', which the table lacks"),
    "a key in another case": ({}, {"key": ["ID"]}, "'ID'.*did you mean 'id'"),
    "a missing label": ({}, {"label": {"column": "z", "type": "binary"}}, "label z names column 'z'"),
    "a missing weight": ({}, {"weight": "w"}, "weight names column 'w'"),
    "a missing kept column": ({}, {"keep": ["k"]}, "keep names column 'k'"),
    "a missing split column": ({}, {"split": {"time": "day"}}, "split names column 'day'"),
    "a missing feature": ({}, {"features": {"xx": {}}}, "features names column 'xx'.*did you mean 'x'"),
    "a null key": ({"id": with_one(IDS, None)}, {}, "key column 'id' is null in 1 rows"),
    "a float key": ({}, {"key": ["x"]}, "key column 'x' has type double"),
    "a duplicate key": ({"id": with_one(IDS, 8)}, {}, "key id: 1 values occur more than once, among them 8"),
    "a null label": (
        {"y": with_one([i % 2 for i in IDS], None)},
        {},
        r"label 'y' \(column 'y'\) is null or NaN in 1 rows",
    ),
    "a NaN label": (
        {"y": with_one(X, math.nan)},
        {"label": {"column": "y", "type": "regression"}},
        "null or NaN in 1 rows",
    ),
    "an unknown class": (
        {"y": with_one(["a", "b"] * 30, "q")},
        {"label": {"column": "y", "type": "multiclass", "classes": ["a", "b"]}},
        "label 'y' holds 'q', not among its classes 'a', 'b'",
    ),
    "a third value of a binary label": (
        {"y": with_one([i % 2 for i in IDS], 2)},
        {},
        "label 'y' holds 0, 1, 2: without `pos",
    ),
    "a positive value that never occurs": (
        {"y": pa.array(["no", "yes"] * 30)},
        {"label": {"column": "y", "type": "binary", "positive": "Yes"}},
        "label 'y' never is 'Yes', its positive value; it holds 'no', 'yes'",
    ),
    "one class only": (
        {"y": pa.array(["a"] * ROWS)},
        {"label": {"column": "y", "type": "multiclass"}},
        "one class only: 'a'",
    ),
    "a label of floats as classes": (
        {},
        {"label": {"column": "x", "type": "binary"}},
        "'x' has type double: a binary label",
    ),
    "a regression on text": ({}, {"label": {"column": "c", "type": "regression"}}, "a regression label is a number"),
    "a multilabel that is no array": ({}, {"label": {"column": "c", "type": "multilabel"}}, "is an array of strings"),
    "a negative weight": ({"w": with_one(X, -0.5)}, {"weight": "w"}, "weight 'w' is negative in 1 rows"),
    "a null weight": ({"w": with_one(X, None)}, {"weight": "w"}, "weight 'w' is null or NaN in 1 rows"),
    "a weight of text": ({}, {"weight": "c"}, "weight 'c' has type string"),
    "a decimal": (
        {"d": pa.array([decimal.Decimal("1.10")] * ROWS, pa.decimal128(6, 2))},
        {},
        "column 'd' has type decimal128.*decimals are not rounded silently",
    ),
    "a struct": ({"s": pa.array([{"a": 1}] * ROWS)}, {}, "column 's' has type struct"),
    "text as a number": ({}, {"features": {"*": {}, "c": {"type": "numeric"}}}, "column 'c' has type string"),
    "floats as ids": ({}, {"features": {"*": {}, "x": {"type": "categorical"}}}, "column 'x' has type double"),
    "a vector of unknown size": ({"v": LISTS}, {}, "column 'v' has lists of any length"),
    "a vector of the wrong size": (
        {"v": LISTS},
        {"features": {"*": {}, "v": {"type": "vector", "size": 3}}},
        "vector 'v' has size 3 but a row holds 2",
    ),
    "an infinity": ({"x": with_one(X, math.inf)}, {}, "column 'x' holds an infinity"),
    "an integer that float32 lacks": (
        {"n": with_one(IDS, 2**24 + 1)},
        {"features": {"*": {}, "n": {"scale": "none"}}},
        r"column 'n' holds the integer 16777217, beyond ±2\*\*24",
    ),
    "an integer that no float has": ({"n": with_one(IDS, 2**60)}, {}, r"'n' holds an integer beyond ±2\*\*53"),
    "a column without a number": (
        {"n": pa.nulls(ROWS, pa.float64())},
        {},
        "column 'n' has no number in the train split",
    ),
    "an empty split": (
        {},
        {"split": {"fractions": {"train": 0.9999, "test": 0.0001}}},
        "split 'test' would be empty .train 60, test 0.",
    ),
    "an unknown version": ({}, {"version": 9}, "has no version 9; its history has versions 0 to 0"),
    "a time before the table": ({}, {"timestamp": "2001-01-01"}, "has no version at 2001-01-01"),
    "a timestamp that is none": ({}, {"timestamp": "yesterday"}, "'yesterday'; want ISO 8601"),
    "a group that is null": (
        {"g": with_one(["u"] * ROWS, None)},
        {"split": {"group": "g"}},
        "split column 'g' is null in 1 rows",
    ),
    "a split by time of text": ({}, {"split": {"time": "c"}}, "split by time of column 'c', which has type string"),
    "a split column without train": (
        {"s": pa.array(["a"] * ROWS)},
        {"split": {"column": "s"}},
        "no row is in the split 'train'",
    ),
    "a split column with a bad name": (
        {"s": with_one(["train"] * ROWS, "a/b")},
        {"split": {"column": "s"}},
        "'a/b' is no name of a split",
    ),
    "a task with a feature's name": (
        {},
        {"labels": {"c": {"column": "y", "type": "binary"}}},
        "label 'c' has the name of a feature",
    ),
    "a shared vocabulary of two types": (
        {"n": pa.array(IDS)},
        {"features": {"c": {"vocabulary": "v"}, "n": {"type": "categorical", "vocabulary": "v"}}},
        "columns 'c' and 'n' share a vocabulary but hold string and int64",
    ),
    "a reserved name": ({"__mltrain_hash": pa.array(IDS)}, {}, "names that start with __mltrain_ are reserved"),
    "no feature": ({}, {"features": {"*": {"drop": True}}}, "no column is a feature"),
    "a day as a key with nulls": (
        {"id": with_one([datetime.date(2020, 1, 1) + datetime.timedelta(days=i) for i in IDS], None)},
        {},
        "key column 'id' is null in 1 rows",
    ),
}


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.replace(" ", "-"))
def test_a_bad_table_is_refused_by_name(case: str, spark: "SparkSession", tmp_path: Path) -> None:
    columns, dataset, message = REFUSED[case]
    table = tables.write(tmp_path / "table", {**good(), **columns})
    with pytest.raises(TableError, match=message) as caught:
        features.build(tables.dataset_file(table, tmp_path / "root", **dataset), spark=spark)
    assert caught.value.exit_code == 2
    assert "Traceback" not in str(caught.value)
    assert not (tmp_path / "root" / "datasets").exists()
    assert not list((tmp_path / "root").glob("shards/*/manifest.json"))


ONE_PROBLEM: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "an infinity": ({"x": with_one(X, math.inf)}, {}, "column 'x' holds an infinity: make it null, or a number"),
    "two large numbers": (
        {"x": pa.array([1e300, -1e300] * (ROWS // 2))},
        {},
        r"column 'x' holds -?1e\+300, beyond [^\n]*",
    ),
    "a large integer": ({"n": with_one(IDS, 2**60)}, {}, r"column 'n' holds an integer beyond ±2\*\*53[^\n]*"),
    "one key": ({"id": pa.array([7] * ROWS)}, {}, "key id: [0-9]+ values occur more than once, among them 7; [^\n]*"),
    "always true": ({"y": pa.array([True] * ROWS)}, {}, "label 'y' holds one class only: 1; [^\n]*"),
}


@pytest.mark.parametrize("case", ONE_PROBLEM, ids=lambda case: case.replace(" ", "-"))
def test_what_follows_from_a_problem_is_not_said_as_another(case: str, spark: "SparkSession", tmp_path: Path) -> None:
    columns, dataset, message = ONE_PROBLEM[case]
    table = tables.write(tmp_path / "table", {**good(), **columns})
    with pytest.raises(TableError) as caught:
        features.build(tables.dataset_file(table, tmp_path / "root", **dataset), spark=spark)
    assert re.fullmatch(rf"table \S+ \(version 0\): {message}", str(caught.value))


def test_all_reasons_are_named_at_once(spark: "SparkSession", tmp_path: Path) -> None:
    columns = {"w": with_one(X, -1.0), "id": with_one(IDS, None), "y": with_one([i % 2 for i in IDS], None)}
    table = tables.write(tmp_path / "table", {**good(), **columns})
    with pytest.raises(TableError) as caught:
        features.build(tables.dataset_file(table, tmp_path / "root", weight="w"), spark=spark)
    message = str(caught.value)
    assert "3 problems" in message
    assert all(f"{what} is" in message for what in ("key column 'id'", "label 'y' (column 'y')", "weight 'w'"))
    with pytest.raises(TableError) as caught:
        features.build(
            tables.dataset_file(table, tmp_path / "root", key=["a", "b"], keep=["q"], weight="v"), spark=spark
        )
    assert all(f"{name!r}" in str(caught.value) for name in ("a", "b", "q", "v"))


def test_strings_that_are_not_utf_8_are_refused_in_every_role_but_as_hashes(
    spark: "SparkSession", tmp_path: Path
) -> None:
    odd = "IF(id = 7, CAST(X'FF61' AS STRING), CAST(id AS STRING))"
    columns = [
        "id",
        "id / 3 AS x",
        "id % 2 AS y",
        *(f"{odd} AS {name}" for name in ("c", "d", "k")),
        f"array({odd}) AS l",
    ]
    spark.range(ROWS).selectExpr(*columns).write.format("delta").save(str(tmp_path / "table"))
    given: dict[str, Any] = {"key": ["id", "k"], "keep": ["d", "l"], "features": {"*": {}, "c": {"buckets": 9}}}
    with pytest.raises(TableError) as caught:
        features.build(tables.dataset_file(tmp_path / "table", tmp_path / "root", **given), spark=spark)
    said = str(caught.value)
    assert all(f"column {name!r} holds a string that is not UTF-8 in 1 rows: decode it" in said for name in "kdl")
    assert "column 'c'" not in said
    given = {"features": {"x": {}, "c": {}}}
    with pytest.raises(TableError, match="column 'c' holds a string that is not UTF-8"):
        features.build(tables.dataset_file(tmp_path / "table", tmp_path / "root", **given), spark=spark)


def test_many_tiny_shards_are_refused_before_one_is_written(spark: "SparkSession", tmp_path: Path) -> None:
    ids = range(1500)
    table = tables.write(tmp_path / "table", {"id": ids, "x": ids, "y": [i % 2 for i in ids]})
    with pytest.raises(TableError, match=r"cut 1,500 rows into [\d,]+ shards, 1.\d rows each; set dataset.rows_per"):
        features.build(tables.dataset_file(table, tmp_path / "root", rows_per_shard=1), spark=spark)
    assert not list((tmp_path / "root").glob("shards/blobs/*"))


def test_an_empty_table_is_refused(spark: "SparkSession", tmp_path: Path) -> None:
    table = tables.write(tmp_path / "table", pa.table(good()).slice(0, 0))
    with pytest.raises(TableError, match=r"version 0\): it has no rows"):
        features.build(tables.dataset_file(table, tmp_path / "root"), spark=spark)


@pytest.mark.parametrize(
    ("table", "kind", "message"),
    [
        ("{here}/nothing", NotFoundError, "there is no Delta table at .*nothing"),
        ("{here}/files", NotFoundError, "there is no Delta table at .*files: it has no _delta_log"),
        ("no_such_table", NotFoundError, "the catalog has no table 'no_such_table'; a path is written with a slash"),
        ("ftp://host/table", RequestError, "scheme 'ftp' is not supported"),
    ],
)
def test_what_is_no_delta_table_is_refused(
    table: str, kind: type[MltrainError], message: str, spark: "SparkSession", tmp_path: Path
) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(kind, match=message) as caught:
        features.build(tables.dataset_file(table.format(here=tmp_path), tmp_path / "root"), spark=spark)
    assert caught.value.exit_code == 2


def test_a_root_that_cannot_be_written_is_refused_before_the_table_is_looked_at(
    spark: "SparkSession", tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageAccessError) as caught:
        features.build(tables.dataset_file(tmp_path / "nothing", tmp_path / "file" / "root"), spark=spark)
    assert caught.value.exit_code == 2
    assert os.listdir(tmp_path) == ["file"]
