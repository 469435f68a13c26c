"""Builds that start Spark themselves: one after the other in one process, and with next to no memory."""

import json
import sys
from pathlib import Path

import numpy as np

from mltrain.data import Dataset
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


def spilled_bytes(events: Path) -> int:
    """What all tasks of an application, by its event log, wrote to disk for want of memory."""
    (log,) = events.iterdir()
    ended = [event for event in map(json.loads, log.open()) if event["Event"] == "SparkListenerTaskEnd"]
    return sum(event["Task Metrics"]["Disk Bytes Spilled"] for event in ended if event.get("Task Metrics"))


def test_rows_that_do_not_fit_into_memory_on_their_way_to_shards_are_spilled(spark_conf: None, tmp_path: Path) -> None:
    """Tasks share 7 MB, and scatter as much; they sort it by shard, as they do where there are more than 200 shards."""
    rows, random = 60_000, np.random.default_rng(0)
    ids = np.arange(rows)
    table = tables.write(
        tmp_path / "table", {"id": ids, "y": ids % 2, **{f"x{i}": random.random(rows) for i in range(20)}}
    )
    (tmp_path / "file.json").write_text(
        tables.dataset_file(table, tmp_path / "root", rows_per_shard=8000).model_dump_json()
    )
    (tmp_path / "events").mkdir()
    conf = {
        "spark.memory.fraction": "0.01",
        "spark.shuffle.sort.bypassMergeThreshold": "1",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.dir": tmp_path / "events",
        "spark.eventLog.compress": "false",
        "spark.eventLog.rolling.enabled": "false",
    }
    settings = " ".join(f"--conf {key}={value}" for key, value in conf.items())
    done = processes.run(
        [sys.executable, "-m", "tests.support.build_dataset", tmp_path / "file.json"],
        tmp_path / "logs",
        env={"PYSPARK_SUBMIT_ARGS": f"--master local[2] {settings} pyspark-shell"},
    )
    assert "digest" in json.loads(done.stdout), done.stdout + done.stderr
    assert spilled_bytes(tmp_path / "events") > 1_000_000
    report = Dataset.open("test", root=tmp_path / "root").verify()
    assert report.ok and report.rows == rows
