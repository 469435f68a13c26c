"""Many processes write one runs table on S3, and other programs read it."""

import multiprocessing
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deltalake import DeltaTable

from mltrain import results
from mltrain.errors import StorageAccessError
from mltrain.storage import delta_options, open_store, spark_uri
from tests.unit.test_results_table import START, row

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_WRITERS = 8
_ROWS = 5


def _write(root: str, writer: int) -> None:
    for number in range(_ROWS):
        results.append(root, row(f"run-{writer}-{number}", metrics={"validation/auc": number / 10}))


def test_eight_processes_append_to_one_table_on_s3_and_nothing_is_lost(bucket: str) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(bucket, writer)) for writer in range(_WRITERS)]
    for process in writers:
        process.start()
    for process in writers:
        process.join(120)
    assert [process.exitcode for process in writers] == [0] * _WRITERS
    found = results.runs(bucket)["run_id"].to_pylist()
    assert sorted(found) == sorted(f"run-{writer}-{number}" for writer in range(_WRITERS) for number in range(_ROWS))


def test_a_log_on_s3_is_kept_and_opened_again(bucket: str, tmp_path: Path) -> None:
    store = open_store(bucket)
    for attempt in (1, 2):
        with results.RunLog(store, "r") as log:
            log.metrics(attempt, {"train/loss": 1.0 / attempt})
    assert results.read_metrics(store, "r")["train/loss"].to_pylist() == [1.0, 0.5]
    assert [event["attempt"] for event in results.read_events(store, "r")] == [1, 2]


def test_spark_and_pandas_read_the_record_without_this_library(spark: "SparkSession", bucket: str) -> None:
    values = {"validation/auc": 0.5, "validation/loss": 0.25}
    results.append(bucket, row("one", metrics=values, tags={"team": "a"}))
    with results.RunLog(open_store(bucket), "one") as log:
        log.metrics(7, values)

    (found,) = spark.read.format("delta").load(f"{spark_uri(bucket)}/runs_table").collect()
    assert (found["run_id"], found["metrics"], found["tags"]) == ("one", values, {"team": "a"})
    assert found["started"].timestamp() == START.timestamp()
    parts = spark.read.parquet(f"{spark_uri(bucket)}/runs/one/metrics").collect()
    assert {(part["step"], part["name"], part["value"]) for part in parts} == {(7, *item) for item in values.items()}
    frame = DeltaTable(f"{bucket}/runs_table", storage_options=delta_options(bucket)).to_pandas()
    assert frame.loc[0, "run_id"] == "one" and dict(frame.loc[0, "metrics"]) == values


def test_storage_that_cannot_be_reached_is_said_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ENDPOINT_URL": "http://127.0.0.1:1", "ACCESS_KEY_ID": "a", "SECRET_ACCESS_KEY": "b"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    with pytest.raises(StorageAccessError, match=r"s3://b/x/runs_table: [ -~]+ Check the endpoint") as caught:
        results.runs("s3://b/x")
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2
