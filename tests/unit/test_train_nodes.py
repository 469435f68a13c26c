"""The ledger of nodes: a silent node is held back, longer each time, and forgiven in the end."""

from mltrain.train.nodes import Ledger


def test_a_silent_node_is_held_back_twice_as_long_each_time_up_to_a_limit() -> None:
    ledger, now = Ledger(), 100.0
    holds = []
    for _ in range(9):
        holds.append(ledger.silent("a", now))
        assert ledger.held(now) == {"a"} and not ledger.held(now + holds[-1])
        now += holds[-1]
    assert holds == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


def test_a_node_is_forgiven_after_a_long_time_without_a_loss() -> None:
    ledger = Ledger()
    assert [ledger.silent("a", now) for now in (0.0, 10.0, 950.0)] == [5.0, 10.0, 5.0]


def test_processes_that_end_now_and_then_are_not_held_against_their_node() -> None:
    ledger = Ledger()
    assert [ledger.process_lost("a", 20.0 * count) for count in range(20)] == [0.0] * 20
    assert not ledger.struck("a")


def test_five_processes_lost_within_a_minute_count_as_one_silence() -> None:
    ledger = Ledger()
    assert [ledger.process_lost("a", float(count)) for count in range(5)] == [0.0, 0.0, 0.0, 0.0, 5.0]
    assert [ledger.process_lost("a", 10.0 + count) for count in range(5)][-1] == 10.0
    assert ledger.struck("a") and ledger.held(15.0) == {"a"} and not ledger.held(30.0)


def test_other_nodes_are_not_held_for_it() -> None:
    ledger = Ledger()
    ledger.silent("a", 0.0)
    assert ledger.held(1.0) == {"a"}
