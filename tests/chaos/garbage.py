"""Builders and a collector of garbage that race, on a local root and on an S3 server."""

import contextlib
import random
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from mltrain.data import Build, Column, Dataset, Schema, ShardEntry, assemble, write_shard
from mltrain.data.garbage import blobs_of, collect
from mltrain.data.publish import COLLECTION, put_shard
from mltrain.data.shard import EncodedShard
from mltrain.errors import BuildError
from mltrain.storage import Store, open_store
from tests.chaos import warm
from tests.chaos.result import Result
from tests.support import s3

SCHEMA = Schema((Column("id", "key", "carried", "int64"), Column("x", "feature", "numeric", "float32")), ("id",))
_NAMES = ("a", "b")
_SHARDS = 6
# Among so many builds the collector must have had its turn.
_RACE = 10


def shard(number: int) -> EncodedShard:
    """Ten rows."""
    ids = np.arange(number * 10, number * 10 + 10)
    return write_shard({"id": ids, "x": ids.astype(np.float32)}, SCHEMA)


def store_shards(store: Store, numbers: Sequence[int]) -> list[ShardEntry]:
    """As builders do: what is there already is not written again."""
    entries = []
    for bucket, number in enumerate(sorted(numbers)):
        made = shard(number)
        put_shard(store, made)
        entries.append(ShardEntry.of(made, split="train", increment=0, bucket=bucket))
    return entries


def build(store: Store, name: str, numbers: Sequence[int], build_id: str) -> str:
    """A dataset of some of the shards; answers its digest."""
    with Build.start(store, name, build_id) as started:
        manifest, blobs = assemble(SCHEMA, {}, ("train",), store_shards(store, numbers))
        return started.publish(manifest, blobs, {}).digest


def run(count: int, seed: int, folder: Path) -> Result:
    """``count`` builds on either kind of storage, while a collector removes whatever it may."""
    result = Result("garbage", seed)
    with s3.serve(folder / "s3") as server, s3.environment(server):
        for where, root in (("local", str(folder / "local")), ("S3", f"{server.bucket()}/garbage")):
            with warm.started(_collect, root, environment=dict(server.env)) as (process, connection):
                warm.answer(process, connection)
                for case in range(seed, seed + count):
                    with result.case(case):
                        _round(open_store(root), random.Random(case), case)
                        result.counts[f"builds beside the collector, {where}"] += 1
                connection.send("done")
                removed, refused = warm.answer(process, connection)
                with result.case(seed):
                    assert removed or count < _RACE, f"beside {count} builds the collector removed nothing"
                    _collected(open_store(root))
                result.counts[f"objects it removed meanwhile, {where}"] += removed
                result.counts[f"collections that found a living builder, {where}"] += refused
    return result


def _round(store: Store, rng: random.Random, case: int) -> None:
    name = rng.choice(_NAMES)
    digest = build(store, name, rng.sample(range(_SHARDS), 3), f"{name}-{case}")
    there = {meta.path for meta in store.list("shards/blobs")}
    missing = set(blobs_of(Dataset.open(digest, root=store.uri).manifest)) - there
    assert not missing, f"{missing} were removed"


def _collected(store: Store) -> None:
    """Once nobody builds any more, what a collection leaves is what the names reach, and nothing else."""
    collect(store, grace_s=0, unnamed=True)
    named = [meta.path.removeprefix("datasets/").removesuffix(".json") for meta in store.list("datasets")]
    manifests = [Dataset.open(name, root=store.uri).manifest for name in named]
    left = {meta.path for meta in store.list("shards") if meta.path != COLLECTION}
    assert left == {path for manifest in manifests for path in (manifest.path, *blobs_of(manifest))}


def _collect(connection: Connection, root: str) -> None:
    """Says that it is here; collects, without any grace, until it is told to end; says how much it removed and how
    often it was refused.
    """
    store, removed, refused = open_store(root), 0, 0
    connection.send("here")
    while not connection.poll():
        # There is nothing to collect before the first build.
        if next(store.list("shards"), None) is not None:
            with contextlib.suppress(BuildError):
                refused += 1
                removed += len(collect(store, grace_s=0, unnamed=True).removed)
                refused -= 1
    connection.send((removed, refused))
