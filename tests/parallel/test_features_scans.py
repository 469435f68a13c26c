"""How Spark reads a table's files while a dataset is built."""

from pathlib import Path
from typing import TYPE_CHECKING

import deltalake
import pyarrow as pa
import pyarrow.parquet as pq

from mltrain.features.engine import few_scan_tasks

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


def test_many_small_files_are_read_by_few_tasks(spark: "SparkSession", tmp_path: Path) -> None:
    for number in range(200):
        pq.write_table(pa.table({"id": [number]}), tmp_path / f"part-{number}.parquet")
    deltalake.convert_to_deltalake(str(tmp_path))

    def tasks() -> int:
        return spark.read.format("delta").load(str(tmp_path)).rdd.getNumPartitions()

    before = tasks()
    with few_scan_tasks(spark):
        assert tasks() <= spark.sparkContext.defaultParallelism < before
    assert tasks() == before
