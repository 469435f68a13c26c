from hypothesis import given
from hypothesis import strategies as st

from mltrain.tune.allocation import Demand, grant, share, slots

LIMITS = st.tuples(st.integers(1, 6), st.integers(0, 6))


@st.composite
def demands(draw: st.DrawFn) -> list[Demand]:
    limits = draw(st.lists(LIMITS, min_size=1, max_size=8))
    return [
        Demand(f"t{index}", least, least + more, draw(st.sampled_from([0, least, least + more])))
        for index, (least, more) in enumerate(limits)
    ]


@given(st.integers(0, 40), demands())
def test_a_share_is_nothing_or_within_the_trials_limits(capacity: int, asked: list[Demand]) -> None:
    shares = share(capacity, asked)
    assert all(shares[demand.trial] == 0 or demand.min <= shares[demand.trial] <= demand.max for demand in asked)


@given(st.integers(0, 40), demands())
def test_nobody_has_less_than_another_and_could_have_more(capacity: int, asked: list[Demand]) -> None:
    shares = share(capacity, asked)
    smallest = [shares[demand.trial] for demand in asked if 0 < shares[demand.trial] < demand.max]
    for demand in asked:
        if shares[demand.trial] > demand.min and smallest:
            assert shares[demand.trial] <= min(smallest) + 1


@given(st.integers(0, 40), demands())
def test_grants_never_exceed_what_is_free_unless_nothing_fits(capacity: int, asked: list[Demand]) -> None:
    granted = grant(capacity, asked)
    grown = [demand for demand in asked if granted[demand.trial] > demand.held]
    promised = sum(max(demand.held, granted[demand.trial]) for demand in asked)
    alone = len(grown) == 1 and not any(demand.held for demand in asked) and grown[0].min > capacity
    assert not grown or promised <= capacity or alone


@given(st.integers(0, 40), demands())
def test_a_first_grant_is_a_whole_gang(capacity: int, asked: list[Demand]) -> None:
    granted = grant(capacity, asked)
    assert all(granted[demand.trial] == 0 or granted[demand.trial] >= demand.min for demand in asked if not demand.held)


@given(st.integers(0, 40), st.lists(LIMITS, min_size=1, max_size=8))
def test_trials_that_come_and_go_all_get_their_turn(capacity: int, limits: list[tuple[int, int]]) -> None:
    waiting = [Demand(f"t{index}", least, least + more) for index, (least, more) in enumerate(limits)]
    rounds = 0
    while waiting:
        granted = grant(capacity, waiting)
        held = [
            Demand(demand.trial, demand.min, demand.max, max(demand.held, granted[demand.trial])) for demand in waiting
        ]
        assert any(demand.held for demand in held), f"deadlock: {waiting} with {capacity}"
        # Those above their quota give back; the first that runs ends.
        held = [
            Demand(demand.trial, demand.min, demand.max, min(demand.held, granted[demand.trial])) for demand in held
        ]
        ended = next(demand for demand in held if demand.held)
        waiting = [demand for demand in held if demand.trial != ended.trial]
        rounds += 1
    assert rounds == len(limits)


def test_two_elastic_trials_share_evenly() -> None:
    assert share(8, [Demand("a", 1, 8), Demand("b", 1, 8)]) == {"a": 4, "b": 4}
    assert share(8, [Demand("a", 1, 2), Demand("b", 1, 8)]) == {"a": 2, "b": 6}


def test_a_newcomer_waits_until_the_first_has_given_back() -> None:
    asked = [Demand("a", 1, 8, held=8), Demand("b", 2, 8)]
    assert grant(8, asked) == {"a": 4, "b": 0}
    assert grant(8, [Demand("a", 1, 8, held=4), Demand("b", 2, 8)]) == {"a": 4, "b": 4}


def test_a_small_trial_passes_a_large_one_that_does_not_fit() -> None:
    assert share(4, [Demand("large", 8, 8), Demand("small", 2, 2)]) == {"large": 0, "small": 2}


def test_where_nothing_fits_the_first_asks_all_the_same() -> None:
    assert grant(0, [Demand("a", 2, 4), Demand("b", 2, 4)]) == {"a": 2, "b": 0}


def test_slots_are_counted_node_by_node() -> None:
    nodes = [{"CPU": 3.0, "GPU": 1.0}, {"CPU": 3.0}, {"CPU": 0.3}]
    assert slots(nodes, {"CPU": 2.0}) == 2
    assert slots(nodes, {"CPU": 1.0, "GPU": 1.0}) == 1
    assert slots(nodes, {"CPU": 0.1}) == 30 + 30 + 3
