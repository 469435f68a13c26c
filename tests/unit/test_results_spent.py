"""Where the seconds of a run's nodes went, folded from its events."""

from typing import Any

import pytest

from mltrain.results.spent import Spent, spent

Event = dict[str, Any]


def event(time: float, kind: str, attempt: int = 1, **fields: Any) -> Event:
    return {"attempt": attempt, "time": time, "event": kind, **fields}


def beginning(attempt: int = 1) -> list[Event]:
    """Two workers, ready after 10 s, train from second 12 on."""
    return [
        event(0, "run started", attempt, step=0),
        event(0, "worker started", attempt, worker="a", market="spot"),
        event(0, "worker started", attempt, worker="b", market="on-demand"),
        event(10, "worker ready", attempt, worker="a"),
        event(10, "worker ready", attempt, worker="b"),
        event(11, "generation formed", attempt, generation=1, members=["a", "b"]),
        event(12, "training", attempt, generation=1, step=0),
    ]


def test_an_undisturbed_run_starts_waits_and_trains() -> None:
    found = spent([*beginning(), event(112, "generation ended", generation=1), event(113, "run finished")])
    # From ready to formed there was nothing that it could have taken part in.
    assert found == {name: Spent(training=100, start_up=10, pauses=2, idle=1) for name in ("spot", "on-demand")}


def test_a_checkpoint_holds_all_of_a_generation_up() -> None:
    saved = event(50, "checkpoint", step=30, stall_s=0.5, waited_s=0.25, write_s=3.0)
    found = spent([*beginning(), saved, event(112, "generation ended", generation=1)])
    assert found["spot"] == Spent(training=99.25, start_up=10, pauses=1.75, idle=1)


def test_a_killed_worker_stops_the_training_and_the_step_under_way_is_void() -> None:
    found = spent(
        [
            *beginning(),
            event(112, "worker lost", worker="b", generation=1),
            event(112, "generation ended", generation=1),
            event(112, "generation formed", generation=2, members=["a"]),
            event(112.5, "training", generation=2, step=100),
            event(113.5, "training again", steps_repeated=1, downtime_s=1.5),
            event(122.5, "run finished"),
        ]
    )
    # 100 steps and half of another in 100 s.
    void = 0.5 * 100 / 100.5
    assert found["spot"].repeated == found["on-demand"].repeated == pytest.approx(void)
    assert found["spot"].training == pytest.approx(110 - void)
    assert found["spot"].pauses == pytest.approx(1.5)
    assert found["on-demand"].total == 112


def test_a_vanished_node_is_nobodys_and_its_peers_wait_from_its_last_sign_of_life() -> None:
    found = spent(
        [
            *beginning(),
            event(114, "worker silent", worker="b", silent_s=2.0),
            event(114.5, "generation ended", generation=1),
            event(114.5, "generation formed", generation=2, members=["a"]),
            event(115, "training", generation=2, step=0),
            event(116, "worker lost", worker="b", generation=None),
            event(120, "run finished"),
        ]
    )
    assert found["on-demand"].total == 112 and found["on-demand"].training == 100
    assert found["spot"].pauses == pytest.approx(1 + 3) and found["spot"].training == pytest.approx(100 + 5)


def test_a_worker_that_is_heard_again_has_waited() -> None:
    found = spent(
        [
            *beginning(),
            event(114, "worker silent", worker="b", silent_s=2.0),
            event(115, "worker heard again", worker="b"),
            event(116, "generation ended", generation=1),
        ]
    )
    assert found["on-demand"] == found["spot"] == Spent(training=100, start_up=10, pauses=5, idle=1)


def test_who_is_ready_and_not_asked_is_idle() -> None:
    found = spent(
        [
            *beginning(),
            event(20, "worker started", worker="c", market="spot"),
            event(25, "worker ready", worker="c"),
            event(32, "run finished"),
        ]
    )
    assert found["spot"] == Spent(training=20, start_up=10 + 5, pauses=1, idle=1 + 7)


def test_after_a_driver_that_died_what_no_checkpoint_held_is_repeated() -> None:
    saved = event(62, "checkpoint", step=50, stall_s=0.0, waited_s=0.0, write_s=10.0)
    first = [*beginning(), saved, event(112, "evaluation")]
    again = [event(200 + each["time"], each["event"], 2, **_rest(each)) for each in beginning()]
    found = spent([*first, *again, event(262, "run finished", 2)])
    # 50 s trained when the checkpoint became one, 40 of them in it.
    assert found["spot"] == Spent(training=40 + 50, start_up=20, pauses=2, repeated=60, idle=2)
    # While the second attempt has not begun, nobody knows that the first is over.
    assert spent(first)["spot"].repeated == 0.0


def test_training_in_one_process_is_training() -> None:
    found = spent([event(0, "generation formed", generation=1, members=["local"]), event(60, "run finished", step=10)])
    assert found == {"unknown": Spent(training=60)}


def _rest(event: Event) -> Event:
    return {name: value for name, value in event.items() if name not in ("attempt", "time", "event")}
