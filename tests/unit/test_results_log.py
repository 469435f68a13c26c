import hashlib
import json
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mltrain import results
from mltrain.errors import DamagedError, NotFoundError
from mltrain.results import RunLog, RunRow, read_events, read_metrics, read_result
from mltrain.storage import open_store


def test_what_was_recorded_is_read_back_after_close(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with RunLog(store, "r") as log:
        log.event("generation formed", size=2)
        log.metrics(1, {"train/loss": 0.5}, epoch=0)
        log.metrics(2, {"train/loss": 0.4, "validation/auc": 0.9}, epoch=0)
        log.result({"status": "finished", "metrics": {"bad": float("nan")}})
    assert [event["event"] for event in read_events(store, "r")] == ["log opened", "generation formed"]
    table = read_metrics(store, "r")
    assert table.column_names == ["step", "epoch", "time", "train/loss", "validation/auc"]
    assert table["step"].to_pylist() == [1, 2]
    assert table["validation/auc"].to_pylist() == [None, 0.9]
    assert read_result(store, "r") == {"status": "finished", "metrics": {"bad": "nan"}}


def test_a_log_that_is_opened_again_overwrites_nothing(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    for attempt in range(3):
        with RunLog(store, "r") as log:
            log.event("here", attempt_number=attempt)
            log.metrics(attempt, {"train/loss": float(attempt)})
    assert [event["attempt"] for event in read_events(store, "r") if event["event"] == "here"] == [1, 2, 3]
    assert read_metrics(store, "r")["train/loss"].to_pylist() == [0.0, 1.0, 2.0]


def test_two_logs_of_one_run_open_at_once_keep_apart(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    old, new = RunLog(store, "r"), RunLog(store, "r")
    old.metrics(1, {"train/loss": 1.0})
    old.flush()
    new.metrics(1, {"train/loss": 2.0})
    new.flush()
    old.metrics(2, {"train/loss": 3.0})  # it has not noticed yet that it was replaced
    for log in (new, old):
        log.close()
    assert read_metrics(store, "r")["train/loss"].to_pylist() == [2.0]


def test_of_a_repeated_step_the_last_generation_counts(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with RunLog(store, "r") as log:
        for step in (1, 2, 3):
            log.metrics(step, {"train/loss": 1.0}, generation=1)
        log.metrics(3, {"train/loss": 2.0}, generation=2)
        log.metrics(4, {"train/loss": 2.0}, generation=2)
    assert read_metrics(store, "r")["train/loss"].to_pylist() == [1.0, 1.0, 2.0, 2.0]


def test_an_attempt_replaces_what_an_earlier_one_did_after_its_first_step(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with RunLog(store, "r") as log:
        for step in range(1, 6):
            log.metrics(step, {"train/loss": 1.0})
        log.metrics(2, {"validation/auc": 0.7})
    with RunLog(store, "r") as log:  # resumed from the checkpoint of step 2, and stopped at 3
        log.metrics(3, {"train/loss": 9.0})
    table = read_metrics(store, "r")
    assert table["step"].to_pylist() == [1, 2, 3]
    assert table["train/loss"].to_pylist() == [1.0, 1.0, 9.0]
    assert table["validation/auc"].to_pylist() == [None, 0.7, None]


def test_flush_makes_everything_so_far_durable_while_the_log_stays_open(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    log = RunLog(store, "r")
    log.event("one")
    log.metrics(1, {"train/loss": 1.0})
    log.flush()
    assert [event["event"] for event in read_events(store, "r")][-1] == "one"
    assert read_metrics(store, "r").num_rows == 1
    log.close()
    with pytest.raises(ValueError, match="closed"):
        log.event("two")


def test_parts_are_plain_parquet_with_the_same_columns(tmp_path: Path) -> None:
    with RunLog(open_store(tmp_path), "r") as log:
        log.metrics(1, {"train/loss": 1.0})
        log.flush()
        log.metrics(2, {"validation/auc": 1.0})
    table = pq.read_table(tmp_path / "runs/r/metrics")
    assert table["name"].to_pylist() == ["train/loss", "validation/auc"]


def test_a_run_that_recorded_nothing_has_no_metrics_and_no_result(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    RunLog(store, "r").close()
    assert read_metrics(store, "r").num_rows == 0
    assert not (tmp_path / "runs").exists()
    with pytest.raises(NotFoundError, match=r"runs/r has no result"):
        read_result(store, "r")


def test_a_damaged_part_is_named(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    with RunLog(store, "r") as log:
        log.event("one")
        log.metrics(1, {"train/loss": 1.0})
    store.put("runs/r/metrics/0001-000000.parquet", b"PAR1 not really")
    with pytest.raises(DamagedError, match=r"metrics/0001-000000.parquet"):
        read_metrics(store, "r")
    store.put("runs/r/events/0001-000001.jsonl", json.dumps({"event": "x"}).encode() + b"\n{")
    with pytest.raises(DamagedError, match=r"events/0001-000001.jsonl"):
        read_events(store, "r")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b"{"], ids=["deep", "list", "cut"])
def test_what_is_no_json_object_is_named(tmp_path: Path, content: bytes) -> None:
    store = open_store(tmp_path)
    store.put("runs/r/events/0001-000000.jsonl", content)
    with pytest.raises(DamagedError, match=r"events/0001-000000.jsonl"):
        read_events(store, "r")
    store.put("runs/r/result.json", content)
    with pytest.raises(DamagedError, match=r"result.json"):
        read_result(store, "r")


@pytest.mark.parametrize("content", [b"[" * 100_000, b"[1]", b"{"], ids=["deep", "list", "cut"])
def test_a_lineage_ends_at_a_checkpoint_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    """Its digest is what the run says, so it is what was written."""
    open_store(tmp_path).put("runs/r/checkpoints/step-1/manifest.json", content)
    at = datetime(2026, 1, 1, tzinfo=UTC)
    row = RunRow(
        run_id="r", status="finished", name="n", kind="train", config="", config_digest="c", started=at, ended=at,
        checkpoint=str(tmp_path / "runs/r/checkpoints/step-1"), checkpoint_digest=hashlib.sha256(content).hexdigest(),
    )  # fmt: skip
    results.append(str(tmp_path), row)
    with pytest.raises(DamagedError, match=r"step-1/manifest.json"):
        results.lineage(str(tmp_path), "r")
