"""How steps are prepared by a thread and by the one who would wait for it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import pytest

from mltrain.data.pipeline import Pipeline
from tests.support.processes import wait_until

STEPS = range(3, 11)


@contextmanager
def pipeline(
    gather: Callable[[int, str], int],
    open_step: Callable[[int], int] = lambda step: step,
    slots: Sequence[str] = "abcd",
) -> Iterator[Pipeline[str, int, int]]:
    made: Pipeline[str, int, int] = Pipeline(STEPS, list(slots), 4, lambda step: True, open_step, gather)
    try:
        yield made
    finally:
        made.close()
        assert made.join(10)


def take_all(made: Pipeline[str, int, int]) -> list[int]:
    taken = []
    while (item := made.take()) is not None:
        taken.append(item[0])
        made.give_back(item[1])
    return taken


def test_who_would_wait_gathers_too_and_the_order_stays() -> None:
    """The first step is gathered only while another thread gathers the second."""
    second = threading.Event()

    def gather(step: int, slot: str) -> int:
        if step == STEPS[0]:
            assert second.wait(20)
        elif step == STEPS[1]:
            second.set()
        return step

    with pipeline(gather) as made:
        assert take_all(made) == list(STEPS)


def test_an_error_is_raised_where_its_step_is_taken() -> None:
    later = threading.Event()

    def gather(step: int, slot: str) -> int:
        if step == STEPS[0]:
            assert later.wait(20)
        elif step == STEPS[1]:
            later.set()
            raise ValueError(f"step {step}")
        return step

    with pipeline(gather) as made:
        first = made.take()
        assert first is not None and first[0] == STEPS[0]
        with pytest.raises(ValueError, match=f"step {STEPS[1]}"):
            made.take()


def test_what_was_opened_before_an_error_is_still_delivered() -> None:
    def open_step(step: int) -> int:
        if step == STEPS[3]:
            raise ValueError(f"step {step}")
        return step

    with pipeline(lambda step, slot: step, open_step) as made:
        assert [made.take()[0] for _ in range(3)] == list(STEPS[:3])  # type: ignore[index]
        with pytest.raises(ValueError, match=f"step {STEPS[3]}"):
            made.take()


def test_who_takes_batches_that_are_ready_gathers_none() -> None:
    gathered_here = []

    def gather(step: int, slot: str) -> int:
        if threading.current_thread() is threading.main_thread():
            gathered_here.append(step)
        return step

    with pipeline(gather) as made:
        for step in STEPS:
            wait_until(made.ready, 20, f"step {step}")
            item = made.take()
            assert item is not None and item[0] == step
            made.give_back(item[1])
    assert not gathered_here


def test_steps_are_opened_further_ahead_than_there_are_slots() -> None:
    """So that who would wait finds work while the thread gathers."""
    opened = threading.Semaphore(0)

    def open_step(step: int) -> int:
        opened.release()
        return step

    def gather(step: int, slot: str) -> int:
        if step == STEPS[0]:
            for _ in range(4):
                assert opened.acquire(timeout=20)
        return step

    with pipeline(gather, open_step, slots=["a", "b"]) as made:
        assert take_all(made) == list(STEPS)
