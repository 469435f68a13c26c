"""What it costs to grow a dataset (``dataset.base``), beside building the same version of the table afresh.

A table of 13 float and 26 categorical columns gains 1 % of rows; or 1 % of its rows, anywhere, change; or as many rows
change that lie together by hash, in one shard; or its files are packed anew (OPTIMIZE). Bytes are those of all objects
that a build leaves in the root and that were not there before: shards, index, statistics, manifest, record, pointer.
Processor seconds are of the driver, its JVM and Spark's Python workers; sides alternate after a warm-up.

    python -m benchmarks.growth [--rows 1000000] [--rounds 2]
"""

import argparse
import functools
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import deltalake
import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from benchmarks.build import FLOATS, INTS, spent
from benchmarks.versions import surroundings
from mltrain import features
from mltrain.config import DatasetFile
from mltrain.data import Dataset, keys

PART = 250_000


class Grown(NamedTuple):
    """What a growth cost.

    Attributes:
        size_bytes: of what it stored.
        encoded_bytes: of the shards that it made.
        cpu: processor seconds.
    """

    size_bytes: int
    encoded_bytes: int
    cpu: float


def rows(start: int, stop: int) -> pa.Table:
    """Key, label, floats with nulls, categorical integers."""
    rng, count = np.random.default_rng(start), stop - start
    columns = {"id": np.arange(start, stop), "y": rng.integers(0, 2, count)}
    columns |= {f"x{i}": pa.array(rng.random(count, np.float32), mask=rng.random(count) < 0.05) for i in range(FLOATS)}
    columns |= {f"c{i}": rng.integers(0, 1000, count).astype(np.int32) for i in range(INTS)}
    return pa.table(columns)


def write_versions(path: Path, count: int) -> dict[str, int]:
    """Writes the table and what may become of it: versions by name, each made from the first."""
    for start in range(0, count, PART):
        deltalake.write_deltalake(str(path), rows(start, min(count, start + PART)), mode="append")
    table = deltalake.DeltaTable(str(path))
    base = table.version()
    deltalake.write_deltalake(str(path), rows(count, count + count // 100), mode="append")
    versions = {"base": base, "1 % more rows": base + 1}
    together = _alike(count)
    for name, where in {
        "1 % of rows changed, anywhere": "id % 100 = 7",
        f"{len(together):,} rows changed, in one shard": f"id IN ({', '.join(map(str, together))})",
    }.items():
        table = deltalake.DeltaTable(str(path))
        table.restore(base)
        table.update(updates={"c0": "c0 + 1"}, predicate=where)
        versions[name] = table.version()
    table.restore(base)
    table.optimize.compact()
    return {**versions, "OPTIMIZE": table.version()}


def _alike(count: int) -> list[int]:
    """Some keys of one bucket, however many buckets there are."""
    ids = np.arange(count)
    hashes = keys.hash_rows(pa.table({"id": ids}), domain=keys.SHARD_DOMAIN, seed=0)
    return [int(key) for key in ids[hashes < 2**64 // 1000]]


def dataset_file(table: Path, root: Path, version: int, **dataset: object) -> DatasetFile:
    """As in ``benchmarks/build.py``."""
    given = {
        "table": str(table),
        "version": version,
        "key": ["id"],
        "label": {"column": "y", "type": "binary"},
        "features": {"*": {}, "c*": {"type": "categorical"}},
        **dataset,
    }
    return DatasetFile.model_validate({"name": "bench", "root": str(root), "dataset": given})


def sizes(root: Path) -> dict[Path, int]:
    """The objects below a root."""
    return {path.relative_to(root): path.stat().st_size for path in root.rglob("*") if path.is_file()}


def grown(spark: SparkSession, here: Path, version: int) -> Grown:
    """Grows a copy of the base."""
    root = here / "copy"
    shutil.copytree(here / "base", root)
    before = Dataset.open("bench", root=root)
    there = {path: size for path, size in sizes(root).items() if path.parts[0] != "datasets"}
    file = dataset_file(here / "table", root, version, base="bench")
    cost = spent(functools.partial(features.build, file, spark=spark))
    after = Dataset.open("bench", root=root)
    known = {entry.blob for entry in before.manifest.entries()}
    encoded = sum(entry.size_bytes for entry in after.manifest.entries() if entry.blob not in known)
    new = sum(size for path, size in sizes(root).items() if path not in there)
    shutil.rmtree(root)
    return Grown(new, encoded, cost.cpu)


def fresh(spark: SparkSession, here: Path, version: int) -> tuple[int, float]:
    """Builds afresh: bytes in the root, and processor seconds."""
    root = here / "fresh"
    cost = spent(functools.partial(features.build, dataset_file(here / "table", root, version), spark=spark))
    size = sum(sizes(root).values())
    shutil.rmtree(root)
    return size, cost.cpu


def main(count: int, rounds: int) -> None:
    """Writes the table, grows and builds in turn, prints a table."""
    print(surroundings("pyspark", "delta-spark", "pyarrow", "numpy"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        versions = write_versions(here / "table", count)
        spark = features.session("benchmark growth")
        try:
            base = versions.pop("base")
            features.build(dataset_file(here / "table", here / "base", base), spark=spark)
            grown(spark, here, versions["1 % more rows"])
            whole: list[tuple[int, float]] = []
            found: dict[str, list[Grown]] = {what: [] for what in versions}
            for _ in range(rounds):
                whole.append(fresh(spark, here, versions["1 % more rows"]))
                for what, version in versions.items():
                    found[what].append(grown(spark, here, version))
        finally:
            spark.stop()
    size, cpu = whole[0][0], statistics.median(cost for _, cost in whole)
    print(f"rows {count:,}, {FLOATS} float and {INTS} categorical columns, {rounds} rounds")
    print(f"a fresh build: {size / 1e6:,.1f} MB, {cpu:.1f} CPU s")
    print(f"{'what became of the table':38}{'MB encoded':>12}{'MB stored':>12}{'of fresh':>10}{'CPU s':>8}{'ratio':>8}")
    for what, costs in found.items():
        one, seconds = costs[0], statistics.median(cost.cpu for cost in costs)
        print(
            f"{what:38}{one.encoded_bytes / 1e6:>12.2f}{one.size_bytes / 1e6:>12.2f}{one.size_bytes / size:>10.2%}"
            f"{seconds:>8.1f}{seconds / cpu:>8.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.rows, arguments.rounds)
