"""What signs of life say: a generation that stands still, a slow rank, hosts that do not reach each other."""

import itertools
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mltrain.train.pulses import Pulse, Pulses, _median_without, cut_off


def beat(pulses: Pulses, seconds: float, busy: dict[str, float]) -> None:
    """Pulses every half second of ranks that compute for these shares of the time."""
    for count in range(int(seconds * 2) + 1):
        now = count / 2
        for member, share in busy.items():
            pulses.hear(member, Pulse(now, now * (1 - share), 0.0))


def test_all_ranks_wait_only_if_none_computes() -> None:
    pulses = Pulses("ab")
    pulses.hear("a", Pulse(1.0, 1.0, 0.7))
    assert pulses.waiting_s() == 0.0
    pulses.hear("b", Pulse(1.0, 0.5, 0.4))
    assert pulses.waiting_s() == 0.4
    pulses.hear("a", Pulse(1.5, 1.0, 0.0))
    assert pulses.waiting_s() == 0.0


def test_a_rank_that_computes_while_the_others_wait_is_slow() -> None:
    pulses = Pulses("abc")
    beat(pulses, 7, {"a": 0.3, "b": 0.9, "c": 0.25})
    slow = pulses.slow(7.0)
    assert slow.keys() == {"b"} and slow["b"].busy > 0.85 and slow["b"].others < 0.3
    assert not slow["b"].persists(30.0)
    assert pulses.slow(40.0)["b"].persists(40.0)


def test_ranks_that_are_all_busy_or_all_idle_are_not_slow() -> None:
    for shares in ({"a": 0.9, "b": 0.8, "c": 0.95}, {"a": 0.02, "b": 0.1, "c": 0.01}):
        pulses = Pulses("abc")
        beat(pulses, 7, shares)
        assert not pulses.slow(7.0)


def test_nobody_is_called_slow_before_a_whole_window_has_been_heard_nor_alone() -> None:
    pulses = Pulses("ab")
    beat(pulses, 5, {"a": 0.1, "b": 1.0})
    assert not pulses.slow(5.0)
    alone = Pulses("a")
    beat(alone, 7, {"a": 1.0})
    assert not alone.slow(7.0)


def test_a_rank_that_has_recovered_is_not_slow_any_more() -> None:
    pulses = Pulses("ab")
    beat(pulses, 7, {"a": 0.1, "b": 1.0})
    assert pulses.slow(7.0)
    for count in range(1, 15):
        pulses.hear("a", Pulse(7 + count / 2, 6.3 + count * 0.45, 0.0))
        pulses.hear("b", Pulse(7 + count / 2, count * 0.45, 0.0))
    assert not pulses.slow(14.0)


def test_one_host_cut_from_its_peers_is_the_one_to_go() -> None:
    assert cut_off({"a": "bd", "b": "ad", "c": "", "d": "ab"}) == ("c",)
    assert cut_off({"a": "bc", "b": "ac", "c": "ab"}) == ()
    assert cut_off({"a": "b", "b": "", "c": "ab"}) in {("a", "c"), ("c", "b"), ("b", "c"), ("c", "a")}


def test_of_two_that_miss_each_other_the_later_rank_goes() -> None:
    assert cut_off({"a": "c", "b": "c", "c": "ab"}) == ("b",)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=9), st.data())
def test_the_median_of_the_others_leaves_out_one(values: list[float], data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(values))
    others = list(values)
    others.remove(value)
    assert _median_without(sorted(values), value) == pytest.approx(statistics.median(others))


@given(st.sets(st.tuples(st.sampled_from("abcdef"), st.sampled_from("abcdef"))))
def test_those_who_stay_reach_each_other(links: set[tuple[str, str]]) -> None:
    reached = {a: [b for x, b in links if x == a] for a in "abcdef"}
    gone = cut_off(reached)
    stay = [worker for worker in "abcdef" if worker not in gone]
    assert stay and all((a, b) in links for a, b in itertools.permutations(stay, 2))
