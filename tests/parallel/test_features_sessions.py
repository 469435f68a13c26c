"""Builds that start Spark themselves, one after the other in one process."""

import sys
from pathlib import Path

from tests.support import processes, tables

_SCRIPT = """
import sys
from mltrain import features
from mltrain.config import DatasetFile
from pyspark import SparkContext
from pyspark.sql import SparkSession

file = DatasetFile.model_validate_json(open(sys.argv[1]).read())
digests = [features.build(file).digest for _ in range(2)]
own = features.session("my own")
own.stop()
digests.append(features.build(file).digest)
assert SparkContext._active_spark_context is None
print(len(digests), len(set(digests)))
"""


def test_a_process_builds_as_often_as_it_likes(spark_conf: None, tmp_path: Path) -> None:
    columns = {"id": range(60), "x": [i / 3 for i in range(60)], "y": [i % 2 for i in range(60)]}
    table = tables.write(tmp_path / "table", columns)
    (tmp_path / "file.json").write_text(tables.dataset_file(table, tmp_path / "root").model_dump_json())
    done = processes.run([sys.executable, "-c", _SCRIPT, tmp_path / "file.json"], tmp_path / "logs")
    assert (done.exit_code, done.stdout.split()) == (0, ["3", "1"]), done.stderr
