"""What the live view of a training says, from what it was told."""

import time
from typing import Any

from mltrain.cli.live import TrainingView
from mltrain.progress import Passing, Watcher


def started(**changes: Any) -> tuple[TrainingView, list[str]]:
    lines: list[str] = []
    view = TrainingView(lines.append, "validation/auc", "max")
    began = {"step": 0, "steps": 1000, "steps_per_epoch": 500, "workers": 3, "losses": 0, **changes}
    view.event("run started", began)
    return view, lines


def done(view: TrainingView, first: int, last: int) -> None:
    for step in range(first, last + 1):
        view.step(step, {"train/rows": 128.0})


def test_it_says_how_far_how_fast_and_how_long() -> None:
    view, _ = started(step=100)
    view.lines(0.0)
    # Nothing is known of the speed before the first step.
    done(view, 101, 101)
    assert view.lines(30.0)[1] == "step 101 of 1,000 · epoch 0.2 of 2.0"
    done(view, 102, 121)
    assert view.lines(32.0)[1:] == [
        "step 121 of 1,000 · epoch 0.2 of 2.0 · ETA 1:27",
        "10 steps/s · 1,280 samples/s · checkpoint after step 100",
    ]
    # The speed is that of the last ten seconds, the time left that of the last minutes.
    for second in range(33, 60):
        done(view, second + 89, second + 89)
        lines = view.lines(float(second))
    assert lines[1].endswith("ETA 8:45") and lines[2].startswith("1 steps/s · 128 samples/s")
    assert view.share() == 0.148


def test_losses_of_former_attempts_were_survived_too() -> None:
    view, _ = started(step=100, losses=2)
    assert view.lines(0.0)[0].endswith("2 losses survived")
    view.event("generation formed", {"generation": 1, "members": ["a", "b"]})
    view.event("worker lost", {"worker": "a", "generation": 1})
    assert view.lines(0.0)[0].endswith("3 losses survived")


def test_a_silent_worker_is_not_on_the_way_until_it_is_heard_again() -> None:
    view, _ = started()
    for worker in "abc":
        view.event("worker started", {"worker": worker, "node": "n"})
    view.event("generation formed", {"generation": 1, "members": ["a", "b", "c"]})
    view.event("worker silent", {"worker": "a", "silent_s": 2.1})
    assert view.lines(0.0)[0].startswith("going on without it · 2 of 3 workers · ")
    view.event("worker heard again", {"worker": "a"})
    assert view.lines(0.0)[0].startswith("going on without it · 2 of 3 workers (1 on the way) · ")


def test_it_counts_workers_and_losses() -> None:
    view, _ = started()
    for worker in "abc":
        view.event("worker started", {"worker": worker, "node": "n"})
    assert view.lines(0.0)[0] == "starting · 0 of 3 workers (3 on the way) · generation 0 · 0 losses survived"
    view.event("generation formed", {"generation": 1, "members": ["a", "b", "c"]})
    view.event("training", {"generation": 1, "step": 0})
    assert view.lines(0.0)[0] == "training · 3 of 3 workers · generation 1 · 0 losses survived"
    view.event("worker lost", {"worker": "a", "generation": 1})
    assert view.lines(0.0)[0].startswith("going on without it · 2 of 3 workers · generation 1 · 1 loss survived")
    view.event("worker started", {"worker": "d", "node": "n"})
    view.event("generation formed", {"generation": 2, "members": ["b", "c"]})
    view.event("training", {"generation": 2, "step": 7})
    assert view.lines(0.0)[0] == "training · 2 of 3 workers (1 on the way) · generation 2 · 1 loss survived"
    # One that never took part was no loss to survive.
    view.event("worker lost", {"worker": "d", "generation": None})
    assert view.lines(0.0)[0] == "training · 2 of 3 workers · generation 2 · 1 loss survived"
    for worker in "bc":
        view.event("worker lost", {"worker": worker, "generation": 2})
    assert view.lines(0.0)[0].startswith("waiting for workers · 0 of 3 workers")
    view.event("too few workers", {"ready": 1, "least": 2})
    assert view.lines(0.0)[0].startswith("waiting for workers (1 of 2 ready) · 0 of 3 workers")


def test_nothing_is_fast_that_waits() -> None:
    view, _ = started()
    view.event("training", {"generation": 1, "step": 0})
    for second in range(20):
        view.step(second + 1, {"train/rows": 128.0})
        view.lines(float(second))
    assert "ETA" in view.lines(20.0)[1] and "steps/s" in view.lines(20.0)[2]
    view.event("too few workers", {"ready": 1, "least": 2})
    assert "ETA" not in view.lines(21.0)[1] and view.lines(21.0)[2] == "no checkpoint yet"


def test_a_resumed_run_has_a_checkpoint() -> None:
    view, _ = started()
    view.event("run started", {"step": 40, "steps": 100, "steps_per_epoch": 10, "workers": 3, "losses": 0})
    assert view.lines(0.0)[2] == "checkpoint after step 40"


def test_it_has_the_objective_and_the_last_checkpoint() -> None:
    view, lines = started(workers=0)
    assert view.lines(0.0)[2] == "no checkpoint yet"
    for step, value in ((100, 0.7), (200, 0.9), (300, 0.8)):
        view.event("evaluation", {"step": step, "metrics": {"validation/auc": value}})
    view.event("checkpoint", {"step": 300})
    assert view.lines(time.monotonic())[2:] == [
        "checkpoint after step 300, 0:00 ago",
        "validation/auc 0.8000, best 0.9000 after step 200",
    ]
    # What it shows need not be said, but what happened is.
    view(Passing("an evaluation"))
    view("an evaluation, the best so far")
    assert lines == ["an evaluation, the best so far"]


def test_it_watches() -> None:
    assert isinstance(started()[0], Watcher)
    assert not isinstance([].append, Watcher)
