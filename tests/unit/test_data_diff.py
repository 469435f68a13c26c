"""What changed between two datasets."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mltrain.cli.app import run
from mltrain.data import Build, Column, Dataset, Schema, ShardEntry, assemble, keys, write_shard
from mltrain.data.diff import diff
from mltrain.data.shard import blob_path
from mltrain.storage import open_store

SCHEMA = Schema(
    (
        Column("id", "key", "carried", "int64"),
        Column("x", "feature", "numeric", "float32"),
        Column("h", "feature", "id_list", "int32", width=0, cardinality=100),
        Column("y", "label", "binary", "float32", classes=(0, 1), type="binary"),
    ),
    ("id",),
)
WITHOUT_KEY = Schema(SCHEMA.columns[1:], ())


def _store(
    root: Path, name: str, rows: dict[int, float], schema: Schema = SCHEMA, transforms: dict[str, Any] | None = None
) -> Dataset:
    """A dataset of two buckets with ``x`` by id; everything else follows from the id."""
    ids = np.array(sorted(rows), np.int64)
    hashes = keys.hash_rows(pa.table({"id": ids}), domain=keys.SHARD_DOMAIN, seed=0)
    store = open_store(root)
    entries = []
    for bucket in (0, 1):
        mine = ids[hashes >> np.uint64(63) == bucket]
        mine = mine[np.argsort(hashes[hashes >> np.uint64(63) == bucket])]
        columns = {
            "id": mine,
            "x": np.array([rows[i] for i in mine.tolist()], np.float32),
            "h": pa.array([list(range(i % 4)) for i in mine.tolist()], pa.list_(pa.int32())),
            "y": (mine % 2).astype(np.float32),
        }
        shard = write_shard(columns, schema, identity=pa.table({"id": mine}))
        store.put(blob_path(shard.blob), memoryview(shard.buffer))
        entries.append(ShardEntry.of(shard, split="train", increment=0, bucket=bucket))
    manifest, blobs = assemble(schema, transforms or {}, ("train",), entries)
    with Build.start(store, name, name) as build:
        build.publish(manifest, blobs, {})
    return Dataset.open(name, root=root)


def test_rows_are_matched_by_key_and_shards_that_are_the_same_file_are_not_read(tmp_path: Path) -> None:
    rows = {i: float(i) for i in range(200)}
    before = _store(tmp_path, "before", rows)
    # A key of the second bucket, so that the first stays the same file.
    second = next(i for i in range(200, 300) if _bucket(i) == 1)
    old = [i for i in range(200) if _bucket(i) == 1]
    changed = {**rows, second: 1.0, old[0]: -1.0, old[1]: -2.0}
    del changed[old[2]]
    found = diff(before, _store(tmp_path, "after", changed))
    split = found.splits["train"]
    assert (split.added, split.removed, split.changed) == (1, 1, 2)
    assert (split.shared_shards, split.read_shards) == (1, 2)
    assert not found.equal


def test_equal_datasets_have_no_difference_whatever_they_are_called(tmp_path: Path) -> None:
    rows = {i: float(i) for i in range(50)}
    assert diff(_store(tmp_path / "a", "a", rows), _store(tmp_path / "b", "b", rows)).equal


def test_without_a_key_rows_are_matched_by_content_as_often_as_both_have_it(tmp_path: Path) -> None:
    before = _store(tmp_path, "before", dict.fromkeys(range(0, 40, 4), 1.0), WITHOUT_KEY)
    after = _store(tmp_path, "after", {**dict.fromkeys(range(0, 28, 4), 1.0), 28: 2.0}, WITHOUT_KEY)
    split = diff(before, after).splits["train"]
    assert (split.added, split.removed, split.changed) == (1, 3, 0)


def test_keys_that_differ_are_said_and_rows_then_matched_by_content(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = dict.fromkeys(range(0, 40, 4), 1.0)
    _store(tmp_path, "before", rows)
    _store(tmp_path, "after", rows, WITHOUT_KEY)
    assert run(["dataset", "diff", "before", "after", "--root", str(tmp_path)]) == 0
    assert "rows are matched by content: the keys differ (id and none)" in capsys.readouterr().out
    assert run(["dataset", "diff", "before", "before", "--root", str(tmp_path)]) == 0
    assert "rows are matched by key id\n" in capsys.readouterr().out


def test_columns_and_transforms_that_differ_are_named(tmp_path: Path) -> None:
    rows = {i: float(i) for i in range(20)}
    fitted: dict[str, Any] = {"features": [{"column": "x", "center": 0.0}, {"column": "h", "vocabulary": "v"}]}
    wider = Schema((*SCHEMA.columns[:2], *SCHEMA.columns[3:]), ("id",))
    before = _store(tmp_path, "before", rows, transforms={**fitted, "vocabularies": {"v": {"terms": [1]}}})
    after = _store(tmp_path, "after", rows, wider, {**fitted, "vocabularies": {"v": {"terms": [1, 2]}}})
    found = diff(before, after)
    assert found.columns_removed == ("h",) and found.columns_added == ()
    assert found.refitted == ("h",)
    assert found.splits["train"].changed == 0, "columns that only one has do not make rows differ"


def _bucket(key: int) -> int:
    hashes = keys.hash_rows(pa.table({"id": np.array([key], np.int64)}), domain=keys.SHARD_DOMAIN, seed=0)
    return int(hashes[0] >> np.uint64(63))
