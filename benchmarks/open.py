"""Opening a large dataset and finding what a step of it reads: time and memory, beyond what imports take.

Claim: 1e9 rows in 1e5 shards open, and a loader finds what any step reads, in <= 50 ms and <= 50 MB.

    python -m benchmarks.open [--shards 100000] [--rounds 5]
"""

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.versions import surroundings
from mltrain.data import Build, Column, Dataset, Loader, Manifest, Schema, ShardEntry, assemble, write_shard
from mltrain.data.order import ShuffledEpoch
from mltrain.data.publish import move_pointer
from mltrain.data.shard import blob_path
from mltrain.storage import open_store

ROWS_PER_SHARD = 10_000
BATCH = 8192


SCHEMA = Schema((Column("x", "feature", "numeric", "float32"), Column("y", "label", "binary", "float32")), ())


def small(root: Path) -> None:
    """A dataset of one row."""
    shard = write_shard({"x": np.zeros(1), "y": np.zeros(1)}, SCHEMA, identity=pa.table({"id": [0]}))
    open_store(root).put(blob_path(shard.blob), memoryview(shard.buffer))
    manifest, blobs = assemble(SCHEMA, {}, ("train",), [ShardEntry.of(shard, split="train", increment=0, bucket=0)])
    with Build.start(open_store(root), "small", "small") as build:
        build.publish(manifest, blobs, {})


def synthetic(root: Path, shards: int) -> Manifest:
    """A manifest whose shards do not exist: two columns, one split."""
    rng = np.random.default_rng(0)
    entries = [
        ShardEntry(
            split="train",
            increment=0,
            bucket=bucket,
            blob=rng.bytes(16).hex(),
            rows=ROWS_PER_SHARD + int(rng.integers(-300, 300)),
            size_bytes=ROWS_PER_SHARD * 8,
            digest=rng.bytes(32).hex(),
            multiset=int.from_bytes(rng.bytes(16), "big"),
            statistics={},
        )
        for bucket in range(shards)
    ]
    manifest, blobs = assemble(SCHEMA, {}, ("train",), entries)
    store = open_store(root)
    for path, buffer in blobs.items():
        store.put(path, memoryview(buffer))
    # Not as a build does, which looks for every shard.
    store.put(manifest.path, manifest.to_bytes())
    move_pointer(store, "large", manifest.digest, "large")
    return manifest


def rss_bytes() -> int:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(root: str) -> dict[str, float]:
    """Opens the dataset, and finds what two steps read. In a process that has imported everything."""
    next(iter(Loader(Dataset.open("small", root=root), "train", global_batch_size=1)))
    gc.collect()
    before = rss_bytes()
    marks = [(time.perf_counter(), time.process_time())]
    dataset = Dataset.open("large", root=root)
    marks.append((time.perf_counter(), time.process_time()))
    loader = Loader(dataset, "train", global_batch_size=BATCH)
    loader.seek(epoch=3, step=len(loader) // 2)
    split = dataset.manifest.split("train")
    order = ShuffledEpoch(
        dataset.manifest.index.rows[dataset.manifest.shards("train")],
        BATCH,
        lanes=split.lanes,
        window=split.window,
        digest=dataset.digest,
        split="train",
        seed=0,
        epoch=3,
    )
    order.shares(range(len(loader) // 2, len(loader) // 2 + 1), rank=0, world_size=8)
    marks.append((time.perf_counter(), time.process_time()))
    order.shares(range(1, 2), rank=7, world_size=8)
    marks.append((time.perf_counter(), time.process_time()))
    names = ("open", "another epoch", "another step of it")
    result = {}
    for name, start, end in zip(names, marks, marks[1:], strict=False):
        result[f"{name}, wall ms"] = (end[0] - start[0]) * 1e3
        result[f"{name}, CPU ms"] = (end[1] - start[1]) * 1e3
    return {**result, "memory, MB": (rss_bytes() - before) / 1e6}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    print(surroundings("numpy", "pyarrow", "xxhash"))
    with tempfile.TemporaryDirectory(prefix="mltrain-benchmark-") as folder:
        small(Path(folder))
        manifest = synthetic(Path(folder), args.shards)
        print(json.dumps({"rows": manifest.split("train").rows, "shards": args.shards, "rounds": args.rounds}))
        runs = []
        for _ in range(args.rounds):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                runs.append(pool.apply(measure, (folder,)))
    for name in runs[0]:
        print(f"{name:<30} {statistics.median(run[name] for run in runs):8.1f}")


if __name__ == "__main__":
    main()
