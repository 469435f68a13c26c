from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import CommitProperties, DeltaTable, Transaction, write_deltalake
from deltalake.exceptions import CommitFailedError

from mltrain import results
from mltrain.errors import NotFoundError, RequestError
from mltrain.results.table import table_uri

START = datetime(2026, 1, 1, tzinfo=UTC)


def row(run_id: str, status: str = "finished", minutes: int = 0, **fields: Any) -> results.RunRow:
    at = START + timedelta(minutes=minutes)
    required: dict[str, Any] = {
        "name": "n",
        "kind": "train",
        "config": "name: n",
        "config_digest": "c",
        "started": at,
        "ended": at,
    }
    return results.RunRow(**{"run_id": run_id, "status": status, **required, **fields})


def test_a_row_comes_back_as_it_was_appended(tmp_path: Path) -> None:
    results.append(
        str(tmp_path), row("a", metrics={"validation/auc": 0.9}, tags={"team": "growth"}, worker_seconds=3.5)
    )
    found = results.get(str(tmp_path), "a")
    assert found["metrics"] == {"validation/auc": 0.9}
    assert found["tags"] == {"team": "growth"}
    assert found["started"] == START
    assert found["cost"] is None


def test_appending_a_row_twice_adds_it_once_for_every_reader(tmp_path: Path) -> None:
    once = row("a")
    for _ in range(2):
        results.append(str(tmp_path), once)
    assert DeltaTable(table_uri(str(tmp_path))).to_pyarrow_table().num_rows == 1


def test_an_append_whose_answer_was_lost_is_not_repeated(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("a"))
    before = DeltaTable(table_uri(str(tmp_path)))
    lost = row("b")
    results.append(str(tmp_path), lost)
    # The writer still holds the table as it was before its own commit, and tries again.
    again = CommitProperties(max_commit_retries=5, app_transactions=[Transaction(lost.row_id, 1)])
    with pytest.raises(CommitFailedError):
        write_deltalake(before, results.runs(str(tmp_path)).slice(1), mode="append", commit_properties=again)
    assert DeltaTable(table_uri(str(tmp_path))).to_pyarrow_table().num_rows == 2


def test_of_a_run_that_ended_twice_the_last_row_counts(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("a", "stopped"))
    results.append(str(tmp_path), row("b", minutes=1))
    results.append(str(tmp_path), row("a", "finished"))
    table = results.runs(str(tmp_path))
    assert table["run_id"].to_pylist() == ["a", "b"]
    assert table["status"].to_pylist() == ["finished", "finished"]


def test_metrics_of_the_test_split_are_added_to_a_runs_row(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("a", metrics={"validation/auc": 0.9}, tags={"team": "growth"}))
    results.add_metrics(str(tmp_path), "a", {"test/auc": 0.8})
    found = results.get(str(tmp_path), "a")
    assert found["metrics"] == {"validation/auc": 0.9, "test/auc": 0.8}
    assert found["tags"] == {"team": "growth"}
    assert results.runs(str(tmp_path)).num_rows == 1


def test_an_unknown_run_is_refused_with_near_names(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("adult-20260101-aaaaaa"))
    with pytest.raises(NotFoundError, match=r"adult-20260101-aaaaab.*near: adult-20260101-aaaaaa"):
        results.get(str(tmp_path), "adult-20260101-aaaaab")


def test_a_root_where_nothing_ran_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="nothing has run below"):
        results.runs(str(tmp_path))


def test_creating_the_table_twice_keeps_its_rows(tmp_path: Path) -> None:
    results.ensure_table(str(tmp_path))
    results.append(str(tmp_path), row("a"))
    results.ensure_table(str(tmp_path))
    assert results.runs(str(tmp_path)).num_rows == 1


def test_unsafe_renames_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_S3_ALLOW_UNSAFE_RENAME", "true")
    with pytest.raises(RequestError, match="AWS_S3_ALLOW_UNSAFE_RENAME is set"):
        results.append(str(tmp_path), row("a"))


@pytest.mark.parametrize("metrics", [{"auc": "good"}, {"auc": None}, {7: 0.5}, {"auc": True}, {"auc": [1.0]}])
def test_what_is_no_metric_is_refused(tmp_path: Path, metrics: dict[Any, Any]) -> None:
    results.append(str(tmp_path), row("a"))
    with pytest.raises(RequestError, match="wanted a name, as in test/auc, and a number"):
        results.add_metrics(str(tmp_path), "a", metrics)
    assert results.get(str(tmp_path), "a")["metrics"] == {}
