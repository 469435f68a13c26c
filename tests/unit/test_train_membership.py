"""Membership planning: pure, so that it is tested over many sets of facts without starting a process."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain.train.membership import (
    Action,
    Generation,
    Holding,
    Limits,
    WorkerState,
    WorkerStatus,
    holders,
    needed,
    plan,
    rank_order,
    relieved,
    replaceable,
    seats,
)

LIMITS = Limits(1, 3, 60.0)


def worker(
    name: str, state: WorkerState, rank: int | None = None, node: str = "n", draining: bool = False
) -> WorkerStatus:
    return WorkerStatus(name, node, state, rank, draining)


statuses = st.lists(
    st.builds(
        WorkerStatus,
        id=st.sampled_from([f"w{index}" for index in range(8)]),
        node=st.sampled_from(["a", "b", "c"]),
        state=st.sampled_from(WorkerState),
        rank=st.none() | st.integers(0, 7),
        draining=st.booleans(),
    ),
    unique_by=lambda status: status.id,
)
limits = st.builds(lambda low, more: Limits(low, low + more, 10.0), st.integers(1, 4), st.integers(0, 4))


@given(
    statuses,
    limits,
    st.none() | st.lists(st.sampled_from([f"w{i}" for i in range(8)]), unique=True, min_size=1),
    st.floats(0, 20),
)
def test_every_set_of_facts_has_a_sound_plan(
    workers: list[WorkerStatus], bounds: Limits, members: list[str] | None, waited: float
) -> None:
    running = None if members is None else Generation(3, tuple(members))
    decided = plan(running, workers, bounds, waited, fresh=False)
    known = {status.id: status for status in workers}
    assert decided == plan(running, list(reversed(workers)), bounds, waited, fresh=False)
    if running is None:
        assert decided.action in (Action.FORM, Action.WAIT, Action.STOP)
    else:
        assert decided.action in (Action.CONTINUE, Action.SHRINK, Action.REGROUP)
        lost = any(m not in known or known[m].state is not WorkerState.JOINED for m in running.members)
        assert (decided.action is Action.SHRINK) == lost
    if decided.action is Action.FORM:
        assert bounds.min <= len(decided.members) <= bounds.max
        assert len(set(decided.members)) == len(decided.members)
        assert all(known[m].state in (WorkerState.READY, WorkerState.JOINED) for m in decided.members)
        assert not any(known[m].draining for m in decided.members)
    if decided.action is Action.STOP:
        assert waited >= bounds.wait_s
    assert 0 <= decided.start <= bounds.max


@given(statuses)
def test_ranks_are_numbered_node_by_node_and_the_lowest_rank_stays_first(workers: list[WorkerStatus]) -> None:
    order = rank_order(workers)
    by_id = {status.id: status for status in workers}
    nodes = [by_id[name].node for name in order]
    assert sorted(order) == sorted(by_id)
    changes = sum(left != right for left, right in itertools.pairwise(nodes))
    assert changes == max(0, len(set(nodes)) - 1)
    ranked = [status for status in workers if status.rank is not None]
    if ranked:
        assert by_id[order[0]].rank == min(status.rank for status in ranked if status.rank is not None)


def test_survivors_go_on_at_once_and_a_replacement_is_started() -> None:
    ready = [worker("a", WorkerState.READY, 0), worker("b", WorkerState.READY, 2)]
    decided = plan(None, ready, LIMITS, 0.0, fresh=False)
    assert (decided.action, decided.members, decided.start) == (Action.FORM, ("a", "b"), 1)


def test_a_warm_newcomer_joins_at_an_agreed_step() -> None:
    workers = [worker("a", WorkerState.JOINED, 0), worker("b", WorkerState.READY)]
    assert plan(Generation(1, ("a",)), workers, LIMITS, 0.0, fresh=False).action is Action.REGROUP


def test_a_newcomer_that_is_still_warming_up_disturbs_nobody() -> None:
    workers = [worker("a", WorkerState.JOINED, 0), worker("b", WorkerState.WARMING)]
    assert plan(Generation(1, ("a",)), workers, LIMITS, 0.0, fresh=False).action is Action.CONTINUE


def test_a_draining_member_leaves_at_an_agreed_step_and_is_replaced() -> None:
    workers = [worker("a", WorkerState.JOINED, 0), worker("b", WorkerState.JOINED, 1, draining=True)]
    decided = plan(Generation(1, ("a", "b")), workers, Limits(1, 2, 60.0), 0.0, fresh=False)
    assert (decided.action, decided.start) == (Action.REGROUP, 1)


def test_only_a_fresh_run_waits_for_those_that_warm_up() -> None:
    workers = [worker("a", WorkerState.READY), worker("b", WorkerState.WARMING)]
    assert plan(None, workers, LIMITS, 0.0, fresh=True).action is Action.WAIT
    assert plan(None, workers, LIMITS, 0.0, fresh=False).action is Action.FORM


def test_below_the_minimum_it_waits_then_stops() -> None:
    bounds = Limits(2, 2, 60.0)
    workers = [worker("a", WorkerState.READY, 0)]
    assert plan(None, workers, bounds, 59.0, fresh=False).action is Action.WAIT
    assert plan(None, workers, bounds, 60.0, fresh=False).action is Action.STOP


def test_two_workers_of_one_id_are_a_mistake() -> None:
    with pytest.raises(ValueError):
        plan(None, [worker("a", WorkerState.READY)] * 2, LIMITS, 0.0, fresh=True)


def test_seats_count_ranks_within_nodes_and_nodes_across() -> None:
    found = seats(["a", "a", "b", "c", "c", "c"])
    assert [seat.local_rank for seat in found] == [0, 1, 0, 0, 1, 2]
    assert [seat.local_size for seat in found] == [2, 2, 1, 3, 3, 3]
    assert [seat.cross_rank for seat in found] == [0, 0, 1, 2, 1, 0]
    assert [seat.cross_size for seat in found] == [3, 2, 3, 3, 2, 1]


def held(worker: str, generation: int, step: int, *, there: bool = True) -> Holding:
    return Holding(worker, generation, step, there)


def test_those_left_of_the_latest_generation_hold_the_state() -> None:
    workers = [held("a", 4, 17), held("b", 4, 18), held("newcomer", 4, -1), held("late", 3, 18)]
    assert holders(workers, saved=10) == (("a", "b"), False)


def test_of_a_generation_that_is_lost_whole_the_one_before_holds_the_state() -> None:
    assert holders([held("a", 1, 13), held("b", 1, 12)], saved=-1) == (("a", "b"), False)


def test_a_state_older_than_the_newest_checkpoint_is_none() -> None:
    assert holders([held("a", 1, 13)], saved=14) == ((), False)
    assert holders([held("a", 1, 14)], saved=14) == (("a",), False)


@pytest.mark.parametrize("step", [-1, 30])
def test_silent_workers_of_a_later_generation_may_hold_a_later_state(step: int) -> None:
    silent = held("s", 3, step, there=False)
    assert holders([held("a", 2, 13), silent], saved=-1) == (("a",), True)
    assert holders([silent], saved=-1) == ((), True)
    assert holders([held("a", 3, 13), silent], saved=-1) == (("a",), False)


def test_the_only_holders_of_the_state_take_part_whatever_is_held_against_their_node() -> None:
    flapped = WorkerStatus("a", "n", WorkerState.READY, 0, held=True)
    slow = WorkerStatus("b", "m", WorkerState.READY, 1, slow=True)
    others = [worker("c", WorkerState.READY), worker("d", WorkerState.READY), worker("e", WorkerState.READY)]
    for holding in (flapped, slow):
        assert "a" not in plan(None, [flapped, *others], LIMITS, 0.0, fresh=False).members
        formed = plan(None, needed([holding, *others], [holding.id]), LIMITS, 0.0, fresh=False)
        assert formed.members[0] == holding.id
    assert needed([flapped, *others], ["a", "c"]) == [flapped, *others]


def stand_in(name: str, state: WorkerState, rank: int | None = None) -> WorkerStatus:
    return WorkerStatus(name, "od", state, rank, stand_in=True)


def test_a_stand_in_leaves_when_there_is_another_in_its_place_and_not_before() -> None:
    joined = [worker("a", WorkerState.JOINED, 0), stand_in("b", WorkerState.JOINED, 1)]
    two, running = Limits(1, 2, 60.0), Generation(1, ("a", "b"))
    assert relieved(joined, 2) == joined and replaceable(joined, 2) == 1

    coming = [*joined, worker("c", WorkerState.WARMING)]
    assert relieved(coming, 2) == coming and replaceable(coming, 2) == 0
    # Who comes in its place is not too many.
    decided = plan(running, coming, two, 0.0, fresh=False)
    assert (decided.action, decided.start, decided.release) == (Action.CONTINUE, 0, ())

    ready = relieved([*joined, worker("c", WorkerState.READY)], 2)
    assert [status.draining for status in ready] == [False, True, False]
    assert plan(running, ready, two, 0.0, fresh=False).action is Action.REGROUP
    left = relieved(
        [worker("a", WorkerState.READY, 0), stand_in("b", WorkerState.READY, 1), worker("c", WorkerState.READY)], 2
    )
    formed = plan(None, left, two, 0.0, fresh=False)
    assert (formed.members, formed.release) == (("a", "c"), ("b",))


def test_of_more_stand_ins_than_needed_those_outside_the_generation_go_first() -> None:
    there = [worker("a", WorkerState.JOINED, 0), stand_in("b", WorkerState.READY), stand_in("c", WorkerState.JOINED, 1)]
    assert [status.id for status in relieved(there, 2) if status.draining] == ["b"]


def test_who_is_lost_slow_or_held_back_relieves_nobody() -> None:
    b = stand_in("b", WorkerState.JOINED, 0)
    for other in (
        worker("a", WorkerState.SUSPECT),
        worker("a", WorkerState.READY, draining=True),
        WorkerStatus("a", "n", WorkerState.READY, slow=True),
        WorkerStatus("a", "n", WorkerState.READY, held=True),
    ):
        assert relieved([b, other], 1) == [b, other]


@given(statuses, st.integers(1, 4), st.sets(st.sampled_from([f"w{index}" for index in range(8)])))
def test_relieving_stand_ins_never_leaves_fewer_workers_than_are_wanted(
    workers: list[WorkerStatus], most: int, standing: set[str]
) -> None:
    marked = [replace(status, stand_in=status.id in standing) for status in workers]

    def able(found: list[WorkerStatus]) -> int:
        there = (WorkerState.READY, WorkerState.JOINED)
        return sum(status.state in there and not status.draining for status in found)

    after = relieved(marked, most)
    assert able(after) == able(marked) or able(after) >= most
    assert all(old == new or (old.stand_in and new.draining) for old, new in zip(marked, after, strict=True))
    assert relieved(after, most) == after
    if not any(status.stand_in for status in marked):
        assert after == marked and replaceable(marked, most) == 0


marked = st.lists(
    st.builds(
        WorkerStatus,
        id=st.sampled_from([f"w{index}" for index in range(6)]),
        node=st.sampled_from(["a", "b", "c"]),
        state=st.sampled_from([WorkerState.READY, WorkerState.WARMING]),
        held=st.booleans(),
        slow=st.booleans(),
        stand_in=st.booleans(),
    ),
    unique_by=lambda status: status.id,
    min_size=1,
)


@given(marked, limits)
def test_left_alone_memberships_come_to_rest_with_the_best_there_are(
    workers: list[WorkerStatus], bounds: Limits
) -> None:
    # Who had part before and is still fine: without, all that hold the state may be slow, which nobody is alone.
    workers = [WorkerStatus("first", "a", WorkerState.READY, 0), *workers]
    generation: Generation | None = None
    for number in range(1, 10):
        decided = plan(generation, relieved(workers, bounds.max), bounds, 0.0, fresh=False)
        workers = [status for status in workers if status.id not in decided.release]
        if decided.action is Action.FORM:
            generation = Generation(number, decided.members)
            workers = [_joined(status, decided.members) for status in workers]
        elif decided.action is Action.REGROUP:
            generation = None
            workers = [
                replace(status, state=WorkerState.READY) if status.state is WorkerState.JOINED else status
                for status in workers
            ]
        elif not decided.release:
            break
    else:
        pytest.fail(f"no rest: {decided}")
    if generation is None:
        assert decided.action is Action.WAIT
        return
    for status in workers:
        if status.state is WorkerState.READY and not status.held and not (status.slow or status.stand_in):
            taking_part = [other for other in workers if other.id in generation.members]
            assert not any(other.slow or other.stand_in for other in taking_part)


def _joined(status: WorkerStatus, members: tuple[str, ...]) -> WorkerStatus:
    return replace(status, state=WorkerState.JOINED, rank=members.index(status.id)) if status.id in members else status
