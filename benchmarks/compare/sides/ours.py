"""mltrain's loader on its own shards."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.rows import CARDINALITY, FLOATS, INTS, parts
from mltrain.data import Build, Column, Dataset, Loader, Schema, ShardEntry, assemble, write_shard
from mltrain.data.shard import blob_path
from mltrain.storage import open_store

PACKAGES = ("mltrain", "torch", "numpy", "pyarrow")


def settings() -> dict[str, Any]:
    """None: the loader as it is."""
    return {}


def prepare(folder: Path, rows: int) -> None:
    """A shard of each part, as the build writes them."""
    columns = [Column("id", "key", "carried", "int64")]
    columns += [Column(f"x{i}", "feature", "numeric", "float32") for i in range(FLOATS)]
    columns += [Column(f"c{i}", "feature", "categorical", "int32", cardinality=CARDINALITY) for i in range(INTS)]
    columns.append(Column("y", "label", "binary", "float32", classes=(0, 1), type="binary"))
    schema = Schema(tuple(columns), ("id",))
    store = open_store(folder)
    entries = []
    for bucket, part in enumerate(parts(rows)):
        ids = np.arange(part.first, part.first + len(part.labels))
        shard = write_shard({"id": ids, **part.columns()}, schema)
        store.put(blob_path(shard.blob), memoryview(shard.buffer))
        entries.append(ShardEntry.of(shard, split="train", increment=0, bucket=bucket))
    manifest, blobs = assemble(schema, {}, ("train",), entries)
    with Build.start(store, "workload", "comparison") as build:
        build.publish(manifest, blobs, {})


def epochs(folder: Path, batch_size: int) -> Iterator[Iterator[Any]]:
    """The loader, again and again."""
    with Loader(Dataset.open("workload", root=folder), "train", global_batch_size=batch_size) as loader:
        while True:
            yield (batch.labels["y"] for batch in loader)
