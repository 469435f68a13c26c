"""Columns of any name that Delta allows, in every role."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest

from mltrain import features
from mltrain.data import Dataset
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 120
NAMES = ["a.b", "t`k", "a b", "[z]", 'q"q', "a$b", "ünï", "a*", "it's", "%d{n}"]


def rows() -> dict[str, Any]:
    """Columns for every role, of every name."""
    columns: dict[str, Any] = {}
    for name in NAMES:
        columns |= {
            f"key {name}": pa.array(range(ROWS)),
            f"label {name}": pa.array([i % 2 for i in range(ROWS)]),
            f"weight {name}": pa.array([1.0 + i for i in range(ROWS)]),
            f"kept {name}": pa.array([i * 7 for i in range(ROWS)]),
            f"split {name}": pa.array([("train", "test")[i % 4 == 0] for i in range(ROWS)]),
            f"group {name}": pa.array([i // 4 for i in range(ROWS)]),
            f"stratum {name}": pa.array([f"s{i % 2}" for i in range(ROWS)]),
            name: pa.array([float(i) for i in range(ROWS)]),
            f"word {name}": pa.array([f"w{i % 3}" for i in range(ROWS)]),
            f"list {name}": pa.array([[i % 5, 1] for i in range(ROWS)]),
        }
    return columns


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("a.b", {"column": "split a.b"}),
        ("t`k", {"group": "group t`k"}),
        ("[z]", {"time": "group [z]"}),
        ('q"q', {"method": "stratified", "column": 'stratum q"q'}),
    ],
)
def test_a_column_of_any_name_works_in_every_role(
    name: str, split: dict[str, str], spark: "SparkSession", tmp_path: Path
) -> None:
    file = tables.dataset_file(
        tables.write(tmp_path / "table", rows()),
        tmp_path,
        key=[f"key {one}" for one in NAMES],
        labels={f"task{i}": {"column": f"label {one}", "type": "binary"} for i, one in enumerate(NAMES)},
        weight=f"weight {name}",
        keep=[f"kept {one}" for one in NAMES],
        split=split,
    )
    dataset = Dataset.open(features.build(file, spark=spark).uri)
    frame = dataset.to_pandas("train").set_index(f"key {name}").sort_index()
    assert frame[f"weight {name}"].tolist() == [1.0 + i for i in frame.index]
    for i, one in enumerate(NAMES):
        assert frame[f"kept {one}"].tolist() == [i * 7 for i in frame.index]
        assert frame[f"task{i}"].tolist() == [i % 2 for i in frame.index]
        assert frame[one].is_monotonic_increasing
        assert frame[f"word {one}"].nunique() == 3
        assert len(frame[f"list {one}"].iloc[0]) == 2
    if "column" in split and "method" not in split:
        assert frame.index.tolist() == [i for i in range(ROWS) if i % 4]


def test_a_table_without_a_key_may_have_columns_of_any_name(spark: "SparkSession", tmp_path: Path) -> None:
    label = {"column": "label t`k", "type": "binary"}
    table = tables.write(tmp_path / "table", rows())
    report = features.build(tables.dataset_file(table, tmp_path, key=[], label=label), spark=spark)
    assert sum(report.rows.values()) == ROWS
