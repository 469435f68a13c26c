"""A dataset build of a table of many small files beside one of the same rows in one file.

Rows are what a build should cost. Processor seconds are of the driver, its JVM and Spark's Python workers; sides
alternate after a warm-up, and their digests must be equal. Spark's Parquet reader is timed alone on both tables, too:
what opening a file costs is its.

    python -m benchmarks.small_files [--files 10000] [--rows-per-file 100] [--rounds 2]
"""

import argparse
import functools
import itertools
import statistics
import tempfile
from pathlib import Path

import deltalake
import pyarrow.parquet as pq
from pyspark.sql import SparkSession

from benchmarks.build import spent
from benchmarks.growth import dataset_file, rows
from benchmarks.versions import surroundings
from mltrain import features
from mltrain.data import Dataset


def write_tables(here: Path, files: int, rows_per_file: int) -> None:
    """The same rows in the Delta tables ``many`` and ``one``."""
    table = rows(0, files * rows_per_file)
    for name, size in (("many", rows_per_file), ("one", len(table))):
        (here / name).mkdir()
        for start in range(0, len(table), size):
            pq.write_table(table.slice(start, size), here / name / f"part-{start:09}.parquet")
        deltalake.convert_to_deltalake(str(here / name))


def scan(spark: SparkSession, table: Path) -> None:
    """Reads all columns inside Spark."""
    frame = spark.read.format("delta").load(str(table))
    frame.selectExpr(f"max(xxhash64({', '.join(frame.columns)}))").collect()


def main(files: int, rows_per_file: int, rounds: int) -> None:
    """Writes both tables, times builds and scans in turn, prints a table."""
    print(surroundings("pyspark", "delta-spark", "pyarrow", "numpy"), flush=True)
    with tempfile.TemporaryDirectory() as name:
        here = Path(name)
        write_tables(here, files, rows_per_file)
        spark = features.session("benchmark small files")
        cpu: dict[tuple[str, str], list[float]] = {}
        digests = set()
        try:
            for number, table in itertools.product(range(rounds + 1), ("one", "many")):
                file = dataset_file(here / table, here / f"root-{number}-{table}", 0)
                build = functools.partial(features.build, file, spark=spark)
                cpu.setdefault((table, "build"), []).append(spent(build).cpu)
                cpu.setdefault((table, "scan"), []).append(spent(functools.partial(scan, spark, here / table)).cpu)
                digests.add(Dataset.open(file.name, root=file.root).digest)
        finally:
            spark.stop()
    assert len(digests) == 1
    middle = {side: statistics.median(costs[1:]) for side, costs in cpu.items()}
    print(f"{files * rows_per_file:,} rows in {files:,} files and in one, {rounds} rounds")
    print(f"{'':24}{'one file, CPU s':>18}{'many, CPU s':>14}{'ratio':>8}{'ms a file':>11}")
    for what, label in (("build", "mltrain dataset build"), ("scan", "Spark reads all columns")):
        one, many = middle["one", what], middle["many", what]
        print(f"{label:24}{one:>18.1f}{many:>14.1f}{many / one:>8.2f}{(many - one) / files * 1e3:>11.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--files", type=int, default=10_000)
    parser.add_argument("--rows-per-file", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    main(arguments.files, arguments.rows_per_file, arguments.rounds)
