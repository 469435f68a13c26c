"""Simulated nodes that read a dataset from an S3 server, each through a cache of its own; the server counts."""

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa

from mltrain.data import Build, Column, Dataset, NodeCache, Schema, ShardEntry, assemble, write_shard
from mltrain.data.order import ShuffledEpoch
from mltrain.data.shard import blob_path
from mltrain.data.shares import steps
from mltrain.storage import open_store
from tests.support.s3 import S3Server

_NAME = "spread"
_SCHEMA = Schema((Column("x", "feature", "numeric", "float32"), Column("y", "label", "binary", "float32")), ())


@dataclasses.dataclass(frozen=True)
class Spread:
    """A dataset of many tiny shards, laid out as a large one is.

    Attributes:
        uri: its root on the server.
        lanes: C.
        window: K.
        batch: rows a step, over all nodes.
    """

    uri: str
    lanes: int
    window: int
    batch: int

    def open(self, cache: Path) -> Dataset:
        """Opens it for a node whose cache is this directory."""
        found = Dataset.open(_NAME, root=self.uri, cache=NodeCache(cache))
        # By their bytes, tiny shards would all lie in one window.
        split = dataclasses.replace(found.manifest.splits[0], lanes=self.lanes, window=self.window)
        return dataclasses.replace(found, manifest=dataclasses.replace(found.manifest, splits=(split,)))


def make_spread(server: S3Server, *, lanes: int, per_lane: int, rows_per_shard: int, window: int, epoch: int) -> Spread:
    """Writes the dataset into a bucket of the server.

    Args:
        server: holds it.
        lanes: C.
        per_lane: shards a lane.
        rows_per_shard: rows in each.
        window: K.
        epoch: steps an epoch.
    """
    uri = server.bucket()
    shards = lanes * per_lane
    # Into the server's directory: thousands of requests less.
    store = open_store(server.local(uri))
    entries = []
    for bucket in range(shards):
        first = bucket * rows_per_shard
        values = np.arange(first, first + rows_per_shard, dtype=np.float32)
        identity = pa.table({"id": np.arange(first, first + rows_per_shard)})
        shard = write_shard({"x": values, "y": values % 2}, _SCHEMA, identity=identity)
        store.put(blob_path(shard.blob), memoryview(shard.buffer))
        entries.append(ShardEntry.of(shard, split="train", increment=0, bucket=bucket))
    manifest, blobs = assemble(_SCHEMA, {}, ("train",), entries)
    with Build.start(store, _NAME, _NAME) as build:
        build.publish(manifest, blobs, {})
    return Spread(uri, lanes, window, shards * rows_per_shard // epoch)


def read_share(spread: Spread, cache: Path, stretches: list[tuple[range, int, int]]) -> None:
    """Opens what one rank reads: in each stretch of steps as (rank, world size); without torch."""
    dataset = spread.open(cache)
    split = dataset.manifest.splits[0]
    order = ShuffledEpoch(
        dataset.manifest.index.rows,
        spread.batch,
        lanes=split.lanes,
        window=split.window,
        digest=dataset.digest,
        split=split.name,
        seed=0,
        epoch=0,
    )
    total = steps(split.rows, spread.batch)
    for stretch, rank, world in stretches:
        for step in stretch:
            dataset.source.prefetch(order.upcoming(range(step, total), rank, world))
            for segment in order.shares(range(step, step + 1), rank, world)[0]:
                dataset.source.shard(segment.shard)


def fetched_ratio(server: S3Server, spread: Spread, cache: Path, before: "Counter[str]") -> float:
    """Bytes of shards read from the server since ``before`` (its ``reads()``), over the bytes that there are."""
    dataset = spread.open(cache)
    fetched = server.reads() - before
    sizes = {dataset.store.join(blob_path(entry.blob)): entry.size_bytes for entry in dataset.manifest.entries()}
    return sum(size * fetched[uri] for uri, size in sizes.items()) / sum(sizes.values())
