"""Datasets that grow from others with a real Spark, compared row by row with fresh builds of the same tables."""

import datetime as dt
import json
import shutil
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deltalake
import numpy as np
import pyarrow as pa
import pytest

from mltrain import features
from mltrain.config import DatasetFile
from mltrain.data import Dataset, Loader
from mltrain.data.diff import diff
from mltrain.data.garbage import collect
from mltrain.errors import DamagedError, MltrainError, NotFoundError, RequestError, TableError
from mltrain.transforms import FittedTransforms
from tests.support import datasets, tables

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

ROWS = 1200
EPOCH = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def rows(start: int, stop: int) -> pa.Table:
    """Rows of many kinds, with a key of two columns. What a row is depends on its number alone."""
    ids = np.arange(start, stop)
    return pa.table(
        {
            "a": ids % 50,
            "b": [f"k{i // 50}" for i in ids],
            "x": pa.array(ids * 0.5, mask=ids % 7 == 0),
            "c": pa.array([f"c{i % 5}" for i in ids]),
            # 4 is far more frequent than 2, and 2 than 7, in every version of the table: so is their vocabulary.
            "l": pa.array([[4, None, 2, 7][: i % 4 + 1] if i % 11 else None for i in ids], pa.list_(pa.int64())),
            "v": pa.array([[float(i), 1.0] for i in ids], pa.list_(pa.float32())),
            "w": 1.0 + ids % 3,
            "note": pa.array([None if i % 5 == 0 else f"note {i}" for i in ids]),
            "at": pa.array([[None, MOMENT + timedelta(microseconds=int(i))] for i in ids]),
            "y": ids % 2,
        }
    )


def dataset_file(table: str | Path, root: Path, **dataset: Any) -> DatasetFile:
    """Settings whose transforms do not depend on the rows: a fresh build of a later table encodes rows alike."""
    given = {
        "key": ["a", "b"],
        "weight": "w",
        "keep": ["note", "at"],
        "rows_per_shard": 100,
        "defaults": {"numeric": {"scale": "none", "impute": "zero"}},
        "features": {
            "*": {},
            "c": {"type": "hashed", "buckets": 50},
            "l": {"type": "id_list", "vocabulary": "l"},
            "v": {"size": 2},
        },
    }
    return tables.dataset_file(table, root, **{**given, **dataset})


def blobs(root: Path) -> set[str]:
    return {path.name for path in (root / "shards" / "blobs").iterdir()}


def shards(dataset: Dataset) -> set[str]:
    return {f"{entry.blob}.arrow" for entry in dataset.manifest.entries()}


def increments(dataset: Dataset, split: str = "train") -> list[int]:
    return sorted(set(dataset.manifest.index.increment[dataset.manifest.shards(split)].tolist()))


def read_once(dataset: Dataset) -> Counter[int]:
    """Row numbers as one shuffled epoch gives them out."""
    loader = Loader(dataset, "train", global_batch_size=64, seed=1, row_numbers=True)
    return Counter(int(row) for batch in loader for row in np.asarray(batch["__row__"]))


def rows_of(dataset: Dataset) -> list[tuple[Any, ...]]:
    """What a dataset has of each row, as the table has it."""
    parts = [dataset.read(split, ["a", "b", "x", "w", "note", "at", "y"]) for split in dataset.splits]
    return sorted(tuple(row.values()) for row in pa.concat_tables(parts).to_pylist())


def rows_in(spark: "SparkSession", table: str) -> list[tuple[Any, ...]]:
    """The same of a table, as Spark reads it: a missing x is 0 in a dataset."""
    read = spark.read.format("delta").load(table).selectExpr("a", "b", "coalesce(x, 0.0)", "w", "note", "at", "y")
    return sorted(tuple(row.values()) for row in read.toArrow().to_pylist())


def test_a_grown_dataset_has_the_rows_of_a_fresh_build_whatever_delta_did(
    spark: "SparkSession", tmp_path: Path
) -> None:
    table, root = tables.write(tmp_path / "table", rows(0, ROWS)), tmp_path / "root"

    def build(name: str, base: str | None = None) -> tuple[features.BuildReport, Dataset]:
        report = features.build(dataset_file(table, root, name=name, base=base), spark=spark)
        return report, Dataset.open(report.uri)

    _, first = build("grown")
    deltalake.write_deltalake(table, rows(ROWS, ROWS + 60), mode="append")
    delta = deltalake.DeltaTable(table)
    delta.delete("b = 'k3' AND a < 5")
    # What only a kept column, a label, the place of a null in a list, or a microsecond in one tells.
    delta.update(new_values={"note": "other"}, predicate="b = 'k5' AND a = 1")
    delta.update(updates={"y": "1 - y"}, predicate="b = 'k6' AND a = 1")
    moved = rows(206, 207).set_column(4, "l", pa.array([[4, 2, None]]))
    later = rows(207, 208)
    later = later.set_column(8, "at", pa.array([[None, MOMENT + timedelta(microseconds=208)]]))
    more = rows(ROWS + 55, ROWS + 65).set_column(2, "x", pa.array([-1.0] * 10))
    merge = delta.merge(pa.concat_tables([moved, later, more]), "s.a = t.a AND s.b = t.b", "s", "t")
    merge.when_matched_update_all().when_not_matched_insert_all().execute()
    tables.write(tmp_path / "table", rows(ROWS + 65, ROWS + 66), rows(ROWS + 66, ROWS + 67))
    report, second = build("grown", "grown")
    assert report.changes == {"added": 67, "changed": 4, "removed": 5} and report.base == first.digest
    assert diff(build("fresh")[1], second).equal
    assert second.verify().ok and second.manifest.transforms == first.manifest.transforms
    assert increments(second) == [0, 1]
    assert read_once(second) == dict.fromkeys(range(second.rows("train")), 1)
    seen = diff(first, second).splits
    counts = [sum(getattr(one, what) for one in seen.values()) for what in ("added", "removed", "changed")]
    assert counts == [67, 5, 4]
    # Nine rows at most were not in the shards of their own.
    assert len(shards(first) & shards(second)) >= len(shards(first)) - 9
    assert second.provenance["base"] == first.digest

    # The name has moved on, the digest has not; the same rows grown from the same base are the same dataset.
    assert build("again", f"grown@{first.digest}")[0].digest == second.digest
    before = blobs(root)
    assert deltalake.DeltaTable(table).optimize.compact()["numFilesRemoved"] > 1
    optimized, third = build("grown", "grown")
    assert (optimized.digest, optimized.reused) == (second.digest, True)
    assert optimized.changes == {"added": 0, "changed": 0, "removed": 0}
    assert blobs(root) == before and third.provenance["table"]["version"] == deltalake.DeltaTable(table).version()
    assert build("grown", "grown")[0].changes is None, "the same version again: nothing to look at"

    # Once more, from a dataset of two increments; all rows of one key's value leave, and with them whole shards.
    deltalake.DeltaTable(table).delete("a < 40")
    deltalake.write_deltalake(table, rows(ROWS + 70, ROWS + 75), mode="append")
    deltalake.DeltaTable(table).update(updates={"x": "x + 1"}, predicate="b = 'k24'")
    _, fourth = build("grown", "grown")
    assert diff(build("fresh")[1], fourth).equal
    assert fourth.verify().ok
    assert read_once(fourth) == dict.fromkeys(range(fourth.rows("train")), 1)
    collected = collect(fourth.store, grace_s=0, unnamed=True)
    assert collected.removed and fourth.verify().ok


def test_one_percent_more_rows_are_at_most_one_and_a_half_percent_more_bytes(
    spark: "SparkSession", tmp_path: Path
) -> None:
    def wide(start: int, stop: int) -> pa.Table:
        values = np.random.default_rng(start).random((stop - start, 64), np.float32)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1)), 64).cast(pa.list_(pa.float32()))
        return pa.table({"id": np.arange(start, stop), "v": vectors, "y": np.arange(start, stop) % 2})

    table, root = tables.write(tmp_path / "table", wide(0, 20_000)), tmp_path / "root"
    file = tables.dataset_file(table, root, features={"v": {"size": 64}}, rows_per_shard=2000)
    features.build(file, spark=spark)
    before = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    deltalake.write_deltalake(table, wide(20_000, 20_200), mode="append")
    grown = file.model_copy(update={"dataset": file.dataset.model_copy(update={"base": "test"})})
    features.build(grown, spark=spark)
    after = {path: path.stat().st_size for path in root.rglob("*") if path.is_file()}
    written = sum(size for path, size in after.items() if path not in before or path.parent.name == "datasets")
    assert written <= 0.015 * sum(before.values())


def grown(spark: "SparkSession", table: Path, root: Path, *, compared: str | None, **given: Any) -> Dataset:
    """The dataset, grown once more, with the rows that the table has."""
    file = dataset_file(table, root, name="grown", rows_per_shard=400, **{"base": "grown", **given})
    dataset = Dataset.open(features.build(file, spark=spark).uri)
    assert rows_of(dataset) == rows_in(spark, str(table))
    assert dataset.provenance.get("compared") == compared, dataset.provenance["scan_reason"]
    return dataset


def test_of_a_table_with_deletion_vectors_only_what_changed_is_read(
    spark: "SparkSession", tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    # Spark writes timestamps of 96 bits otherwise, which tasks leave to it in lists.
    spark.conf.set("spark.sql.parquet.outputTimestampType", "TIMESTAMP_MICROS")
    request.addfinalizer(lambda: spark.conf.unset("spark.sql.parquet.outputTimestampType"))
    path, root = tmp_path / "table", tmp_path / "root"
    table = f"delta.`{path}`"
    for name, part in (("first", rows(0, 300)), ("more", rows(300, 320))):
        spark.createDataFrame(part).selectExpr("*", "CAST(a % 3 AS STRING) AS part").createOrReplaceTempView(name)
    spark.sql(
        f"CREATE TABLE {table} USING delta PARTITIONED BY (part) "
        "TBLPROPERTIES ('delta.enableDeletionVectors' = 'true') AS SELECT /*+ REPARTITION(6) */ * FROM first"
    )
    patterns = {**dataset_file(path, root).dataset.model_dump(exclude_none=True)["features"], "part": {"drop": True}}
    first = grown(spark, path, root, compared=None, base=None, features=patterns)
    spark.sql(f"DELETE FROM {table} WHERE b = 'k3' AND a < 5")
    spark.sql(
        f"MERGE INTO {table} t USING more s ON s.a - 19 = t.a AND t.b = 'k2' WHEN MATCHED THEN UPDATE SET note = 'new' "
        "WHEN NOT MATCHED THEN INSERT * WHEN NOT MATCHED BY SOURCE AND t.b = 'k4' AND t.a > 40 THEN DELETE"
    )
    second = grown(spark, path, root, compared="changed files", features=patterns)
    assert second.provenance["changes"] == {"added": 19, "changed": 1, "removed": 5 + 9}
    spark.sql(f"RESTORE TABLE {table} TO VERSION AS OF 0")
    third = grown(spark, path, root, compared="changed files", features=patterns)
    assert third.provenance["changes"] == {"added": 5 + 9, "changed": 1, "removed": 19}
    assert third.verify().ok and diff(first, third).equal


def test_files_are_left_out_only_where_it_is_certain_that_they_hold_the_same_rows(
    spark: "SparkSession", tmp_path: Path
) -> None:
    path, root = tmp_path / "table", tmp_path / "root"
    tables.write(path, *(rows(start, start + 100) for start in range(0, 500, 100)))
    table = deltalake.DeltaTable(path)
    grown(spark, path, root, compared=None, base=None)
    tables.write(path, rows(500, 520))
    table.update_incremental()
    table.update(updates={"y": "1 - y"}, predicate="b = 'k2' AND a = 1")
    assert grown(spark, path, root, compared="changed files").provenance["changes"]["changed"] == 1

    table.delete("b = 'k4'")
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    after = grown(spark, path, root, compared="all files")
    assert after.provenance["changes"] == {"added": 0, "changed": 0, "removed": 50}
    assert "part-" in after.provenance["scan_reason"]

    # A copy has the same id; the version that the dataset was made of is another one there.
    copy = tmp_path / "copy"
    shutil.copytree(path, copy)
    table.delete("b = 'k6' AND a < 5")
    deltalake.DeltaTable(copy).delete("b = 'k6' AND a > 5")
    grown(spark, path, root, compared="changed files")
    deltalake.DeltaTable(copy).delete("b = 'k8' AND a = 1")
    assert "does not have the files" in grown(spark, copy, root, compared="all files").provenance["scan_reason"]

    other = deltalake.DeltaTable(copy)
    other.update(updates={"y": "1 - y"}, predicate="b = 'k2' AND a = 1")
    other.delete("b = 'k3'")
    tables.write(copy, rows(530, 540))
    spark.conf.set("spark.sql.parquet.int96TimestampConversion", "true")
    try:
        last = grown(spark, copy, root, compared="all rows")
    finally:
        spark.conf.unset("spark.sql.parquet.int96TimestampConversion")
    assert last.verify().ok and last.provenance["changes"] == {"added": 10, "changed": 1, "removed": 50}


def test_a_table_that_is_overwritten_replaced_or_mapped_anew_grows_by_its_rows(
    spark: "SparkSession", tmp_path: Path
) -> None:
    path, root = tmp_path / "table", tmp_path / "root"
    tables.write(path, rows(0, 200), rows(200, 300))
    grown(spark, path, root, compared=None, base=None)

    # All files are others, most rows are not.
    deltalake.write_deltalake(str(path), rows(20, 330), mode="overwrite")
    over = grown(spark, path, root, compared="all files")
    assert over.provenance["changes"] == {"added": 30, "changed": 0, "removed": 20}

    # Columns in another order, and names that are not those in the files.
    spark.createDataFrame(rows(25, 335).select(sorted(rows(0, 1).column_names))).createOrReplaceTempView("replaced")
    spark.sql(f"CREATE OR REPLACE TABLE delta.`{path}` USING delta AS SELECT * FROM replaced")
    mapping = "'delta.columnMapping.mode' = 'name', 'delta.minReaderVersion' = '2', 'delta.minWriterVersion' = '5'"
    spark.sql(f"ALTER TABLE delta.`{path}` SET TBLPROPERTIES ({mapping})")
    spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN x TO z")
    spark.sql(f"ALTER TABLE delta.`{path}` RENAME COLUMN z TO x")
    mapped = grown(spark, path, root, compared="all rows")
    assert mapped.provenance["changes"] == {"added": 5, "changed": 0, "removed": 5}
    assert "column mapping" in mapped.provenance["scan_reason"]

    # Another table at the same place, whose log has the version that the base was made of.
    version = deltalake.DeltaTable(str(path)).version()
    shutil.rmtree(path)
    tables.write(path, rows(30, 336), *(rows(336 + i, 337 + i) for i in range(version)))
    assert deltalake.DeltaTable(str(path)).version() == version
    last = grown(spark, path, root, compared="all files")
    assert last.verify().ok and last.provenance["changes"] == {"added": 1 + version, "changed": 0, "removed": 5}


@pytest.fixture(scope="module")
def base(spark: "SparkSession", tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A table, and a root with the dataset ``base`` of all of it. Not to be changed."""
    here = tmp_path_factory.mktemp("base")
    table = tables.write(here / "table", rows(0, ROWS))
    features.build(dataset_file(table, here / "root", name="base"), spark=spark)
    return table, here / "root"


@pytest.fixture
def copied(base: tuple[str, Path], tmp_path: Path) -> tuple[str, Path]:
    """The same, to be changed."""
    shutil.copytree(base[0], tmp_path / "table")
    shutil.copytree(base[1], tmp_path / "root")
    return str(tmp_path / "table"), tmp_path / "root"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"base": "nobody"}, "there is no dataset 'nobody' below .* the first time"),
        ({"base": "base@" + "0" * 64}, "there is no dataset 0000"),
        ({"weight": None, "keep": ["note", "at", "w"]}, "dataset.weight is not what it was"),
        ({"split": {"seed": 3}}, "dataset.split is not what it was"),
        ({"key": ["b", "a"]}, "dataset.key is not what it was"),
        ({"defaults": {"numeric": {"scale": "none", "impute": 1.0}}}, "feature 'x': impute is not what it was"),
        (
            {"features": {"*": {}, "c": {"type": "hashed", "buckets": 50}, "v": {"drop": True}}},
            "the base has the feature",
        ),
        ({"made": True}, "cannot grow"),
    ],
)
def test_what_cannot_grow_is_refused_with_advice(
    spark: "SparkSession", base: tuple[str, Path], changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    table, root = base
    if changed.pop("made", False):
        root = tmp_path
        datasets.make_dataset(tmp_path, name="base")
    with pytest.raises((TableError, RequestError, NotFoundError), match=message) as caught:
        features.build(dataset_file(table, root, name="grown", **{"base": "base", **changed}), spark=spark)
    assert "build without dataset.base" in str(caught.value)
    assert not (root / "datasets" / "grown.json").exists()


def test_a_column_that_is_new_is_left_out_when_told_to(spark: "SparkSession", copied: tuple[str, Path]) -> None:
    table, root = copied
    later = rows(ROWS, ROWS + 10).append_column("extra", pa.array([1.0] * 10))
    deltalake.write_deltalake(table, later, mode="append", schema_mode="merge")
    file = dataset_file(table, root, name="base", base="base")
    with pytest.raises(TableError, match=r"'extra' is a feature .* \(features: \{extra: \{drop: true\}\}\)"):
        features.build(file, spark=spark)
    patterns = {**file.dataset.model_dump(exclude_none=True)["features"], "extra": {"drop": True}}
    report = features.build(dataset_file(table, root, name="base", base="base", features=patterns), spark=spark)
    assert report.changes == {"added": 10, "changed": 0, "removed": 0}


def kinds(start: int, stop: int) -> pa.Table:
    """Rows of kinds whose transforms are fitted: later ones have terms that the first 200 do not have."""
    ids = list(range(start, stop))
    return pa.table(
        {
            "id": ids,
            "mean": pa.array([None if i % 6 == 0 else i / 7 for i in ids]),
            "whole": pa.array([i * 3 for i in ids]),
            "price": pa.array([None if i % 5 == 0 else Decimal(i) / 100 for i in ids], pa.decimal128(12, 2)),
            "word": [f"w{i % 7 + i // 200}" for i in ids],
            "words": pa.array([[f"w{i % 9 + j + i // 200}" for j in range(i % 4)] for i in ids], pa.list_(pa.string())),
            "v": pa.array([[i * 0.5, -1.0, 2.0] for i in ids], pa.list_(pa.float32())),
            "at": pa.array([None if i % 3 == 0 else EPOCH + dt.timedelta(seconds=i) for i in ids]),
            "y": [i % 2 for i in ids],
        }
    )


@pytest.mark.parametrize("by_tasks", [True, False])
def test_rows_of_every_kind_are_encoded_by_the_transforms_of_the_base(
    spark: "SparkSession", tmp_path: Path, by_tasks: bool
) -> None:
    path, root = tmp_path / "table", tmp_path / "root"
    tables.write(path, kinds(0, 100), kinds(100, 200))
    given: dict[str, Any] = {
        "keep": ["at"],
        "features": {
            "*": {},
            "mean": {"missing": "indicator", "impute": "mean"},
            "whole": {"missing": "refuse"},
            "price": {"decimal_scale": 2, "impute": "median"},
            "word": {"type": "categorical", "vocabulary": "word"},
            "words": {"type": "id_list", "vocabulary": "word"},
            "v": {"size": 3},
        },
    }
    base = Dataset.open(features.build(tables.dataset_file(path, root, **given), spark=spark).uri)
    tables.write(path, kinds(200, 240))
    table = deltalake.DeltaTable(path)
    table.delete("id IN (3, 104)")
    table.update(updates={"word": "'never seen'", "mean": "NULL"}, predicate="id = 105")
    spark.conf.set("spark.sql.parquet.int96TimestampConversion", str(not by_tasks).lower())
    try:
        report = features.build(tables.dataset_file(path, root, base="test", **given), spark=spark)
        later = Dataset.open(report.uri)
        assert report.changes == {"added": 40, "changed": 1, "removed": 2}
        assert later.provenance["compared"] == ("all files" if by_tasks else "all rows")
        tables.write(path, kinds(240, 243).set_column(2, "whole", pa.array([None] * 3, pa.int64())))
        with pytest.raises(TableError, match="'whole' has no value in 3 rows"):
            features.build(tables.dataset_file(path, root, base="test", **given), spark=spark)
    finally:
        spark.conf.unset("spark.sql.parquet.int96TimestampConversion")
    rows = deltalake.DeltaTable(path, version=table.version()).to_pyarrow_table().sort_by("id").combine_chunks()
    fitted = FittedTransforms.from_json(base.manifest.transforms, base.store.get)
    wanted = fitted.apply(rows.to_batches()[0])
    found = pa.concat_tables([later.read(split) for split in later.splits]).sort_by("id")
    assert later.verify().ok and len(found) == 238 and "mean__missing" in found.schema.names
    for name in wanted.schema.names:
        assert found[name].to_pylist() == wanted.column(name).to_pylist(), name
    assert found["at"].to_pylist() == rows["at"].to_pylist()
    assert 0 in found["word"].to_pylist(), "unseen words have the id 0"


def lacks_a_shard(root: Path, dataset: Dataset) -> None:
    (root / "shards" / "blobs" / f"{dataset.manifest.entry(0).blob}.arrow").unlink()


def has_flipped_bits(root: Path, dataset: Dataset) -> None:
    """In features, of which growth reads only those of shards that change."""
    for entry in dataset.manifest.entries():
        path = root / "shards" / "blobs" / f"{entry.blob}.arrow"
        data = bytearray(path.read_bytes())
        at = data.index(np.array([1.0, 1.0], np.float32).tobytes()) if entry.rows > 8 else len(data) // 2
        data[at] ^= 0xFF
        path.write_bytes(data)


def test_a_base_without_its_statistics_is_named_and_nothing_is_published(
    spark: "SparkSession", copied: tuple[str, Path]
) -> None:
    table, root = copied
    before = Dataset.open("base", root=root)
    (root / "shards" / "blobs" / f"{before.manifest.statistics_blob.name}.arrow").unlink()
    deltalake.DeltaTable(table).update(updates={"x": "x + 1"}, predicate="b = 'k4'")
    with pytest.raises(DamagedError, match=r"shards/blobs/\w+\.arrow is missing"):
        features.build(dataset_file(table, root, name="base", base="base"), spark=spark)
    assert json.loads((root / "datasets" / "base.json").read_text())["digest"] == before.digest


@pytest.mark.parametrize("damage", [lacks_a_shard, has_flipped_bits])
def test_shards_that_the_base_has_lost_are_named_and_their_rows_encoded_again(
    spark: "SparkSession",
    copied: tuple[str, Path],
    damage: Callable[[Path, Dataset], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    table, root = copied
    before = Dataset.open("base", root=root)
    damage(root, before)
    deltalake.DeltaTable(table).update(updates={"x": "x + 1"}, predicate="b = 'k4'")
    features.build(dataset_file(table, root, name="base", base="base"), spark=spark)
    first = before.manifest.entry(0)
    assert f"{first.blob}.arrow is missing or damaged" in caplog.text
    grown = Dataset.open("base", root=root)
    assert any(first.blob in path for path in grown.provenance["lost"])
    assert grown.verify().ok
    assert rows_of(grown) == rows_in(spark, table)


def test_a_later_table_that_cannot_be_this_dataset_leaves_the_base_as_it_is(
    spark: "SparkSession", copied: tuple[str, Path]
) -> None:
    table, root = copied
    file = dataset_file(table, root, name="base", base="base")
    before = Dataset.open("base", root=root)

    def refused(part: pa.Table, message: str) -> None:
        deltalake.write_deltalake(table, part, mode="append")
        with pytest.raises(MltrainError, match=message):
            features.build(file, spark=spark)
        version = deltalake.DeltaTable(table).version() - 1
        deltalake.DeltaTable(table).restore(version)
        assert Dataset.open("base", root=root).digest == before.digest

    new = rows(ROWS, ROWS + 20)
    refused(pa.concat_tables([new, rows(10, 12), new.slice(3, 1)]), "3 values occur more than once")
    short = pa.array([[1.0]] * 20, pa.list_(pa.float32()))
    vector, label = (new.schema.get_field_index(name) for name in ("v", "y"))
    refused(new.set_column(vector, "v", short), "'v'")
    refused(new.set_column(label, "y", pa.array([None] * 20, pa.int64())), "label 'y' .* is null or NaN in 20 rows")
    refused(new.set_column(label, "y", pa.array([2] * 20)), "'y'")
    assert before.verify().ok


def test_builders_that_grow_one_base_at_once_publish_one_dataset(
    spark: "SparkSession", copied: tuple[str, Path]
) -> None:
    table, root = copied
    reference = f"base@{Dataset.open('base', root=root).digest}"
    deltalake.write_deltalake(table, rows(ROWS, ROWS + 30), mode="append")
    deltalake.DeltaTable(table).delete("b = 'k2'")
    file = dataset_file(table, root, name="grown", base=reference)
    sessions = [spark.newSession() for _ in range(2)]
    for session in sessions:
        session.conf.set("spark.databricks.delta.snapshotPartitions", "2")
    with ThreadPoolExecutor(2) as pool:
        reports = list(pool.map(lambda session: features.build(file, spark=session), sessions))
    assert len({report.digest for report in reports}) == 1
    grown = Dataset.open("grown", root=root)
    assert grown.verify().ok and sum(map(grown.rows, grown.splits)) == ROWS + 30 - 50
