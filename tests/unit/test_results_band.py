"""What changed a run's workers, as the picture below its curves marks it."""

from typing import Any

from mltrain.results.band import DRAIN, LOSS, SLOW, WAIT, Mark, Span, band


def _formed(*members: str) -> dict[str, Any]:
    return {"event": "generation formed", "members": list(members)}


def _begins(step: int) -> dict[str, Any]:
    return {"event": "training", "step": step}


def test_a_straggler_that_was_replaced_is_not_one_that_left_as_announced() -> None:
    straggler = {"event": "straggler", "worker": "a"}
    # The other one leaves the same generation, for a reason of its own.
    made = band([_formed("a", "b", "c"), _begins(0), straggler, _formed("c", "d"), _begins(20)], 30)
    assert made.spans == [Span(0, 20, 3), Span(20, 30, 2)]
    assert made.marks == [Mark(20, DRAIN), Mark(20, SLOW)]


def test_a_straggler_that_stays_is_no_mark() -> None:
    events = [_formed("a", "b"), _begins(0), {"event": "straggler", "worker": "a"}, _formed("a", "b", "c"), _begins(9)]
    assert band(events, 30).marks == []


def test_a_wait_for_workers_is_a_mark_where_it_held_the_steps_up_and_where_the_run_ended_with_it() -> None:
    lost, wait = {"event": "worker lost", "worker": "b"}, {"event": "too few workers"}
    begun = [_formed("a", "b"), _begins(0), lost, wait]
    assert band([*begun, _formed("a", "c"), _begins(12)], 30).marks == [Mark(12, LOSS), Mark(12, WAIT)]
    # Only to save what the survivor holds.
    assert band([*begun, _formed("a")], 12).marks == [Mark(12, LOSS), Mark(12, WAIT)]
