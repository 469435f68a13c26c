"""A rank's wait for its peers."""

import threading

import pytest

from mltrain.collectives.waiting import Waiting, wait_until
from mltrain.errors import CollectiveAborted


def test_a_wait_ends_at_its_deadline_though_nobody_aborts_it() -> None:
    waiting = Waiting()
    with pytest.raises(CollectiveAborted, match="the other ranks did not answer within 0 s"):
        wait_until(lambda: False, threading.Event(), waiting, deadline_s=0.01)
    total, current = waiting.seconds()
    assert total >= 0.01 and current == 0.0


def test_a_wait_ends_when_it_is_aborted_long_before_its_deadline() -> None:
    aborted = threading.Event()
    looked: list[bool] = []

    def look() -> bool:
        looked.append(True)
        if len(looked) == 10:
            aborted.set()
        return False

    with pytest.raises(CollectiveAborted, match="aborted while a collective was under way"):
        wait_until(look, aborted, Waiting())
    assert len(looked) == 10
