"""A dataset build beside Spark's own zstd Parquet writer, on the same Delta table, in the same session.

The build resolves the version, checks every row, fits 13 medians, means and deviations and 26 vocabularies, scatters,
sorts, hashes and writes shards; the writer reads every column and writes it again. Sides alternate after a warm-up; the
ratio is of medians.

    python benchmarks/build.py [--rows 1000000] [--rounds 3]
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import deltalake
import numpy as np
import pyarrow as pa
from pyspark.sql import SparkSession

from mltrain import features
from mltrain.config import DatasetFile

FLOATS, INTS, PART = 13, 26, 250_000


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


def seconds(work: Callable[[], object]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(rows: int, rounds: int) -> None:
    """Writes the table, times both sides, prints a table."""
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        write_table(here / "table", rows)
        spark = features.session("benchmark build")
        try:
            sides = compare(spark, here, rounds)
        finally:
            spark.stop()
    build, parquet = (statistics.median(times) for times in sides)
    print(f"rows {rows:,}, {FLOATS} float and {INTS} categorical columns, {rounds} rounds, {spark_cores()} cores")
    print(f"{'':24}{'seconds':>10}{'M rows/s':>10}   all rounds")
    for label, middle, times in (
        ("mltrain dataset build", build, sides[0]),
        ("Spark Parquet (zstd)", parquet, sides[1]),
    ):
        print(f"{label:24}{middle:>10.1f}{rows / middle / 1e6:>10.3f}   {' '.join(f'{t:.1f}' for t in times)}")
    print(f"ratio of rates, build / Parquet: {parquet / build:.2f}")


def compare(spark: SparkSession, here: Path, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds of the builds and of the Parquet writes; the first round of each warms up and does not count."""
    builds: list[float] = []
    writes: list[float] = []
    for i in range(rounds + 1):
        file = DatasetFile.model_validate(
            {
                "name": "bench",
                "root": str(here / f"root-{i}"),
                "dataset": {
                    "table": str(here / "table"),
                    "key": ["id"],
                    "label": {"column": "y", "type": "binary"},
                    "features": {"*": {}, "c*": {"type": "categorical"}},
                },
            }
        )
        builds.append(seconds(lambda file=file: features.build(file, spark=spark)))  # type: ignore[misc]
        frame = spark.read.format("delta").load(str(here / "table"))
        writer = frame.write.option("compression", "zstd")
        writes.append(seconds(lambda writer=writer, i=i: writer.parquet(str(here / f"parquet-{i}"))))  # type: ignore[misc]
    return builds[1:], writes[1:]


def spark_cores() -> int:
    """Cores that local[*] uses."""
    return len(os.sched_getaffinity(0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    main(arguments.rows, arguments.rounds)
