"""Datasets built by a real Spark from real Delta tables, compared with what pandas says."""

import datetime
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltalake
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mltrain import features
from mltrain.data import Dataset
from mltrain.features.engine import arrow_batches
from mltrain.transforms import FittedTransforms
from tests.support import tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="module")
def adult(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tables.write(tmp_path_factory.mktemp("adult") / "table", tables.adult())


def test_the_adult_table_becomes_what_pandas_computes_independently(
    spark: "SparkSession", adult: str, tmp_path: Path
) -> None:
    file = tables.dataset_file(
        adult,
        tmp_path,
        name="adult",
        key=["row_id"],
        label={"column": "income", "type": "binary", "positive": ">50K"},
        rows_per_shard=2000,
        features={
            "age": {"impute": "mean"},
            "*": {},
            "occupation": {"min_count": 500},
            "native-country": {"max_size": 5},
        },
    )
    report = features.build(file, spark=spark)
    dataset = Dataset.open(report.uri)
    source = tables.adult().to_pandas().set_index("row_id")
    splits = {split: dataset.to_pandas(split).set_index("row_id") for split in report.rows}
    assert {name: len(frame) for name, frame in splits.items()} == dict(report.rows)
    assert sorted(np.concatenate([frame.index for frame in splits.values()])) == list(range(len(source)))
    assert report.shards == len(dataset.manifest.index) > 16

    train = source.loc[splits["train"].index]
    for name in ("age", "fnlwgt", "education-num", "capital-gain", "capital-loss", "hours-per-week"):
        center, scale = train[name].mean(), train[name].std(ddof=0)
        for frame in splits.values():
            expected = ((source.loc[frame.index, name] - center) / scale).astype(np.float32)
            np.testing.assert_allclose(frame[name], expected, rtol=1e-5, atol=1e-6)
    for name, minimum, size in (("workclass", 1, None), ("occupation", 500, None), ("native-country", 1, 5)):
        counts = train[name].value_counts()
        ranked = sorted(((-n, value) for value, n in counts.items() if n >= minimum))[:size]
        ids = {value: i + 1 for i, (_, value) in enumerate(ranked)}
        assert dataset.schema.column(name).cardinality == len(ids) + 1
        for frame in splits.values():
            assert frame[name].tolist() == [ids.get(value, 0) for value in source.loc[frame.index, name]]
    for frame in splits.values():
        assert frame["income"].tolist() == [float(value == ">50K") for value in source.loc[frame.index, "income"]]
    shares = {name: n / len(source) for name, n in report.rows.items()}
    assert shares == pytest.approx({"train": 0.8, "validation": 0.1, "test": 0.1}, abs=0.01)


def test_the_fitted_transforms_make_the_same_rows_again(spark: "SparkSession", tmp_path: Path) -> None:
    rows = 6000
    wide = {
        "id": range(rows),
        "y": [i % 2 for i in range(rows)],
        "text": [f"t{i}" for i in range(rows)],
        "n": range(rows),
    }
    table = tables.write(tmp_path / "table", wide)
    dataset = Dataset.open(features.build(tables.dataset_file(table, tmp_path / "root"), spark=spark).uri)
    blob = dataset.transforms["vocabularies"]["text"]["blob"]
    fitted = FittedTransforms.from_json(
        dataset.transforms, lambda name: dataset.store.get(f"shards/blobs/{name}.arrow")
    )
    assert dataset.store.exists(f"shards/blobs/{blob}.arrow")
    found = dataset.to_pandas("test").sort_values("id")
    served = fitted.apply(pa.table(wide).take(pa.array(found["id"])).combine_chunks().to_batches()[0], targets=False)
    assert served.column("n").to_pylist() == found["n"].tolist()
    assert served.column("text").to_pylist() == found["text"].tolist() == [0] * len(found)


def build_frames(spark: "SparkSession", root: Path, rows: dict[str, Any], **dataset: Any) -> dict[str, pd.DataFrame]:
    table = tables.write(root / "table", rows)
    report = features.build(tables.dataset_file(table, root / "root", **dataset), spark=spark)
    opened = Dataset.open(report.uri)
    return {split: opened.to_pandas(split) for split in opened.splits}


def test_a_group_is_never_divided(spark: "SparkSession", tmp_path: Path) -> None:
    ids = range(1000)
    rows = {"id": ids, "user": [f"u{i % 60}" for i in ids], "x": ids, "y": [i % 2 for i in ids]}
    found = build_frames(spark, tmp_path, rows, split={"group": "user"}, keep=["user"])
    users = [set(frame["user"]) for frame in found.values()]
    assert sum(map(len, users)) == len(set.union(*users)) == 60


def test_a_time_split_puts_the_oldest_rows_first_and_keeps_equal_times_together(
    spark: "SparkSession", tmp_path: Path
) -> None:
    ids = np.arange(1000)
    days = [datetime.date(1969, 12, 1) + datetime.timedelta(days=int(i * 7 % 100)) for i in ids]
    rows = {"id": ids, "day": pa.array(days), "x": ids, "y": ids % 2}
    found = build_frames(spark, tmp_path, rows, split={"time": "day"}, keep=["day"])
    assert {name: len(frame) for name, frame in found.items()} == {"train": 800, "validation": 100, "test": 100}
    assert found["train"]["day"].max() < found["validation"]["day"].min()
    assert found["validation"]["day"].max() < found["test"]["day"].min()


def test_a_stratified_split_keeps_the_shares_of_each_class_exactly(spark: "SparkSession", tmp_path: Path) -> None:
    ids = np.arange(3000)
    rows = {"id": ids, "x": ids, "y": (ids % 30 == 0).astype(int)}
    found = build_frames(spark, tmp_path, rows, split={"method": "stratified"})
    assert {name: (len(frame), int(frame["y"].sum())) for name, frame in found.items()} == {
        "train": (2400, 80),
        "validation": (300, 10),
        "test": (300, 10),
    }


def test_a_column_names_the_splits(spark: "SparkSession", tmp_path: Path) -> None:
    ids = np.arange(300)
    names = np.array(["test", "train", "holdout"])[ids % 3]
    found = build_frames(spark, tmp_path, {"id": ids, "x": ids, "y": ids % 2, "s": names}, split={"column": "s"})
    assert list(found) == ["train", "test", "holdout"]
    assert set(found["holdout"]["id"]) == set(range(2, 300, 3))


def test_without_a_key_equal_rows_all_arrive(spark: "SparkSession", tmp_path: Path) -> None:
    ids = np.arange(2000)
    rows = {"x": ids % 5 * 1.5, "c": pa.array(["a", None, "c"]).take(pa.array(ids % 3)), "y": ids % 2}
    found = build_frames(
        spark, tmp_path, rows, key=[], keep=["c"], features={"x": {"scale": "none"}}, rows_per_shard=200
    )
    arrived = pd.concat(found.values())
    expected = pd.DataFrame({"x": rows["x"], "c": rows["c"].to_pylist(), "y": rows["y"]})
    counts = [
        frame.astype({"y": int}).value_counts(["x", "c", "y"], dropna=False).to_dict() for frame in (arrived, expected)
    ]
    assert {str(key): n for key, n in counts[0].items()} == {str(key): n for key, n in counts[1].items()}
    assert 1500 < len(found["train"]) < 1700


def test_a_version_or_a_time_picks_the_rows_and_the_latest_is_recorded(spark: "SparkSession", tmp_path: Path) -> None:
    def part(start: int) -> dict[str, Any]:
        ids = range(start, start + 100)
        return {"id": ids, "x": [float(i) for i in ids], "y": [i % 2 for i in ids]}

    table = tables.write(tmp_path / "table", part(0), part(100), part(200))
    # Spark takes a version's time from its file; the commit in it says an earlier one on a busy machine.
    written = (Path(table) / "_delta_log" / f"{1:020}.json").stat().st_mtime
    moment = datetime.datetime.fromtimestamp(written, datetime.UTC).isoformat()
    for given, version in (({}, 2), ({"version": 0}, 0), ({"timestamp": moment}, 1)):
        report = features.build(tables.dataset_file(table, tmp_path / "root", **given), spark=spark)
        record = json.loads((tmp_path / "root" / "builds" / f"{report.build_id}.json").read_text())
        assert sum(report.rows.values()) == 100 * (version + 1)
        assert record["table"]["version"] == version
        assert record["table"]["id"] == str(deltalake.DeltaTable(table).metadata().id)


def test_the_same_build_again_is_reused_unless_something_of_it_is_gone_or_damaged(
    spark: "SparkSession", tmp_path: Path
) -> None:
    ids = range(100)
    table = tables.write(tmp_path / "table", {"id": ids, "x": ids, "y": [i % 2 for i in ids]})
    file = tables.dataset_file(table, tmp_path / "root")
    first = features.build(file, spark=spark)
    again = features.build(file, spark=spark)
    assert (first.reused, again.reused, again.digest) == (False, True, first.digest)
    reordered = tables.dataset_file(table, tmp_path / "root", features={"x": {}, "*": {}})
    assert features.build(reordered, spark=spark).digest == first.digest
    folder = tmp_path / "root" / "shards" / "blobs"
    whole = {shard.name: shard.read_bytes() for shard in folder.iterdir()}
    for number, (name, content) in enumerate(sorted(whole.items())):
        if number % 2:
            (folder / name).unlink()
        else:
            (folder / name).write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    mended = features.build(file, spark=spark)
    assert mended.digest == first.digest
    assert {shard.name: shard.read_bytes() for shard in folder.iterdir()} == whole
    assert Dataset.open(mended.uri).verify().damaged == {}


def test_a_catalog_table_is_found_by_its_name(spark: "SparkSession", tmp_path: Path) -> None:
    ids = range(100)
    table = tables.write(tmp_path / "table", {"id": ids, "x": ids, "y": [i % 2 for i in ids]})
    spark.sql(f"CREATE TABLE named_for_a_test USING delta LOCATION '{table}'")
    try:
        report = features.build(tables.dataset_file("default.named_for_a_test", tmp_path / "root"), spark=spark)
    finally:
        spark.sql("DROP TABLE named_for_a_test")
    assert report.digest == features.build(tables.dataset_file(table, tmp_path / "other"), spark=spark).digest


def test_table_and_dataset_in_object_storage(spark: "SparkSession", bucket: str, tmp_path: Path) -> None:
    ids = range(500)
    rows = {"id": ids, "x": ids, "y": [i % 2 for i in ids]}
    table = tables.write(tmp_path / "table", rows)
    spark.read.format("delta").load(table).write.format("delta").save(f"{bucket.replace('s3://', 's3a://')}/lake/t")
    remote = features.build(tables.dataset_file(f"{bucket}/lake/t", f"{bucket}/ml"), spark=spark)
    local = features.build(tables.dataset_file(table, tmp_path / "root"), spark=spark)
    assert remote.digest == local.digest
    assert Dataset.open(f"{bucket}/ml/datasets/test").rows("train") == local.rows["train"]


@pytest.mark.parametrize(("kind", "size", "lifted"), [(pa.string(), 0, False), (pa.list_(pa.float32()), 8, True)])
def test_the_limit_in_bytes_is_lifted_only_where_rows_have_a_known_size(
    spark: "SparkSession", kind: pa.DataType, size: int, lifted: bool
) -> None:
    given = spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch")
    schema = pa.schema([("id", pa.int64()), ("c", kind)])
    with arrow_batches(spark, schema, {"c": size} if size else {}):
        during = spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch")
    assert (during != given) is lifted
    assert spark.conf.get("spark.sql.execution.arrow.maxBytesPerBatch") == given
