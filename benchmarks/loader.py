"""The shuffled loader beside a gather from memory, and a sequential pass beside a copy of memory.

Claims: a shuffled epoch runs at >= 0.7x of ``index_select(out=)`` of random rows over the same packed layout already in
memory; a sequential pass at >= 0.8x of a copy of the same bytes; hashing every shard once takes <= 3 % of ten warm
epochs. One process; sides alternate, ratios are of medians.

The roofline uses as many threads as torch gives it, the loader one and the one that takes the batches. On a machine
that others use too, read the rows by CPU time (M rows per CPU second of all threads), with ``--torch-threads 1``:
waiting threads of torch spin.

A table larger than memory: ``--rows 40000000`` (6.4 GB of shards) in a memory cgroup of 3 GiB. The other side is then
what the disk gives alone: each shard read from start to end, past the page cache.

    python -m benchmarks.loader [--rows 4000000] [--batch 8192] [--rounds 5] [--torch-threads N]
"""

import argparse
import mmap
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from benchmarks.versions import surroundings
from mltrain.data import Build, Column, Dataset, Loader, Schema, ShardEntry, assemble, write_shard
from mltrain.data.shard import blob_path, open_shard
from mltrain.storage import open_store

FLOATS, INTS, ROWS_PER_SHARD = 13, 26, 131072
MOST_IN_MEMORY = 4_000_000
_READ_BYTES = 8 << 20
_SETTLE_S = 0.05


def workload(root: Path, rows: int) -> Dataset:
    """Label and 13 float columns, 26 int columns: 160 bytes a row."""
    columns = [Column("id", "key", "carried", "int64")]
    columns += [Column(f"x{i}", "feature", "numeric", "float32") for i in range(FLOATS)]
    columns += [Column(f"c{i}", "feature", "categorical", "int32", cardinality=1000) for i in range(INTS)]
    columns.append(Column("y", "label", "binary", "float32", classes=(0, 1), type="binary"))
    schema = Schema(tuple(columns), ("id",))
    store = open_store(root)
    rng = np.random.default_rng(0)
    entries = []
    for bucket, start in enumerate(range(0, rows, ROWS_PER_SHARD)):
        count = min(ROWS_PER_SHARD, rows - start)
        values = {"id": np.arange(start, start + count), "y": rng.integers(0, 2, count).astype(np.float32)}
        values |= {f"x{i}": rng.random(count, np.float32) for i in range(FLOATS)}
        values |= {f"c{i}": rng.integers(0, 1000, count).astype(np.int32) for i in range(INTS)}
        shard = write_shard(values, schema)
        store.put(blob_path(shard.blob), memoryview(shard.buffer))
        entries.append(ShardEntry.of(shard, split="train", increment=0, bucket=bucket))
    manifest, blobs = assemble(schema, {}, ("train",), entries)
    with Build.start(store, "workload", "benchmark") as build:
        build.publish(manifest, blobs, {})
    return Dataset.open("workload", root=root)


def roofline(rows: int, batch: int) -> Callable[[], None]:
    """Per batch, index_select of random rows from two matrices in memory into preallocated buffers."""
    floats, ints = torch.rand(rows, FLOATS + 1), torch.zeros(rows, INTS, dtype=torch.int32)
    out = torch.empty(batch, FLOATS + 1), torch.empty(batch, INTS, dtype=torch.int32)
    batches = [part for part in torch.split(torch.randperm(rows), batch) if len(part) == batch]

    def run() -> None:
        for index in batches:
            torch.index_select(floats, 0, index, out=out[0])
            torch.index_select(ints, 0, index, out=out[1])

    return run


def memory_copy(rows: int, batch: int) -> Callable[[], None]:
    """The same bytes, copied batch by batch from memory into preallocated buffers."""
    floats, ints = torch.rand(rows, FLOATS + 1), torch.zeros(rows, INTS, dtype=torch.int32)
    out = torch.empty(batch, FLOATS + 1), torch.empty(batch, INTS, dtype=torch.int32)

    def run() -> None:
        for start in range(0, rows - batch + 1, batch):
            out[0].copy_(floats[start : start + batch])
            out[1].copy_(ints[start : start + batch])

    return run


def epoch(loader: Loader) -> Callable[[], None]:
    """One epoch of a loader."""

    def run() -> None:
        for _ in loader:
            pass

    return run


def checks(dataset: Dataset) -> float:
    """CPU seconds of hashing every shard, which each process does once."""
    files = [Path(dataset.store.join(blob_path(entry.blob))) for entry in dataset.manifest.entries()]
    seconds = []
    for verify in (True, False) * 3:
        started = time.process_time()
        for file, entry in zip(files, dataset.manifest.entries(), strict=True):
            open_shard(file, dataset.schema, blob=entry.blob, size_bytes=entry.size_bytes, verify=verify)
        seconds.append(time.process_time() - started)
    return min(seconds[::2]) - min(seconds[1::2])


def disk(dataset: Dataset) -> Callable[[], None]:
    """Every shard from the disk, past the page cache, one after the other into one buffer."""
    files = [dataset.store.join(blob_path(entry.blob)) for entry in dataset.manifest.entries()]
    # Direct reads want an aligned buffer.
    buffer = mmap.mmap(-1, _READ_BYTES)

    def run() -> None:
        for file in files:
            opened = os.open(file, os.O_RDONLY | os.O_DIRECT)
            while os.readv(opened, [buffer]) == _READ_BYTES:
                pass
            os.close(opened)

    return run


def compare(name: str, ours: Callable[[], None], theirs: Callable[[], None], rows: int, rounds: int) -> float:
    """Alternates the two sides and prints medians and ratios: of wall time, and of CPU time over all threads.

    Returns:
        CPU seconds of one run of ours.
    """
    wall: tuple[list[float], list[float]] = ([], [])
    cpu: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds + 1):
        for side, run in enumerate((ours, theirs)):
            # Threads of torch spin for some milliseconds after their work: not on the other side's account.
            time.sleep(_SETTLE_S)
            started = time.perf_counter(), time.process_time()
            run()
            wall[side].append(time.perf_counter() - started[0])
            cpu[side].append(time.process_time() - started[1])
    for label, times, unit in ((name, wall, "wall"), ("", cpu, "CPU")):
        mine, other = (rows / statistics.median(side[1:]) / 1e6 for side in times)
        print(f"{label:<30} {mine:8.1f} {other:10.1f} {mine / other:8.2f}  {unit}")
    return statistics.median(cpu[0][1:])


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--torch-threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.torch_threads)
    print(surroundings("torch", "numpy"), flush=True)
    with tempfile.TemporaryDirectory(prefix="mltrain-benchmark-") as folder:
        dataset = workload(Path(folder), args.rows)
        row_bytes = 4 * (FLOATS + INTS + 1)
        print(f"{args.rows} rows of {row_bytes} bytes, batch {args.batch}; M rows/s, medians of {args.rounds}")
        large = args.rows > MOST_IN_MEMORY
        print(f"{'':<30} {'loader':>8} {'disk' if large else 'roofline':>10} {'ratio':>8}")
        checked_s = checks(dataset)
        for name, what, shuffle, other in (
            ("shuffled", "gather in memory", True, roofline),
            ("sequential", "copy of memory", False, memory_copy),
        ):
            loader = Loader(dataset, "train", global_batch_size=args.batch, shuffle=shuffle)
            beside = disk(dataset) if large else other(args.rows, args.batch)
            title = f"{name} / {'disk alone' if large else what}"
            cpu_s = compare(title, epoch(loader), beside, args.rows, args.rounds)
            print(f"  waited or helped {loader.counters.wait_s:.1f} s for {loader.counters.batches} batches")
            print(f"  checks, once per process: {checked_s / (10 * cpu_s):.3f} of the CPU time of ten warm epochs")


if __name__ == "__main__":
    main()
