"""Traces of spot fleets, and the simulator of a run on them."""

from dataclasses import replace

import pytest

from benchmarks.spot.simulator import Costs, Goodput, Notices, bound_s, restarting, simulate
from benchmarks.spot.traces import FILES, Life, Trace, lives_of, load, read_changes, read_counts
from mltrain.spot import LEAD_S

HOUR = load("p3").window(0.8 * 3600, 3600)
FREE = Costs(
    node_start_s=0.0, place_s=0.0, worker_start_s=0.0, react_s=0.0, leave_s=0.0, abort_s=0.0, form_s=0.0,
    interval_s=0.0, deadline_s=0.0, give_up_s=0.0, stall_s=0.0, write_s=0.0, restore_s=0.0, step_s=0.0, work_s=0.1,
)  # fmt: skip
LATE = Notices(lead_s=120.0, leave_s=15.0)


def fleet(*lives: tuple[float, float, bool]) -> Trace:
    made = tuple(Life(f"n{number}", *life) for number, life in enumerate(lives))
    return Trace("made", made, max(life.end_s for life in made))


# Traces


def test_changes_become_lives_and_who_stays_is_not_taken() -> None:
    lives, duration_s = read_changes("0,add,a\n60000,add,b,c\n120000,remove,a\n180000,remove,c\n")
    assert lives == (Life("a", 0, 120, True), Life("b", 60, 180, False), Life("c", 60, 180, True))
    assert duration_s == 180


@pytest.mark.parametrize(
    "text", ["0,add,a\n0,add,a\n", "0,remove,a\n", "0,add,a\n1,remove,a\n2,remove,a\n", "0,go,a\n"]
)
def test_a_change_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="line"):
        read_changes(text)


def test_a_line_that_goes_back_in_time_replaces_what_was_said_of_it() -> None:
    lines = ["2021-12-10, 13:00:00, 8", "2021-12-10, 13:01:00, 8", "2021-12-10, 13:02:00, 8", "2021-12-10, 13:00:30, 5"]
    assert read_counts("\n".join([*lines, "2021-12-10, 13:03:00, 6"])) == [(0, 8), (30, 5), (180, 6)]


def test_lives_drawn_from_counts_give_these_counts() -> None:
    counts = [(0.0, 4), (10.0, 1), (20.0, 3), (30.0, 3)]
    lives, duration_s = lives_of(counts, seed=3)
    assert Trace("made", lives, duration_s).counts() == [(0.0, 4), (10.0, 1), (20.0, 3), (30.0, 0)]
    assert sum(life.taken for life in lives) == 3
    assert lives == lives_of(counts, seed=3)[0] != lives_of(counts, seed=4)[0]


@pytest.mark.parametrize(
    ("name", "removals", "most", "hours"),
    [("p3", 167, 32, 11.37), ("g4dn", 74, 24, 10.77), ("a100", 154, 64, 27.02), ("v100", 518, 80, 24.17)],
)
def test_the_traces_hold_what_is_said_of_them(name: str, removals: int, most: int, hours: float) -> None:
    trace = load(name)
    assert (trace.removals, trace.most) == (removals, most)
    assert trace.duration_s / 3600 == pytest.approx(hours, abs=0.01)
    assert set(FILES) >= {name} and all(life.begin_s < life.end_s <= trace.duration_s for life in trace.lives)


def test_a_window_keeps_the_nodes_times_and_says_who_is_taken_in_it() -> None:
    whole = fleet((0, 100, True), (50, 300, True), (250, 300, False))
    part = whole.window(60, 100)
    assert part.lives == (Life("n0", 0, 40, True), Life("n1", 0, 100, False)) and part.duration_s == 100
    windows = [load("g4dn").window(start, 1800.0) for start in range(0, 41400, 1800)]
    assert sum(window.node_s for window in windows) == pytest.approx(load("g4dn").node_s)
    assert sum(window.removals for window in windows) == load("g4dn").removals


def test_a_thinned_trace_has_its_share_of_the_nodes_and_never_more_than_asked_for() -> None:
    thin = HOUR.thinned(6)
    assert thin.most == 6 and {life.node for life in thin.lives} < {life.node for life in HOUR.lives}
    assert thin.node_s / HOUR.node_s == pytest.approx(6 / 32, rel=0.25)
    assert thin.compressed(12).node_s == pytest.approx(thin.node_s / 12)


# The simulator


def shares_add_up(found: Goodput) -> bool:
    return found.spent.total == pytest.approx(found.bound_s) and all(
        seconds >= -1e-6 for seconds in vars(found.spent).values()
    )


@pytest.mark.parametrize("notices", [Notices(), LATE, Notices(missing=1.0), replace(LATE, missing=0.5, false_s=7200)])
def test_every_second_of_every_node_became_something(notices: Notices) -> None:
    found = simulate(HOUR, Costs(), notices, driver_lost_s=1800.0, seed=5)
    assert shares_add_up(found) and found.bound_s == bound_s(HOUR, Costs().node_start_s)


@pytest.mark.parametrize("growth", [False, True])
def test_so_it_is_where_losses_restart_everything(growth: bool) -> None:
    assert shares_add_up(restarting(HOUR, Costs(), 72.0, growth=growth))


def test_where_nothing_happens_and_nothing_costs_the_bound_is_reached() -> None:
    quiet = fleet((0, 5000, False), (0, 5000, False))
    assert simulate(quiet, FREE, Notices(), every_s=100.0).share == pytest.approx(1.0, abs=1e-6)
    assert restarting(quiet, FREE, 72.0, every_s=100.0).share == pytest.approx(1.0, abs=1e-6)


def test_then_a_checkpoint_takes_its_share_of_its_interval() -> None:
    quiet = fleet((0, 5000, False), (0, 5000, False))
    found = simulate(quiet, replace(FREE, stall_s=1.0), Notices(), every_s=99.0)
    assert found.share == pytest.approx(0.99, abs=0.001) and found.spent.pauses == pytest.approx(2 * 50, abs=2)


def test_an_announced_loss_costs_the_others_no_step() -> None:
    found = simulate(fleet((0, 5000, False), (0, 3000, True)), Costs(), LATE)
    assert found.spent.repeated == 0.0 and found.rollbacks == 0 and found.generations == 2


def test_an_unannounced_loss_costs_the_deadline_and_no_more_than_a_step() -> None:
    costs = Costs(stall_s=0.0, step_s=0.5, work_s=0.0)
    found = simulate(fleet((0, 5000, False), (0, 3000.2, True)), costs, Notices(missing=1.0))
    assert 0.0 < found.spent.repeated <= 2 * 0.5 and found.rollbacks == 0
    assert found.spent.pauses == pytest.approx(2 * costs.form_s + costs.deadline_s + costs.form_s, abs=1.5)


def test_who_loses_everybody_goes_on_from_the_last_checkpoint() -> None:
    found = simulate(fleet((0, 1000, True), (0, 1000, True), (500, 3000, False)), Costs(), Notices(missing=1.0))
    assert found.rollbacks == 0
    gone = simulate(fleet((0, 1000, True), (950, 3000, False)), Costs(), Notices(missing=1.0), every_s=300.0)
    assert gone.rollbacks == 1 and gone.spent.repeated == pytest.approx(1000 - 71 - 3 * 300, abs=60)


def test_a_lost_driver_costs_what_no_checkpoint_held() -> None:
    found = simulate(fleet((0, 20000, False)), Costs(), Notices(), every_s=500.0, driver_lost_s=4000.0, seed=1)
    losses = sum(event["event"] == "driver lost" for event in found.events)
    assert losses > 1 and 0 < found.spent.repeated < losses * 520


def test_the_same_seed_gives_the_same_run() -> None:
    one, two = (simulate(HOUR, Costs(), replace(LATE, missing=0.5), seed=2) for _ in range(2))
    assert list(one.events) == list(two.events)
    assert simulate(HOUR, Costs(), replace(LATE, missing=0.5), seed=3).events != one.events


@pytest.mark.parametrize(
    ("name", "more"),
    [("worker_start_s", 60.0), ("form_s", 5.0), ("deadline_s", 20.0), ("stall_s", 5.0), ("leave_s", 5.0)],
)
def test_what_costs_more_gives_no_more(name: str, more: float) -> None:
    notices = replace(LATE, missing=0.5)
    found = [
        simulate(HOUR, replace(Costs(), **{name: getattr(Costs(), name) + step * more}), notices).share
        for step in range(3)
    ]
    assert found[0] > found[1] > found[2]


def test_a_longer_restart_gives_less_and_one_more_reason_to_restart_too() -> None:
    shares = [restarting(HOUR, Costs(), seconds).share for seconds in (1.0, 13.0, 72.0)]
    assert sorted(shares, reverse=True) == shares
    assert restarting(HOUR, Costs(), 13.0, growth=True).share < shares[1]


def test_leaving_late_keeps_what_leaving_at_once_gives_away() -> None:
    found = [simulate(HOUR, Costs(), Notices(leave_s=seconds)).share for seconds in (120.0, 60.0, 15.0)]
    assert sorted(found) == found


def test_nodes_are_left_when_the_librarys_policy_says_so() -> None:
    early = Notices(lead_s=LEAD_S + 300.0)
    assert simulate(HOUR, Costs(), early).events == simulate(HOUR, Costs(), replace(early, leave_s=LEAD_S)).events
