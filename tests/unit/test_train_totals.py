"""A run's numbers, folded from its events."""

from typing import Any

import pytest

from mltrain.train.totals import Totals


def event(attempt: int, time: float, kind: str, **fields: Any) -> dict[str, Any]:
    return {"attempt": attempt, "time": time, "event": kind, **fields}


FIRST = [
    event(1, 103, "log opened"),
    event(1, 100, "run started"),
    event(1, 101, "worker placed", worker="a"),
    event(1, 102, "worker placed", worker="b"),
    event(1, 104, "generation formed", members=["a", "b"]),
    event(1, 110, "worker lost", worker="b", generation=1),
    event(1, 111, "generation formed", members=["a"]),
    event(1, 111.5, "training again", downtime_s=1.5, steps_repeated=1),
    event(1, 115, "worker placed", worker="c"),
    event(1, 116, "worker lost", worker="c", generation=None),
    event(1, 120, "checkpoint"),
]
AGAIN = {"downtime_s": 1.0, "steps_repeated": 3}
SECOND = [
    event(2, 500, "run started"),
    event(2, 501, "worker placed", worker="d"),
    event(2, 502, "generation formed", members=["d"]),
    event(2, 510, "worker released", worker="d"),
    event(2, 512, "run finished"),
]


def test_a_loss_counts_when_the_worker_took_part_and_its_downtime_with_it() -> None:
    totals = Totals.of(FIRST)
    assert (totals.losses, totals.downtime_s, totals.steps_repeated) == (1, 1.5, 1)
    assert (totals.generations, totals.workers, totals.first) == (2, 2, 100)


def test_the_wait_of_a_run_that_stops_without_training_again_is_downtime() -> None:
    lost = [*FIRST, event(1, 121, "worker lost", worker="a", generation=2), event(1, 122, "generation ended")]
    stopped = [*lost, event(1, 181, "too few workers"), event(1, 721, "run stopped"), event(1, 722, "worker released")]
    live = Totals()
    for each in stopped[:-1]:
        live.add(each)
    assert live.downtime_s == 1.5 + 600 == Totals.of(stopped[:-1]).downtime_s
    assert Totals.of(lost).downtime_s == 1.5 + 1, "its driver was killed"


def test_workers_count_from_their_start_to_their_end_or_the_end_of_the_attempt() -> None:
    assert Totals.of(FIRST).worker_seconds == pytest.approx((120 - 101) + (110 - 102) + (116 - 115))


def test_attempts_add_up_whether_they_are_read_back_or_under_way() -> None:
    stored, live = Totals.of(FIRST + SECOND), Totals.of(FIRST)
    for each in SECOND:
        live.add(each)
    assert stored.wall_s == live.wall_s == 20 + 12
    assert stored.worker_seconds == live.worker_seconds == Totals.of(FIRST).worker_seconds + 9
    assert stored.rollbacks == live.rollbacks == 1
    assert stored.generations == 3 and stored.losses == 1 and stored.first == 100


def test_the_state_is_lost_with_all_workers_or_with_a_killed_controller_and_not_with_one_worker() -> None:
    rolled_back = [*FIRST, event(1, 121, "state lost", step=0), event(1, 122, "training again", **AGAIN)]
    stopped = event(1, 130, "run stopped")
    assert [Totals.of(each).rollbacks for each in (FIRST, [*FIRST, stopped], [*rolled_back, stopped])] == [1, 0, 1]
    assert Totals.of([*rolled_back, *SECOND]).rollbacks == 2
