"""Failures in a row, and those that are one."""

from mltrain.train.streak import Streak


def test_workers_that_were_started_one_after_the_failure_of_another_are_counted_each() -> None:
    streak = Streak()
    assert [streak.failed(began=10.0 * n, now=10.0 * n + 5.0) for n in range(4)] == [1, 2, 3, 4]


def test_a_node_that_takes_all_its_workers_with_it_is_one_failure() -> None:
    streak = Streak()
    assert [streak.failed(began=0.1 * n, now=5.0 + 0.1 * n) for n in range(8)] == [1] * 8
    assert streak.failed(began=6.0, now=9.0) == 2


def test_generations_that_lose_several_members_are_counted_once_by_their_numbers() -> None:
    streak = Streak()
    assert [streak.failed(began=number, now=number) for number in (1, 1, 1, 2, 2, 5)] == [1, 1, 1, 2, 2, 3]


def test_a_success_ends_a_streak() -> None:
    streak = Streak()
    streak.failed(1.0, 2.0)
    streak.ended()
    assert streak.failed(3.0, 4.0) == 1
