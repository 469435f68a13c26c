"""A dataset build beside Spark's own zstd Parquet writer, on the same Delta table, in the same session.

The build resolves the version, checks every row, fits 13 medians, means and deviations and 26 vocabularies, scatters,
sorts, hashes and writes shards; the writer reads every column and writes it again. Sides alternate after a warm-up; the
ratios are of medians: of wall time, and of the processor time of the driver, its JVM and Spark's Python workers, which
other work on the machine disturbs less. ``--scan`` adds the build as it is where tasks cannot read the table's files
and Spark scans it.

    python -m benchmarks.build [--rows 1000000] [--rounds 3] [--scan]
"""

import argparse
import contextlib
import functools
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import deltalake
import numpy as np
import psutil
import pyarrow as pa
from pyspark.sql import SparkSession

from benchmarks.versions import surroundings
from mltrain import features
from mltrain.config import DatasetFile
from mltrain.features.parquet import UnreadableError
from mltrain.features.rows import Rows

FLOATS, INTS, PART = 13, 26, 250_000
BUILD = "mltrain dataset build"


def write_table(path: Path, rows: int) -> None:
    """Key, label, 13 floats with nulls and 26 categorical integers: about 170 bytes a row."""
    rng = np.random.default_rng(0)
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        columns = {"id": np.arange(start, start + count), "y": rng.integers(0, 2, count)}
        columns |= {
            f"x{i}": pa.array(rng.random(count, np.float32), mask=rng.random(count) < 0.05) for i in range(FLOATS)
        }
        columns |= {f"c{i}": rng.integers(0, 1000, count).astype(np.int32) for i in range(INTS)}
        deltalake.write_deltalake(str(path), pa.table(columns), mode="append")


class Spent(NamedTuple):
    """What a call took.

    Attributes:
        wall: seconds.
        cpu: processor seconds of this process and all below it.
    """

    wall: float
    cpu: float


def spent(work: Callable[[], object]) -> Spent:
    """Times a call."""
    start, before = time.perf_counter(), cpu_seconds()
    work()
    return Spent(time.perf_counter() - start, cpu_seconds() - before)


def cpu_seconds() -> float:
    """Of this process and those below it, ended ones included."""
    total = 0.0
    me = psutil.Process()
    for process in (me, *me.children(recursive=True)):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system + times.children_user + times.children_system
    return total


def main(rows: int, rounds: int, scan: bool) -> None:
    """Writes the table, times the sides, prints a table."""
    print(surroundings("pyspark", "delta-spark", "pyarrow", "numpy"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        write_table(here / "table", rows)
        spark = features.session("benchmark build")
        try:
            sides = compare(spark, here, rounds, scan)
        finally:
            spark.stop()
    middles = {label: Spent(*map(statistics.median, zip(*times, strict=True))) for label, times in sides.items()}
    print(f"rows {rows:,}, {FLOATS} float and {INTS} categorical columns, {rounds} rounds, {spark_cores()} cores")
    print(f"{'':28}{'seconds':>10}{'M rows/s':>10}{'CPU s':>10}   all rounds")
    for label, middle in middles.items():
        shown = " ".join(f"{one.wall:.1f}" for one in sides[label])
        print(f"{label:28}{middle.wall:>10.1f}{rows / middle.wall / 1e6:>10.3f}{middle.cpu:>10.1f}   {shown}")
    build = middles.pop(BUILD)
    for label, other in middles.items():
        print(
            f"{BUILD} / {label}: rates {other.wall / build.wall:.2f}, rows per CPU second {other.cpu / build.cpu:.2f}"
        )


def compare(spark: SparkSession, here: Path, rounds: int, scan: bool) -> dict[str, list[Spent]]:
    """What each side took; the first round warms up and does not count."""
    table = str(here / "table")

    def build(root: str) -> None:
        file = DatasetFile.model_validate(
            {
                "name": "bench",
                "root": str(here / root),
                "dataset": {
                    "table": table,
                    "key": ["id"],
                    "label": {"column": "y", "type": "binary"},
                    "features": {"*": {}, "c*": {"type": "categorical"}},
                },
            }
        )
        features.build(file, spark=spark)

    def build_from_scan(root: str) -> None:
        with mock.patch.object(Rows, "with_files", side_effect=UnreadableError("the benchmark wants Spark's scan")):
            build(root)

    def write(root: str) -> None:
        frame = spark.read.format("delta").load(table)
        frame.write.option("compression", "zstd").parquet(str(here / root))

    sides: dict[str, Callable[[str], None]] = {BUILD: build, "Spark Parquet (zstd)": write}
    if scan:
        sides["build from Spark's scan"] = build_from_scan
    times: dict[str, list[Spent]] = {label: [] for label in sides}
    for i in range(rounds + 1):
        for number, (label, work) in enumerate(sides.items()):
            times[label].append(spent(functools.partial(work, f"{number}-{i}")))
    return {label: found[1:] for label, found in times.items()}


def spark_cores() -> int:
    """Cores that local[*] uses."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scan", action="store_true", help="also build from Spark's scan of the table")
    arguments = parser.parse_args()
    main(arguments.rows, arguments.rounds, arguments.scan)
