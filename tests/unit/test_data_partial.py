"""Keys and fingerprints of shards, read without the rest."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from mltrain.data import Column, Schema, ShardEntry, write_shard
from mltrain.data.partial import read_identities
from mltrain.data.schema import FINGERPRINT
from mltrain.data.shard import EncodedShard, blob_path, open_shard
from mltrain.errors import DamagedError
from mltrain.storage import Store, open_store
from mltrain.storage.local import LocalStore

ROWS = 5000
SCHEMA = Schema(
    (
        *(Column(f"x{i}", "feature", "numeric", "float32") for i in range(40)),
        Column("h", "feature", "id_list", "int32", width=0, cardinality=100),
        Column("a", "key", "carried", "int64"),
        Column("b", "key", "carried", "string"),
        Column("note", "keep", "carried", "string"),
    ),
    ("a", "b"),
    fingerprints=True,
)


def columns(fingerprints: int = 0) -> dict[str, Any]:
    ids = np.arange(ROWS)
    made: dict[str, Any] = {f"x{i}": ids.astype(np.float32) for i in range(40)}
    made |= {"h": pa.array([[1] * (i % 3) for i in range(ROWS)], pa.list_(pa.int32()))}
    made |= {"a": ids, "b": [f"key {i % 7}" for i in range(ROWS)], "note": [None, "x"] * (ROWS // 2)}
    return {**made, FINGERPRINT: ids * 3 + fingerprints}


def stored(root: Path) -> tuple[Store, EncodedShard, ShardEntry]:
    store, shard = open_store(root), write_shard(columns(), SCHEMA)
    store.put(blob_path(shard.blob), memoryview(shard.buffer))
    return store, shard, ShardEntry.of(shard, split="train", increment=0, bucket=0)


class Counting(LocalStore):
    """Local storage that counts the bytes of each ranged read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.fetched: list[int] = []

    def get_range(self, path: str, start: int, length: int) -> bytes:
        data = super().get_range(path, start, length)
        self.fetched.append(len(data))
        return data


def test_they_are_those_of_the_shard_and_the_rest_is_not_fetched(tmp_path: Path) -> None:
    _, shard, entry = stored(tmp_path)
    store = Counting(str(tmp_path))
    found = read_identities(store, SCHEMA, entry)
    opened = open_shard(tmp_path / blob_path(shard.blob), SCHEMA, blob=shard.blob, size_bytes=shard.size_bytes)
    assert found.schema.names == ["a", "b", FINGERPRINT]
    assert found[FINGERPRINT].combine_chunks() == opened.fingerprints() == pa.array(np.arange(ROWS) * 3)
    assert all(found[name].combine_chunks() == opened.carried(name) for name in SCHEMA.key)
    assert sum(store.fetched) < shard.size_bytes / 2 and len(store.fetched) < 12


def test_fingerprints_are_no_content_and_nobodys_column(tmp_path: Path) -> None:
    one, other = write_shard(columns(), SCHEMA), write_shard(columns(fingerprints=1), SCHEMA)
    assert one.digest == other.digest and one.blob != other.blob
    assert FINGERPRINT not in SCHEMA and FINGERPRINT not in one.statistics
    assert Schema.from_json(SCHEMA.to_json()) == SCHEMA and SCHEMA.subset(["x1"]).fingerprints


def test_a_shard_that_is_gone_or_not_what_it_was_is_named(tmp_path: Path) -> None:
    store, shard, entry = stored(tmp_path)
    file = tmp_path / blob_path(shard.blob)
    whole = file.read_bytes()
    key = whole.index(np.arange(100, 200).tobytes())
    for damaged in (whole[:-3], whole[: len(whole) // 2], whole[:key] + b"\xff" + whole[key + 1 :], b""):
        file.write_bytes(damaged)
        with pytest.raises(DamagedError, match=shard.blob):
            read_identities(store, SCHEMA, entry)
    file.unlink()
    with pytest.raises(DamagedError, match="is missing"):
        read_identities(store, SCHEMA, entry)
