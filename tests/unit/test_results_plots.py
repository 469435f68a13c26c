from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import StepPatch

from mltrain import results
from mltrain.errors import NotFoundError, RequestError
from mltrain.results.loggers import Loggers
from mltrain.results.plots import learning_curves, sweep_overview
from mltrain.storage import open_store
from tests.unit.test_results_table import row

PNG = b"\x89PNG\r\n\x1a\n"


TRIAL = """\
objective: {metric: validation/auc, mode: max}
model: {args: {hidden: [8]}}
train: {optimizer: {lr: 0.01}}
"""


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
        results.append(root, row(f"s-{number}", status, kind="trial", sweep_id="s", metrics=metrics, config=TRIAL))
    config = """\
objective: {metric: validation/auc, mode: max}
tune: {space: {train.optimizer.lr: {loguniform: [1e-4, 1e-1]}, model.args.hidden: {choice: [[8], [16]]}}}
"""
    results.append(root, row("s", kind="sweep", metrics={"validation/auc": 0.81}, config=config))
    files = results.plot(root, ["s"], tmp_path / "plots")
    assert [file.name for file in files] == ["s-sweep.png", "s-curves.png"]
    assert all(file.read_bytes().startswith(PNG) for file in files)


def axes(figures: list[Figure], title: str) -> Axes:
    (found,) = (axis for axis in figures[-1].axes if title in (axis.get_title(), axis.get_xlabel()))
    return found


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(x, y) for x, y in np.asarray(line.get_xydata()).tolist()]


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """What is drawn, also as data."""
    saved: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *arguments: Any, **options: Any) -> None:
        saved.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def history(steps: list[int], **values: list[float]) -> pa.Table:
    return pa.table({"step": steps, **{name.replace("_", "/", 1): column for name, column in values.items()}})


def test_curves_are_the_objective_and_the_losses_smoothed_alike(tmp_path: Path, figures: list[Figure]) -> None:
    long, short = list(range(1, 1201)), list(range(1, 101))
    noise = [1.0 + step % 2 for step in long]
    histories = {
        "long": history(long, train_loss=noise, validation_auc=noise, validation_log_loss=noise),
        "short": history(short, train_loss=noise[:100], validation_auc=noise[:100], validation_log_loss=noise[:100]),
    }
    learning_curves(histories, ["validation/auc"], tmp_path / "a.png")
    assert [axis.get_title() for axis in figures[-1].axes] == ["validation/auc", "train/loss"]
    lines = {str(line.get_label()): points(line) for line in axes(figures, "train/loss").lines}
    assert len(lines["long"]) == 60
    assert lines["short"] == lines["long"][:5]
    assert {value for _, value in lines["short"]} == {1.5}


def test_a_run_of_one_point_does_not_flatten_the_curves_of_others(tmp_path: Path, figures: list[Figure]) -> None:
    histories = {
        "good": history([10, 20], validation_loss=[0.4, 0.3]),
        "pruned": history([10], validation_loss=[50.0]),
    }
    learning_curves(histories, ["validation/loss"], tmp_path / "a.png")
    assert axes(figures, "validation/loss").get_ylim()[1] < 0.5


def test_a_sweep_is_drawn_over_each_of_its_parameters(tmp_path: Path, figures: list[Figure]) -> None:
    space: dict[str, Any] = {
        "train.optimizer.lr": {"loguniform": [1e-4, 1e-1]},
        "model.args.hidden": {"choice": [[8], [16]]},
    }
    trials = [
        {
            "run_id": f"s-00{number}", "status": "finished", "ended": number, "metrics": {"validation/loss": loss},
            "parameters": {"train.optimizer.lr": 10.0**-number, "model.args.hidden": [8]},
        }
        for number, loss in enumerate((0.5, 0.7, 0.3, 0.4), 1)
    ]  # fmt: skip
    sweep_overview(trials, space, "validation/loss", "min", tmp_path / "s-sweep.png")
    assert axes(figures, "train.optimizer.lr").get_xscale() == "log"
    assert axes(figures, "model.args.hidden").get_xscale() == "linear"
    (best,) = axes(figures, "trials, as they ended").lines
    assert [value for _, value in points(best)] == [0.5, 0.5, 0.3, 0.3]
    assert "best: 003" in [text.get_text() for text in figures[-1].legends[0].get_texts()]


def test_pictures_of_several_runs_are_named_after_the_first(tmp_path: Path) -> None:
    for run_id in ("a", "b"):
        recorded(tmp_path, run_id, steps=3)
        results.append(str(tmp_path), row(run_id, config=TRIAL))
    assert [file.name for file in results.plot(str(tmp_path), ["a"], tmp_path)] == ["a-curves.png"]
    assert [file.name for file in results.plot(str(tmp_path), ["b", "a"], tmp_path)] == ["b-and-1-more-curves.png"]


def test_a_run_without_metrics_cannot_be_drawn(tmp_path: Path) -> None:
    results.append(str(tmp_path), row("a", config=TRIAL))
    with pytest.raises(NotFoundError, match="a recorded no metrics"):
        results.plot(str(tmp_path), ["a"], tmp_path / "plots")


def test_a_picture_that_cannot_be_written_is_the_callers_concern(tmp_path: Path) -> None:
    recorded(tmp_path, "a", steps=3)
    results.append(str(tmp_path), row("a", config=TRIAL))
    (tmp_path / "file").touch()
    with pytest.raises(RequestError, match="file/a-curves.png cannot be written"):
        results.plot(str(tmp_path), ["a"], tmp_path / "file")


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
    results.append(root, row("s-1", kind="trial", sweep_id="s", config=TRIAL))
    results.append(root, row("s", kind="sweep", config=TRIAL))
    assert [trial["run_id"] for trial in results.show(root, "s")["trials"]] == ["s-1"]
    assert results.show(root, "s-1")["events"][0]["event"] == "log opened"


def test_below_the_curves_of_a_run_on_workers_is_how_many_there_were(tmp_path: Path, figures: list[Figure]) -> None:
    with results.RunLog(open_store(tmp_path), "a") as log:
        log.event("run started", step=0, workers=2)
        log.event("generation formed", generation=1, members=["x", "y"], reason="")
        log.event("training", generation=1, step=0)
        log.event("worker lost", worker="y", generation=1, reason="")
        log.event("generation formed", generation=2, members=["x"], reason="")
        log.event("training", generation=2, step=4)
        for step in range(1, 11):
            log.metrics(step, {"train/loss": 1 / step})
    for run_id in ("a", "b"):
        results.append(str(tmp_path), row(run_id, config=TRIAL))
    recorded(tmp_path, "b", steps=3)
    results.plot(str(tmp_path), ["a"], tmp_path)
    curve, workers = figures[-1].axes
    assert curve.get_title() == "train/loss" and workers.get_ylabel() == "workers"
    (stairs,) = (patch for patch in workers.patches if isinstance(patch, StepPatch))
    assert [list(values) for values in stairs.get_data()[:2]] == [[2, 1], [0, 4, 10]]
    assert [text.get_text() for text in figures[-1].legends[0].get_texts()] == ["loss"]
    # Several runs, or one that had no workers, have curves alone.
    for run_ids in (["a", "b"], ["b"]):
        results.plot(str(tmp_path), run_ids, tmp_path)
        assert not any(axis.get_ylabel() == "workers" for axis in figures[-1].axes)
