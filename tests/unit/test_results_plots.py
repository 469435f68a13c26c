from pathlib import Path

import pytest

from mltrain import results
from mltrain.errors import NotFoundError
from mltrain.results.loggers import Loggers
from mltrain.storage import open_store
from tests.unit.test_results_table import row

PNG = b"\x89PNG\r\n\x1a\n"


def recorded(root: Path, run_id: str, steps: int) -> None:
    with results.RunLog(open_store(root), run_id) as log:
        for step in range(1, steps + 1):
            log.metrics(step, {"train/loss": 1 / step})
        log.metrics(steps, {"validation/auc": 0.9})


def test_a_sweep_is_drawn_with_its_trials_curves(tmp_path: Path) -> None:
    root = str(tmp_path)
    for number, status in enumerate(("finished", "pruned", "failed")):
        recorded(tmp_path, f"s-{number}", steps=300)
        metrics = {} if status == "failed" else {"validation/auc": 0.8 + number / 100}
        results.append(root, row(f"s-{number}", status, kind="trial", sweep_id="s", metrics=metrics))
    config = "objective: {metric: validation/auc, mode: max}"
    results.append(root, row("s", kind="sweep", metrics={"validation/auc": 0.81}, config=config))
    files = results.plot(root, ["s"], tmp_path / "plots")
    assert [file.name for file in files] == ["s-sweep.png", "s-curves.png"]
    assert all(file.read_bytes().startswith(PNG) for file in files)


def test_a_run_without_metrics_cannot_be_drawn(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("a"))
    with pytest.raises(NotFoundError, match="a recorded no metrics"):
        results.plot(str(tmp_path), ["a"], tmp_path / "plots")


def test_tensorboard_reads_what_was_logged(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with Loggers(["tensorboard"], open_store(tmp_path), "r") as loggers:
        loggers.log(1, {"train/loss": 0.5})
        loggers.log(2, {"train/loss": 0.25})
    events = accumulator.EventAccumulator(str(tmp_path / "runs/r/logs/tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 0.5), (2, 0.25)]


def test_show_answers_row_events_and_trials(tmp_path: Path) -> None:
    root = str(tmp_path)
    recorded(tmp_path, "s-1", steps=2)
    results.append(root, row("s-1", kind="trial", sweep_id="s"))
    results.append(root, row("s", kind="sweep"))
    assert [trial["run_id"] for trial in results.show(root, "s")["trials"]] == ["s-1"]
    assert results.show(root, "s-1")["events"][0]["event"] == "log opened"
