"""A dataset beside its table again: what the page on reading says of ids and numbers, and what ``show`` prints."""

import datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pytest
import xxhash

from mltrain import features
from mltrain.cli.app import run
from mltrain.data import Dataset
from mltrain.data.shard import blob_path
from mltrain.transforms import FittedTransforms
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS, BUCKETS = 200, 1000
DAY = datetime.date(2024, 1, 1)
SPLIT = {"fractions": {"train": 1.0}}


def _rows() -> dict[str, Any]:
    days = [DAY + datetime.timedelta(days=i % 10) for i in range(ROWS)]
    return {
        "id": pa.array(range(ROWS)),
        "when": pa.array([datetime.datetime(2024, 1, 1, 12, i % 60) for i in range(ROWS)], pa.timestamp("us", "UTC")),
        "age": pa.array([None if i % 5 == 0 else 20 + i % 50 for i in range(ROWS)]),
        "day": pa.array(days),
        "city": pa.array([None if i % 4 == 0 else f"city {i % 7}" for i in range(ROWS)]),
        "items": pa.array([None if i % 8 == 0 else [i % 3] * (i % 3) for i in range(ROWS)], pa.list_(pa.int64())),
        "h_text": pa.array([None if i == 3 else f"é{i}" for i in range(ROWS)]),
        "h_small": pa.array([i - 9 for i in range(ROWS)], pa.int16()),
        "h_bool": pa.array([i % 2 == 0 for i in range(ROWS)]),
        "h_day": pa.array(days),
        "rare": pa.array([f"r{i}" for i in range(ROWS)]),
        "seldom": pa.array([None if i % 5 else "here" for i in range(ROWS)]),
        "y": pa.array([i % 2 for i in range(ROWS)]),
    }


@pytest.fixture(scope="module")
def report(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> features.BuildReport:
    place = tmp_path_factory.mktemp("shown")
    table = tables.write(place / "table", _rows())
    given = {"*": {}, "h_*": {"buckets": BUCKETS}, "city": {"min_count": 2}, "rare": {"min_count": 2}}
    return features.build(tables.dataset_file(table, place / "root", features=given, split=SPLIT), spark=spark)


@pytest.fixture(scope="module")
def dataset(report: features.BuildReport) -> Dataset:
    return Dataset.open(report.uri)


def test_features_that_are_hardly_more_than_unseen_ids_are_warned_of(report: features.BuildReport) -> None:
    empty, seldom = report.warnings
    assert "the vocabulary of 'rare' is empty" in empty
    assert "80% of the ids of 'seldom' in train are 0" in seldom


def _stored(dataset: Dataset, name: str) -> list[Any]:
    """A column in the order of ids."""
    return list(dataset.read("train", ["id", name]).sort_by("id")[name].to_pylist())


def test_ids_and_numbers_lead_back_to_the_table(dataset: Dataset) -> None:
    rows = _rows()
    assert dataset.vocabulary("city").take(pa.array(_stored(dataset, "city"))).to_pylist() == rows["city"].to_pylist()
    items = dataset.vocabulary("items")
    found = [items.take(pa.array(ids, pa.int32())).to_pylist() for ids in _stored(dataset, "items")]
    assert found == [one or [] for one in rows["items"].to_pylist()]
    fitted = {one["column"]: one for one in dataset.transforms["features"]}
    age = fitted["age"]
    ages = np.array(_stored(dataset, "age")) * age["scale"] + age["center"]
    expected = [age["fill"] if value is None else value for value in rows["age"].to_pylist()]
    np.testing.assert_allclose(ages, expected, rtol=1e-5)


def test_hashed_ids_are_those_that_the_page_says(dataset: Dataset) -> None:
    def expected(value: Any) -> int:
        if value is None:
            return 0
        if isinstance(value, datetime.date):
            value = (value - datetime.date(1970, 1, 1)).days
        data = value.encode() if isinstance(value, str) else int(value).to_bytes(8, "little", signed=True)
        return 1 + xxhash.xxh64_intdigest(data, 0) % (BUCKETS - 1)

    for name in ("h_text", "h_small", "h_bool", "h_day"):
        assert _stored(dataset, name) == [expected(value) for value in _rows()[name].to_pylist()], name


def test_serving_makes_the_features_of_the_build(dataset: Dataset) -> None:
    fitted = FittedTransforms.from_json(dataset.transforms, lambda name: dataset.store.get(blob_path(name)))
    made = fitted.apply(pa.RecordBatch.from_pydict(_rows()), targets=False)
    for name in made.schema.names:
        assert made[name].to_pylist() == _stored(dataset, name), name


def test_show_prints_dates_as_dates_the_columns_in_their_order_and_what_has_no_id(
    dataset: Dataset, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(["dataset", "show", f"{dataset.store.uri}/datasets/test"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (start,) = (number for number, line in enumerate(lines) if line.startswith("The table's values"))
    cells = [line.split() for line in lines[start + 1 :]]
    shown = {line[0]: line for line in cells if line and line[0] in ("when", "age", "day")}
    assert list(shown) == ["when", "age", "day"]
    assert shown["day"][-2:] == ["2024-01-01", "2024-01-10"]
    assert shown["when"][-4:] == ["2024-01-01", "12:00:00", "2024-01-01", "12:59:00"]
    told = {line.split()[0]: line for line in lines[:start] if line.strip()}
    assert told["city"].endswith("50 rows") and told["h_text"].endswith(" 1 rows")
    lists = _rows()["items"].to_pylist()
    ids, empty = sum(len(one or []) for one in lists), sum(not one for one in lists)
    assert told["items"].endswith(f"0 of {ids} ids, {empty} rows without a list or an id")
